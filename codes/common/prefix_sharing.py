"""The [prompt | r1 | ... | rn] layout: each prompt is computed once for all of its answers.

A *shared row* holds one group: the tokens that all its conversations begin with, then what each of them goes on with.
Positions restart at the prompt's end for every answer, and a token attends to the prompt and to its own answer only, so
each answer's hidden states, and their gradients, are those it would have alone. Several groups are packed into one row
without any padding. The common prefix is taken on tokens, never on text.

Attention is computed span by span, so what a mask would hide is never computed, and sliding windows and soft-capped
scores stay exact. A model that bypasses transformers' attention interface, or carries state from token to token in
another way, cannot share prefixes: ``RewardModel`` finds that out at the start and scores conversations one a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from codes.common.conversation import pad_batch

SPAN_ATTENTION = "contrastrm_spans"

# Layer kinds whose tokens see earlier ones through attention alone, over the whole conversation or a window of it.
ATTENTION_LAYERS = {"full_attention", "attention", "sliding_attention"}
# What else a model may hand to its attention function that changes the result, and that is not computed here.
UNSUPPORTED = ("s_aux", "position_bias")
# The cost rule: tokens that sharing must save to be worth joining one more block. benchmarks/bench_prefix_sharing.py
# measures it: from here on the shared layout was the fastest or within noise of it, and a padded batch never was.
LEAST_SAVING = 8


@dataclass(frozen=True)
class Spans:
    """Where one group lies in a row: the prompt in [start, prompt_end), then the answers, each up to its end."""

    start: int
    prompt_end: int
    ends: tuple[int, ...]

    def answers(self) -> list[tuple[int, int]]:
        return list(zip((self.prompt_end, *self.ends), self.ends))

    @property
    def longest(self) -> int:
        """The tokens of the longest conversation."""
        return self.prompt_end - self.start + max(end - start for start, end in self.answers())


@dataclass(frozen=True)
class PackedRow:
    """Groups one after another in one row, without padding; see ``pack_groups``."""

    input_ids: list[int]
    position_ids: list[int]
    groups: tuple[Spans, ...]

    @property
    def read_at(self) -> list[int]:
        """The index of every answer's last token, where its score is read, in the order the answers were given."""
        return [end - 1 for group in self.groups for end in group.ends]


def common_prefix_length(conversations: Sequence[Sequence[int]]) -> int:
    """How many first tokens all conversations share, leaving each at least one of its own to be read at."""
    limit = max(min(map(len, conversations)) - 1, 0)
    # What the first and the last in lexical order share, all between them share, too.
    first, last = min(conversations), max(conversations)
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def pack_groups(groups: Sequence[Sequence[Sequence[int]]], least_saving: float = 1) -> PackedRow:
    """Lay groups of conversations (token ids) out in one row.

    A group in which sharing would save fewer than ``least_saving`` tokens is laid out conversation by conversation:
    with ``math.inf`` that is every group, an unpadded row without sharing.
    """
    input_ids, position_ids, spans = [], [], []

    def place(conversations: Sequence[Sequence[int]], prompt_length: int) -> None:
        start = len(input_ids)
        input_ids.extend(conversations[0][:prompt_length])
        position_ids.extend(range(prompt_length))
        ends = []
        for conversation in conversations:
            input_ids.extend(conversation[prompt_length:])
            position_ids.extend(range(prompt_length, len(conversation)))
            ends.append(len(input_ids))
        spans.append(Spans(start, start + prompt_length, tuple(ends)))

    for conversations in groups:
        prompt_length = common_prefix_length(conversations)
        if prompt_length * (len(conversations) - 1) >= least_saving:
            place(conversations, prompt_length)
        else:
            for conversation in conversations:
                place([conversation], 0)
    return PackedRow(input_ids, position_ids, tuple(spans))


@dataclass(frozen=True)
class BatchLayout:
    """Groups of conversations -> the inputs of ``RewardModel.forward``, one score a conversation, in order.

    ``least_saving`` None pads every conversation to a row of its own; a number packs all into one row, see
    ``pack_groups``.
    """

    pad_id: int
    least_saving: float | None = None

    def sizes(self, answers: ndarray, tokens: ndarray, longest: ndarray, prefix: ndarray) -> tuple[ndarray, ndarray]:
        """What groups take up in a batch, all int64 [groups]: a batch computes the sum of rows times the widest width.

        answers, tokens, longest, prefix: each group's number of conversations, the tokens of all of them, those of the
        longest, and how many first tokens all share.
        """
        if self.least_saving is None:
            return answers, longest
        saved = (answers - 1) * prefix
        return tokens - np.where(saved >= self.least_saving, saved, 0), np.ones_like(tokens)

    def __call__(self, groups: Sequence[Sequence[Sequence[int]]]) -> dict:
        if self.least_saving is None:
            return pad_batch([conversation for group in groups for conversation in group], self.pad_id)
        row = pack_groups(groups, self.least_saving)
        return {
            "input_ids": torch.tensor([row.input_ids]),
            "position_ids": torch.tensor([row.position_ids]),
            "prefix_spans": row.groups,
            "read_at": torch.tensor(row.read_at),
        }


def packed_mask(device: torch.device) -> torch.Tensor:
    """The attention mask to give with a packed row: the spans say who attends to whom.

    Being four-dimensional it stops transformers from making a mask of its own; no attention could take it for one.
    """
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def sharing_obstacle(config: PretrainedConfig) -> str | None:
    """Why a decoder of this configuration cannot share prefixes, or None where nothing speaks against it."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    if other := sorted(kinds - ATTENTION_LAYERS):
        return f"it has {', '.join(other)} layers"
    if getattr(config, "attention_chunk_size", None):
        return "it attends in chunks"
    return None


def span_attention(
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
    """Attention over one packed row, only where the layout allows any.

    query: [1, heads, length, head_dim]; key and value: [1, kv_heads, length, head_dim]; ``prefix_spans`` comes as a
    keyword of the model's forward. Returns [1, length, heads, head_dim]. Without spans it is stock SDPA.
    """
    if unsupported := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
        raise ValueError(f"span attention does not know {', '.join(unsupported)}")
    if prefix_spans is None:
        if attention_mask is not None and attention_mask.shape[-1] < key.shape[2]:
            raise ValueError("the model does not hand the spans of a packed row to its attention")
        return AttentionInterface()["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    settings = {
        "dropout": dropout,
        "scaling": scaling,
        "softcap": kwargs.get("softcap"),
        "window": kwargs.get("sliding_window"),
    }
    longest = max(group.longest for group in prefix_spans)
    if _has_flash_kernels(query, value) and not dropout and not _needs_mask(longest, **settings):
        return _SpanAttention.apply(*autocasted(query, key, value), prefix_spans, scaling), None
    parts = [part for group in prefix_spans for part in _group_attention(query, key, value, group, **settings)]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _group_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Spans, **settings
) -> list[torch.Tensor]:
    """What attention gives for one group's tokens, in their order: the prompt's, then each answer's.

    Kernels know the triangle of a whole conversation, but not an answer's part of it: there they take a mask and
    compute what it hides. So under a prompt that is shorter than the answer the prompt's rows are computed again.
    """
    prompt_length = group.prompt_end - group.start
    prompt_states, answers = None, []
    for start, end in group.answers():
        keys, values = _with_prompt(key, group, start, end), _with_prompt(value, group, start, end)
        if prompt_length <= end - start and not _needs_mask(prompt_length + end - start, **settings):
            states = _attend(_with_prompt(query, group, start, end), keys, values, **settings)
            prompt_states, states = states[:, :, :prompt_length], states[:, :, prompt_length:]
        else:
            states = _attend(query[:, :, start:end], keys, values, **settings)
        answers.append(states)
    if prompt_length == 0:
        return answers
    if prompt_states is None:
        prompt = slice(group.start, group.prompt_end)
        prompt_states = _attend(query[:, :, prompt], key[:, :, prompt], value[:, :, prompt], **settings)
    return [prompt_states, *answers]


def _with_prompt(states: torch.Tensor, group: Spans, start: int, end: int) -> torch.Tensor:
    """The states of a group's prompt and of its answer in [start, end): [1, heads, length, head_dim]."""
    if start == group.prompt_end:
        return states[:, :, group.start : end]
    if group.prompt_end == group.start:
        return states[:, :, start:end]
    return torch.cat((states[:, :, group.start : group.prompt_end], states[:, :, start:end]), dim=2)


def _needs_mask(length: int, *, softcap: float | None, window: int | None, **_) -> bool:
    """Whether attention over a whole conversation is more than causal."""
    return softcap is not None or (window is not None and window < length)


def _has_flash_kernels(query: torch.Tensor, value: torch.Tensor) -> bool:
    is_known = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    return query.device.type == "cpu" and is_known and query.shape[-1] == value.shape[-1]


def autocasted(*tensors: torch.Tensor) -> Iterator[torch.Tensor]:
    """What autocast does for the stock attention: positions are rotated in float32, values are not."""
    device = tensors[0].device.type
    enabled = torch.is_autocast_enabled(device)
    return (tensor.to(torch.get_autocast_dtype(device)) if enabled else tensor for tensor in tensors)


class _SpanAttention(torch.autograd.Function):
    """Attention over a packed row from torch's flash kernels for the CPU, without any mask.

    The prompt with the first answer, and every other answer by itself, is plain causal attention. The others also see
    the whole prompt, which is one call for all of them; the two parts are joined by their log-sum-exps. Backward, each
    part's kernel is given the joined output and log-sum-exp, so that its probabilities are those of the whole row
    (as between blocks in Dao et al. 2022, FlashAttention, section 3.1 and algorithm 4).
    """

    @staticmethod
    def forward(ctx, query, key, value, groups: Sequence[Spans], scaling: float | None) -> torch.Tensor:
        """query: [1, heads, length, head_dim]; key and value: [1, kv_heads, ...] -> [1, length, heads, head_dim]."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        heads, length = query.shape[1:3]
        output = query.new_empty(1, length, heads, value.shape[-1]).transpose(1, 2)
        lse = query.new_empty(1, heads, length, dtype=torch.float32)
        for queries, keys, causal in _attention_blocks(groups):
            part, part_lse = attend(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scaling
            )
            if causal:
                output[:, :, queries], lse[:, :, queries] = part, part_lse
                continue
            own_lse = lse[:, :, queries]
            joined = torch.logaddexp(own_lse, part_lse)
            own = output[:, :, queries] * (own_lse - joined).exp().unsqueeze(-1)
            output[:, :, queries] = own + part * (part_lse - joined).exp().unsqueeze(-1)
            lse[:, :, queries] = joined
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.groups, ctx.scaling = groups, scaling
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, output, lse = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)
        query_gradient, key_gradient, value_gradient = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for queries, keys, causal in _attention_blocks(ctx.groups):
            parts = attend_backward(
                *(gradient[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys]),
                *(output[:, :, queries], lse[:, :, queries], 0.0, causal),
                scale=ctx.scaling,
            )
            query_gradient[:, :, queries] += parts[0]
            key_gradient[:, :, keys] += parts[1]
            value_gradient[:, :, keys] += parts[2]
        return query_gradient, key_gradient, value_gradient, None, None


def _attention_blocks(groups: Sequence[Spans]) -> Iterator[tuple[slice, slice, bool]]:
    """(queries, keys, causal): the blocks of a packed row that attend; a causal block comes before what joins it."""
    for group in groups:
        start = group.start
        for end in group.ends:
            yield slice(start, end), slice(start, end), True
            start = end
        if len(group.ends) > 1 and group.prompt_end > group.start:
            yield slice(group.ends[0], group.ends[-1]), slice(group.start, group.prompt_end), False


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of the last tokens of a conversation (query) over the whole of it (key, value)."""
    new, length = query.shape[2], key.shape[2]
    mask = None
    if new < length or _needs_mask(length, softcap=softcap, window=window):
        mask = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(length - new)
        if window is not None and window < length:
            mask = mask.triu(length - new - window + 1)
    if softcap is None and mask is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    # No fast kernel takes both a mask and fewer heads of keys than of queries.
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


AttentionInterface.register(SPAN_ATTENTION, span_attention)
AttentionMaskInterface.register(SPAN_ATTENTION, AttentionMaskInterface()["sdpa"])
