"""The training objectives as pure functions of scores; every one is computed in float32.

Scores of groups stand one after another in one vector, the chosen answer of each group first. ``reduction="mean"``
gives the mean over groups or pairs, ``"none"`` one value each.

Two things mean the same in every objective. A rejected answer of *weight* w counts as w copies of it would: in the
contrastive loss w is its multiplicity in the softmax's denominator, in the pairwise losses the weight of its pair in
the group's mean; weight 0 leaves it out. *Label smoothing* e takes the preference for wrong with probability e: in the
contrastive loss the target keeps 1 - e on the chosen answer and spreads e over the rejected ones, in the pairwise
losses e weighs the loss of the reversed pair (conservative DPO, Mitchell 2023). So a group of one rejected answer is
Bradley-Terry at temperature 1, smoothed or not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu
from torch.nn.utils.rnn import pad_sequence

TRAINING_MODES = ("contrast", "pairwise", "bradley_terry")
PAIRS = ("first", "all")
ORIGINAL = "original"


def contrastive_loss(
    scores: Tensor,
    group_sizes: Tensor,
    temperature: float | Tensor,
    reduction: str = "mean",
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of picking the chosen answer among all answers of its group (InfoNCE, van den Oord et al. 2018).

    scores: [answers]; group_sizes: int [groups], its sum the number of answers; temperature: above 0, divides the
    scores; weights: [answers], at least 0, those of chosen answers are not read. With weights w the denominator is
    exp(chosen) + sum of w exp(rejected) (a shift of the logits by log w, Menon et al. 2021). Returns a scalar, or
    [groups] without reduction: 0 for a group without rejected answers of any weight. Raises ValueError where the sizes
    do not fit the scores.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
    logits = _rows(scores, group_sizes) / temperature
    shares = _rejected_weights(torch.ones_like(scores) if weights is None else weights, group_sizes)
    chosen, rejected = logits[:, :1], logits[:, 1:]
    denominator = torch.cat((chosen, rejected + shares.log()), dim=1).logsumexp(1)
    losses = denominator - chosen[:, 0]
    if label_smoothing:
        # Cross entropy with e of the target moved to the rejected answers, each in proportion to its weight.
        losses = losses + label_smoothing * _weighted_mean(chosen - rejected, shares)
    return _reduced(losses, reduction)


def pairwise_margin_loss(
    chosen: Tensor, rejected: Tensor, margin: float, reduction: str = "mean", *, label_smoothing: float = 0.0
) -> Tensor:
    """max(0, margin - (chosen - rejected)) of each pair. chosen, rejected: [pairs]."""
    differences = _differences(chosen, rejected)
    losses = relu(margin - differences)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * relu(margin + differences)
    return _reduced(losses, reduction)


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, reduction: str = "mean", *, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected) of each pair (Bradley & Terry 1952). chosen, rejected: [pairs]."""
    differences = _differences(chosen, rejected)
    losses = -logsigmoid(differences)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-differences)
    return _reduced(losses, reduction)


def centering_penalty(scores: Tensor, group_sizes: Tensor) -> Tensor:
    """The squared mean score of each group: [answers], int [groups] -> [groups].

    It keeps rewards from drifting without narrowing margins (for a pair, a quarter of (chosen + rejected)^2, the
    auxiliary loss of Eisenstein et al. 2023).
    """
    return _rows(scores, group_sizes).sum(1).div(group_sizes.to(scores.device)) ** 2


def length_penalty(scores: Tensor, group_sizes: Tensor, lengths: Tensor) -> Tensor:
    """The squared mean over groups of the covariance of reward and log2 length within each; a scalar.

    scores, lengths: [answers], lengths at least 0 in any unit. Its root is in reward times doublings of the length. It
    is 0 where longer answers to the same prompt score neither higher nor lower on the whole, and unlike a squared
    correlation it does not blow up where rewards or lengths hardly differ (covariance as the measure of dependence:
    Zafar et al. 2017). It belongs to all answers that are scored together, and is no mean of penalties of groups.
    """
    sizes = group_sizes.to(scores.device).unsqueeze(1)
    doublings = _rows(torch.log2(lengths.to(scores.device) + 1), group_sizes)
    # Centring one side is enough, and padding is 0 in the other.
    centred = doublings - doublings.sum(1, keepdim=True) / sizes
    covariances = (_rows(scores, group_sizes) * centred).sum(1, keepdim=True) / sizes
    return covariances.mean() ** 2


