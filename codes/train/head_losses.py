"""From the scores of all heads to one loss a group: the heads of an ensemble, or those of several objectives.

The heads of an *ensemble* have the same objective and start from other random weights; the loss is the mean over them
of each head's own. On one trunk and the same groups heads end up closer to each other than separate models do, and the
more members of an ensemble share, the more of their errors they share (Eisenstein et al. 2023, arXiv 2312.09244). With
a *bootstrap* every head sees its own resampling of the groups: it counts each group as often as a draw from a Poisson
distribution of mean 1 says (Oza & Russell 2001, online bagging), always the same for a group and a seed, whatever the
epoch, the order and the ranks.

Of several *objectives* each head learns to order answers as its own ratings do. The training mode's loss on the
combined score is added, so that the combination prefers the chosen answer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codes.train.batches import BatchGroups
from codes.train.losses import group_losses, rating_losses
from codes.train.reward_heads import RewardHeads


def head_losses(
    scores: Tensor,
    groups: BatchGroups,
    heads: RewardHeads,
    *,
    preference_weight: float | None = None,
    bootstrap_seed: int | None = None,
    **objective,
) -> Tensor:
    """One loss a group: [answers, heads] -> [groups]; ``objective`` are arguments of ``losses.group_losses``.

    Heads of objectives: the mean over them of ``losses.rating_losses``, 0 for one by which a group has no two answers
    rated differently, plus ``preference_weight`` times the loss of the combined score. Other heads: the mean over them
    of each one's loss.
    """
    facts = {"bias_types": groups.bias_types, "answer_characters": groups.answer_characters}
    if not heads.are_objectives:
        each = [group_losses(head, groups.group_sizes, **objective, **facts) for head in scores.unbind(1)]
        losses = torch.stack(each, dim=1)
        if bootstrap_seed is not None:
            losses = losses * bootstrap_weights(groups.indices, len(each), bootstrap_seed).to(losses.device)
        return losses.mean(1)
    smoothing = objective.get("label_smoothing", 0.0)
    rated = zip(scores.unbind(1), groups.ratings.unbind(1))
    each = [rating_losses(head, own, groups.group_sizes, label_smoothing=smoothing) for head, own in rated]
    losses = torch.stack(each, dim=1).mean(1)
    if preference_weight:
        preference = group_losses(heads.combined(scores), groups.group_sizes, **objective, **facts)
        losses = losses + preference_weight * preference
    return losses


def bootstrap_weights(indices: Sequence[int], heads: int, seed: int) -> Tensor:
    """How often each head counts each group, by the group's place in its data set: float32 [groups, heads]."""
    # A filler's place is below 0; what it weighs makes no difference.
    rows = [np.random.default_rng([seed, max(index, 0)]).poisson(1.0, heads) for index in indices]
    return torch.tensor(np.array(rows), dtype=torch.float32)
