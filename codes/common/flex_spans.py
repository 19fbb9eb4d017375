"""The packed rows of ``prefix_sharing`` through FlexAttention: one kernel over the whole row, on CUDA.

A block mask says which blocks of queries and keys meet at all, and torch's compiled kernel skips the others, so a row
of many groups is one launch a layer where span by span it is several a group. Sliding windows are part of the mask,
soft caps change the scores inside the kernel. On the CPU torch has the forward pass alone.
"""

from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from codes.common.prefix_sharing import UNSUPPORTED, Spans, autocasted, span_attention

FLEX_ATTENTION = "contrastrm_flex"
PROMPT = -1  # the answer's number of a prompt's tokens


def token_labels(groups: tuple[Spans, ...]) -> tuple[list[int], list[int], list[int]]:
    """Each token of a packed row: its group, its answer within the group (``PROMPT`` for the prompt), its position."""
    group_of, answer_of, positions = [], [], []
    for number, group in enumerate(groups):
        prompt = group.prompt_end - group.start
        parts = [(PROMPT, 0, prompt)] if prompt else []
        parts += [(answer, prompt, end - start) for answer, (start, end) in enumerate(group.answers())]
        for answer, first, length in parts:
            group_of += [number] * length
            answer_of += [answer] * length
            positions += range(first, first + length)
    return group_of, answer_of, positions


@lru_cache(maxsize=8)
def block_mask(groups: tuple[Spans, ...], window: int | None, device: torch.device) -> BlockMask:
    """Who attends to whom in a packed row: the prompt and oneself, backwards only, within the window if there is one.

    Kept for the layers of a forward, and for its second run under activation checkpointing.
    """
    group_of, answer_of, positions = (torch.tensor(labels, device=device) for labels in token_labels(groups))

    def attends(batch, head, query, key):
        same_answer = (answer_of[key] == PROMPT) | (answer_of[key] == answer_of[query])
        visible = (key <= query) & (group_of[key] == group_of[query]) & same_answer
        if window is None:
            return visible
        return visible & (positions[query] - positions[key] < window)

    length = len(group_of)
    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(attends, None, None, length, length, device=device)


def flex_span_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_spans: tuple[Spans, ...] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """As ``prefix_sharing.span_attention``, which still serves rows without spans, dropout and unknown extras."""
    if prefix_spans is None or dropout or any(kwargs.get(name) is not None for name in UNSUPPORTED):
        return span_attention(
            module, query, key, value, attention_mask, dropout, scaling, prefix_spans=prefix_spans, **kwargs
        )
    softcap, window = kwargs.get("softcap"), kwargs.get("sliding_window")

    def capped(score, batch, head, query_index, key_index):
        return softcap * torch.tanh(score / softcap)

    attend = _compiled(flex_attention) if query.device.type == "cuda" else flex_attention
    output = attend(
        *autocasted(query, key, value),
        score_mod=None if softcap is None else capped,
        block_mask=block_mask(prefix_spans, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=2)
def _compiled(function):
    # Rows differ in length from step to step; compiling for each length would never end.
    return torch.compile(function, dynamic=True)


AttentionInterface.register(FLEX_ATTENTION, flex_span_attention)
AttentionMaskInterface.register(FLEX_ATTENTION, AttentionMaskInterface()["sdpa"])