def rating_losses(scores: Tensor, ratings: Tensor, group_sizes: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Bradley-Terry over the pairs of a group's answers of which one is rated above the other: [groups].

    scores, ratings: [answers], NaN where an answer is not rated. The order of the ratings counts, not their scale: each
    pair weighs the same, and a group the same whatever its size. Ties make no pairs; a group without any has a loss
    of 0.
    """
    rows = _rows(scores, group_sizes)
    by_group = ratings.to(scores.device).split(group_sizes.tolist())
    rated = pad_sequence(by_group, batch_first=True, padding_value=math.nan)
    is_better = (rated.unsqueeze(2) > rated.unsqueeze(1)).flatten(1).to(rows.dtype)
    better, worse = torch.broadcast_tensors(rows.unsqueeze(2), rows.unsqueeze(1))
    losses = bradley_terry_loss(better.flatten(1), worse.flatten(1), "none", label_smoothing=label_smoothing)
    return _weighted_mean(losses, is_better)


def answer_weights(bias_types: Sequence[Sequence[str]], weight_of: Callable[[str], float]) -> Tensor:
    """The weight of every answer, 1 for chosen ones: bias types of each group's rejected answers -> [answers]."""
    return torch.tensor([weight for group in bias_types for weight in (1.0, *map(weight_of, group))])


def group_losses(
    scores: Tensor,
    group_sizes: Tensor,
    *,
    training_mode: str,
    pairs: str = "first",
    temperature: float | Tensor = 0.5,
    margin: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    length_penalty_coefficient: float = 0.0,
    bias_weights: Mapping[str, float] | None = None,
    original_weight: float | None = None,
    bias_types: Sequence[Sequence[str]] = (),
    answer_characters: Sequence[Sequence[int]] = (),
) -> Tensor:
    """One loss a group: [answers], int [groups] -> [groups].

    The pairwise modes take the pair of the chosen and the first rejected answer, or with ``pairs="all"`` the mean over
    the pairs with every rejected answer, so that a group weighs the same whatever its size. ``bias_types`` names the
    bias of every rejected answer, by group: ``bias_weights`` weighs them, and with ``original_weight`` W the loss is
    W times that over the original rejected answers plus 1 - W times that over the others, where a group has both.
    ``answer_characters`` are the lengths of all answers of each group; the penalty on them is added to every group.
    """
    if training_mode not in TRAINING_MODES:
        raise ValueError(f"unknown training mode {training_mode!r}; known are {', '.join(TRAINING_MODES)}")
    weights = torch.ones_like(scores, dtype=torch.float32)
    if bias_weights:
        weights = answer_weights(bias_types, lambda bias: bias_weights.get(bias, 1.0)).to(scores.device)

    def losses_with(weights: Tensor) -> Tensor:
        if training_mode == "contrast":
            return contrastive_loss(
                scores, group_sizes, temperature, "none", weights=weights, label_smoothing=label_smoothing
            )
        pair_loss = partial(pairwise_margin_loss, margin=margin) if training_mode == "pairwise" else bradley_terry_loss
        return _pair_losses(scores, group_sizes, weights, pairs, partial(pair_loss, label_smoothing=label_smoothing))

    if original_weight is None:
        losses = losses_with(weights)
    else:
        is_original = answer_weights(bias_types, lambda bias: float(bias == ORIGINAL)).to(scores.device)
        parts = [weights * is_original, weights * (1 - is_original)]
        has_original, has_others = (_rejected_weights(part, group_sizes).sum(1) > 0 for part in parts)
        share = torch.where(has_original & has_others, original_weight, has_original.float())
        losses = share * losses_with(parts[0]) + (1 - share) * losses_with(parts[1])
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * centering_penalty(scores, group_sizes)
    if length_penalty_coefficient:
        lengths = torch.tensor([float(characters) for group in answer_characters for characters in group])
        losses = losses + length_penalty_coefficient * length_penalty(scores, group_sizes, lengths)
    return losses


def _pair_losses(
    scores: Tensor, group_sizes: Tensor, weights: Tensor, pairs: str, pair_loss: Callable[..., Tensor]
) -> Tensor:
    """The weighted mean over each group's pairs: [groups]."""
    rows, shares = _rows(scores, group_sizes), _rejected_weights(weights, group_sizes)
    last = 2 if pairs == "first" else None
    rejected, shares = rows[:, 1:last], shares[:, : last and 1]
    return _weighted_mean(pair_loss(rows[:, :1].expand_as(rejected), rejected, reduction="none"), shares)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean along the second dimension, 0 where no weight is: two of [groups, n] -> [groups]."""
    return (values * weights).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def _rows(values: Tensor, group_sizes: Tensor) -> Tensor:
    """Values of all answers, a row a group, padded with 0: [answers] -> float32 [groups, largest group]."""
    sizes = group_sizes.tolist()
    if sum(sizes) != len(values) or any(size < 1 for size in sizes):
        raise ValueError(f"group sizes {sizes} do not divide {len(values)} scores")
    return pad_sequence(values.float().split(sizes), batch_first=True)


def _rejected_weights(weights: Tensor, group_sizes: Tensor) -> Tensor:
    """The weights of the rejected answers, 0 where a group has none: [answers] -> [groups, largest group - 1]."""
    return _rows(weights, group_sizes)[:, 1:]


def _differences(chosen: Tensor, rejected: Tensor) -> Tensor:
    if chosen.shape != rejected.shape:
        raise ValueError(f"{tuple(chosen.shape)} chosen scores do not pair with {tuple(rejected.shape)} rejected ones")
    return chosen.float() - rejected.float()


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses
