"""Pareto fronts, trade-offs and conflict: brute force over all candidates and all weights, and known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codes.evaluate.pareto import pair_agreement, pareto_ranks, supported_path, trade_off


def score_sets(objectives):
    """Arrays [candidates, objectives] of few different numbers, so that ties and duplicates are frequent."""
    row = st.lists(st.integers(-3, 3), min_size=objectives, max_size=objectives)
    return st.lists(row, min_size=1, max_size=12).map(lambda rows: np.array(rows, dtype=float))


def dominates(one, other):
    return all(a >= b for a, b in zip(one, other)) and any(a > b for a, b in zip(one, other))


def brute_force_ranks(scores):
    ranks, left, rank = [0] * len(scores), set(range(len(scores))), 0
    while left:
        rank += 1
        front = {i for i in left if not any(dominates(scores[j], scores[i]) for j in left)}
        for i in front:
            ranks[i] = rank
        left -= front
    return ranks


@given(st.integers(1, 4).flatmap(score_sets))
def test_fronts_are_those_of_brute_force_with_ties_and_duplicates(scores):
    assert pareto_ranks(scores).tolist() == brute_force_ranks(scores.tolist())


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
def test_fronts_of_many_distinct_vectors_are_those_of_brute_force(objectives):
    scores = np.random.default_rng(objectives).normal(size=(80, objectives))
    assert pareto_ranks(scores).tolist() == brute_force_ranks(scores.tolist())


def test_equal_vectors_are_on_the_front_together_and_of_one_objective_only_the_largest_are():
    assert pareto_ranks(np.array([[1, 2], [1, 2], [2, 1], [1, 1], [0, 0]])).tolist() == [1, 1, 1, 2, 3]
    assert pareto_ranks(np.array([[2.0], [3.0], [3.0], [-1.0]])).tolist() == [2, 1, 1, 3]


@given(score_sets(2))
def test_the_path_has_the_largest_weighted_sum_at_every_weight(scores):
    path = supported_path(scores)
    assert (np.diff(path.weights) > 0).all()
    edges = [0.0, *path.weights, 1.0]
    for place, low, high in zip(path.places, edges, edges[1:]):
        for weight in (low, (low + high) / 2, high):
            sums = scores @ np.array([1 - weight, weight])
            assert sums[place] == pytest.approx(sums.max(), abs=1e-12)
    # Nowhere between its turns is another vector as good.
    for place, low, high in zip(path.places, edges, edges[1:]):
        sums = scores @ np.array([1 - (low + high) / 2, (low + high) / 2])
        assert {tuple(row) for row in scores[sums >= sums.max() - 1e-12]} == {tuple(scores[place])}


def test_the_path_of_a_hand_computed_set():
    # (4, 0) to (3, 2) turns where 4 (1 - w) = 3 (1 - w) + 2 w, at 1/3; (3, 2) to (0, 4) at 3/5. (1, 3) is on the front,
    # but best at no weight; (2, 2) is dominated; the second (3, 2) is a duplicate.
    scores = np.array([[1, 3], [3, 2], [0, 4], [2, 2], [4, 0], [3, 2]], dtype=float)
    path = supported_path(scores)
    assert path.places.tolist() == [4, 1, 2]
    assert path.weights.tolist() == pytest.approx([1 / 3, 3 / 5])
    assert pareto_ranks(scores).tolist() == [1, 1, 1, 2, 1, 1]


def test_of_equal_first_scores_the_one_with_the_larger_second_score_begins_the_path():
    path = supported_path(np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]))
    assert (path.places.tolist(), path.weights.tolist()) == ([1], [])
    # Three on one line: the middle one is as good as others at one weight alone.
    path = supported_path(np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert (path.places.tolist(), path.weights.tolist()) == ([0, 2], [0.5])


def test_the_trade_off_over_prompts_turns_wherever_one_of_them_does():
    prompts = [
        np.array([[4, 0], [3, 2], [0, 4]], dtype=float),
        np.array([[1, 0], [0, 1]], dtype=float),
        np.array([[5, 5]], dtype=float),
    ]
    found = trade_off(prompts, 100)
    assert found.turns == 3
    assert found.low.tolist() == pytest.approx([0, 1 / 3, 1 / 2, 3 / 5])
    assert found.high.tolist() == pytest.approx([1 / 3, 1 / 2, 3 / 5, 1])
    expected = [[10 / 3, 5 / 3], [3, 7 / 3], [8 / 3, 8 / 3], [5 / 3, 10 / 3]]
    assert found.chosen.mean(0) == pytest.approx(np.array(expected))


def test_of_many_steps_some_are_kept_exactly_with_both_ends():
    generator = np.random.default_rng(1)
    prompts = [generator.normal(size=(10, 2)) for _ in range(100)]
    whole, thinned = trade_off(prompts, 10_000), trade_off(prompts, 20)
    assert whole.turns == thinned.turns == len(whole.low) - 1 > 100
    assert 10 < len(thinned.low) <= 20
    assert (thinned.low[0], thinned.high[-1]) == (0, 1)
    places = np.searchsorted(whole.low, thinned.low)
    assert whole.high[places].tolist() == thinned.high.tolist()
    assert (whole.chosen[:, places] == thinned.chosen).all()


@given(score_sets(2))
def test_agreement_counts_every_pair_of_candidates_once(scores):
    counts = [0, 0, 0]
    for i in range(len(scores)):
        for j in range(i):
            product = np.prod(scores[i] - scores[j])
            counts[0 if product > 0 else 1 if product < 0 else 2] += 1
    assert list(pair_agreement(scores)) == counts
