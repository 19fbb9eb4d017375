"""Groups with the scores of a forward."""

import torch

from codes.train.batches import FILLER, BatchGroups
from codes.train.scored_batches import all_finite, finite_by_group, named_broken_groups, scored_groups

NAN, INF = float("nan"), float("inf")


def batch(scores: list[float], losses: list[float], indices: list[int], sizes: list[int]):
    characters = [tuple(range(size)) for size in sizes]
    types = [("original",) * (size - 1) for size in sizes]
    groups = BatchGroups(indices, torch.tensor(sizes), characters, types, torch.empty(0))
    return groups, torch.tensor(scores), torch.tensor(losses)


def test_groups_get_their_own_scores_and_fillers_none():
    first, second = scored_groups(
        *batch([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0], [0.1, 0.2, 9.0], [7, 3, FILLER], [2, 3, 2])
    )
    assert (first.index, first.scores, first.answer_characters) == (7, (1.0, 2.0), (0, 1))
    assert (second.index, second.scores, second.answer_characters) == (3, (3.0, 4.0, 5.0), (0, 1, 2))


def test_a_score_or_a_loss_that_is_not_finite_is_found_with_its_group():
    fine = batch([1.0, 2.0, 3.0, 4.0], [0.1, 0.2], [7, 3], [2, 2])
    scores = batch([1.0, NAN, 3.0, 4.0], [0.1, 0.2], [5, FILLER], [2, 2])
    losses = batch([1.0, 2.0, 3.0, 4.0], [0.1, INF], [8, 1], [2, 2])
    assert all_finite([fine])
    assert not all_finite([fine, scores])
    assert not all_finite([losses])
    groups = finite_by_group([fine, scores, losses])
    assert groups == [(7, True), (3, True), (5, False), (8, True), (1, False)]
    assert named_broken_groups(groups) == (
        "the scores or the loss of 2 of 5 groups (numbers 1, 5 of the training groups, from 0)"
    )
    assert "numbers 0, 1, 2, 3, 4, 5, 6, 7, ... of" in named_broken_groups([(index, False) for index in range(9)])
