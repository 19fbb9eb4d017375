"""The training objectives as pure functions of scores; every one is computed in float32.

Scores of groups stand one after another in one vector, the chosen answer of each group first. ``reduction="mean"``
gives the mean over groups or pairs, ``"none"`` one value each.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, relu
from torch.nn.utils.rnn import pad_sequence

TRAINING_MODES = ("contrast", "pairwise", "bradley_terry")
PAIRS = ("first", "all")


def contrastive_loss(scores: Tensor, group_sizes: Tensor, temperature: float, reduction: str = "mean") -> Tensor:
    """Cross entropy of picking the chosen answer among all answers of its group (InfoNCE, van den Oord et al. 2018).

    scores: [answers]; group_sizes: int [groups], its sum the number of answers; temperature: above 0, divides the
    scores. Returns a scalar, or [groups] without reduction. Raises ValueError where the sizes do not fit the scores.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
    rows = pad_sequence(_by_group(scores, group_sizes), batch_first=True, padding_value=float("-inf"))
    chosen = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    return cross_entropy(rows / temperature, chosen, reduction=reduction)


def pairwise_margin_loss(chosen: Tensor, rejected: Tensor, margin: float, reduction: str = "mean") -> Tensor:
    """max(0, margin - (chosen - rejected)) of each pair. chosen, rejected: [pairs]."""
    return _reduced(relu(margin - _differences(chosen, rejected)), reduction)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, reduction: str = "mean") -> Tensor:
    """-log sigmoid(chosen - rejected) of each pair (Bradley & Terry 1952). chosen, rejected: [pairs]."""
    return _reduced(-logsigmoid(_differences(chosen, rejected)), reduction)


def centering_penalty(scores: Tensor, group_sizes: Tensor) -> Tensor:
    """The squared mean score of each group: [answers], int [groups] -> [groups].

    It keeps rewards from drifting without narrowing margins (for a pair, a quarter of (chosen + rejected)^2, the
    auxiliary loss of Eisenstein et al. 2023).
    """
    return torch.stack([group.mean() ** 2 for group in _by_group(scores, group_sizes)])


def group_losses(
    scores: Tensor,
    group_sizes: Tensor,
    *,
    training_mode: str,
    pairs: str = "first",
    temperature: float = 0.5,
    margin: float = 1.0,
    center_rewards_coefficient: float = 0.0,
) -> Tensor:
    """One loss a group: [answers], int [groups] -> [groups].

    The pairwise modes take the pair of the chosen and the first rejected answer, or with ``pairs="all"`` the mean over
    the pairs with every rejected answer, so that a group weighs the same whatever its size.
    """
    if training_mode == "contrast":
        losses = contrastive_loss(scores, group_sizes, temperature, reduction="none")
    else:
        losses = torch.stack(
            [_pair_loss(group, training_mode, pairs, margin) for group in _by_group(scores, group_sizes)]
        )
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * centering_penalty(scores, group_sizes)
    return losses


def _pair_loss(group: Tensor, training_mode: str, pairs: str, margin: float) -> Tensor:
    rejected = group[1:2] if pairs == "first" else group[1:]
    chosen = group[:1].expand_as(rejected)
    if training_mode == "pairwise":
        return pairwise_margin_loss(chosen, rejected, margin)
    if training_mode == "bradley_terry":
        return bradley_terry_loss(chosen, rejected)
    raise ValueError(f"unknown training mode {training_mode!r}; known are {', '.join(TRAINING_MODES)}")


def _by_group(scores: Tensor, group_sizes: Tensor) -> tuple[Tensor, ...]:
    sizes = group_sizes.tolist()
    if sum(sizes) != len(scores) or any(size < 1 for size in sizes):
        raise ValueError(f"group sizes {sizes} do not divide {len(scores)} scores")
    return scores.float().split(sizes)


def _differences(chosen: Tensor, rejected: Tensor) -> Tensor:
    if chosen.shape != rejected.shape:
        raise ValueError(f"{tuple(chosen.shape)} chosen scores do not pair with {tuple(rejected.shape)} rejected ones")
    return chosen.float() - rejected.float()


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses
