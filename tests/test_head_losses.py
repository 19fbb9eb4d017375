"""Losses of several heads: the mean of what each head alone would have, and Bradley-Terry over ratings."""

import itertools
import math

import pytest
import torch

from codes.train.batches import FILLER, BatchGroups
from codes.train.head_losses import bootstrap_weights, head_losses
from codes.train.losses import group_losses, rating_losses
from codes.train.reward_heads import ONE_HEAD, RewardHeads, ensemble_heads

SIZES = [3, 2, 4]
NAN = math.nan
RATINGS = torch.tensor(
    [[4, 1], [2, 1], [3, NAN], [NAN, 5], [1, 4], [1, 1], [2, 2], [2, 3], [NAN, 0]], dtype=torch.float64
)
OBJECTIVES = RewardHeads(("helpful", "safe"), "weighted", weights={"helpful": 1.0, "safe": 2.0})
MODES = ("contrast", "pairwise", "bradley_terry")


def groups(ratings: torch.Tensor = RATINGS, indices=(0, 1, 2)) -> BatchGroups:
    characters = [tuple(range(1, size + 1)) for size in SIZES]
    biases = [("length",) * (size - 1) for size in SIZES]
    return BatchGroups(list(indices), torch.tensor(SIZES), characters, biases, ratings)


def random_scores(heads: int, seed: int = 0) -> torch.Tensor:
    scores = torch.randn(sum(SIZES), heads, generator=torch.Generator().manual_seed(seed))
    return scores.requires_grad_()


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_of_an_ensemble_and_its_gradient_are_the_means_of_those_of_its_heads_alone(mode):
    objective = {"training_mode": mode, "pairs": "all", "label_smoothing": 0.1, "center_rewards_coefficient": 0.3}
    objective |= {"length_penalty_coefficient": 0.2, "bias_weights": {"length": 2.0}}
    facts = {"bias_types": groups().bias_types, "answer_characters": groups().answer_characters}
    scores = random_scores(4)
    losses = head_losses(scores, groups(), ensemble_heads(4, "minimum"), **objective)
    losses.sum().backward()
    alone = [head.detach().clone().requires_grad_() for head in scores.unbind(1)]
    each = [group_losses(head, torch.tensor(SIZES), **objective, **facts) for head in alone]
    assert torch.equal(losses, torch.stack(each, 1).mean(1))
    torch.stack(each).sum().backward()
    assert torch.equal(scores.grad, torch.stack([head.grad for head in alone], 1) / 4)


@pytest.mark.parametrize("mode", MODES)
def test_one_head_has_bitwise_the_loss_that_it_has_without_heads(mode):
    scores = random_scores(1)
    losses = head_losses(scores, groups(), ONE_HEAD, training_mode=mode)
    losses.sum().backward()
    alone = scores.detach()[:, 0].clone().requires_grad_()
    expected = group_losses(alone, torch.tensor(SIZES), training_mode=mode)
    expected.sum().backward()
    assert torch.equal(losses, expected)
    assert torch.equal(scores.grad[:, 0], alone.grad)


def brute_force(scores: list[float], ratings: list[float], smoothing: float = 0.0) -> float:
    losses = []
    for better, worse in itertools.permutations(range(len(scores)), 2):
        if ratings[better] > ratings[worse]:
            difference = scores[better] - scores[worse]
            right, wrong = math.log1p(math.exp(-difference)), math.log1p(math.exp(difference))
            losses.append((1 - smoothing) * right + smoothing * wrong)
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_rating_losses_are_bradley_terry_over_all_pairs_whose_ratings_differ(smoothing):
    scores = random_scores(2).detach()
    for head in range(2):
        found = rating_losses(scores[:, head], RATINGS[:, head], torch.tensor(SIZES), label_smoothing=smoothing)
        rows, rated = (values[:, head].split(SIZES) for values in (scores, RATINGS))
        expected = [brute_force(row.tolist(), own.tolist(), smoothing) for row, own in zip(rows, rated)]
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_only_the_order_of_ratings_counts_and_a_group_weighs_the_same_whatever_its_size():
    scores, ratings, sizes = torch.zeros(7), torch.tensor([1.0, 2, 3, 4, 5, 0, 9]), torch.tensor([5, 2])
    assert rating_losses(scores, ratings, sizes).tolist() == pytest.approx([math.log(2)] * 2)
    scores = torch.randn(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rating_losses(scores, ratings, sizes), rating_losses(scores, ratings**3 - 100, sizes))


def test_ratings_that_tie_or_are_absent_give_neither_loss_nor_gradient():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    losses = rating_losses(scores, torch.tensor([2.0, 2.0, NAN, 1.0]), torch.tensor([2, 2]))
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert scores.grad.tolist() == [0, 0, 0, 0]


def test_ratings_that_differ_only_in_float64_still_make_a_pair():
    ratings = torch.tensor([1e16 + 2, 1e16], dtype=torch.float64)
    assert rating_losses(torch.zeros(2), ratings, torch.tensor([2])).item() == pytest.approx(math.log(2))


def test_objectives_have_the_mean_of_their_losses_plus_the_weighted_preference_for_the_combined_score():
    scores, sizes = random_scores(2).detach(), torch.tensor(SIZES)
    ratings_alone = head_losses(scores, groups(), OBJECTIVES, preference_weight=0.0, training_mode="contrast")
    each = [rating_losses(scores[:, head], RATINGS[:, head], sizes) for head in range(2)]
    torch.testing.assert_close(ratings_alone, (each[0] + each[1]) / 2)
    both = head_losses(scores, groups(), OBJECTIVES, preference_weight=0.7, training_mode="contrast")
    preference = group_losses(scores[:, 0] + 2 * scores[:, 1], sizes, training_mode="contrast")
    torch.testing.assert_close(both, ratings_alone + 0.7 * preference)


def test_a_group_that_nobody_rated_counts_nothing_but_its_preference():
    unrated = groups(torch.full((9, 2), NAN, dtype=torch.float64))
    scores = random_scores(2).detach()
    assert head_losses(scores, unrated, OBJECTIVES, preference_weight=0.0, training_mode="contrast").tolist() == [0] * 3
    assert (head_losses(scores, unrated, OBJECTIVES, preference_weight=1.0, training_mode="contrast") > 0).all()


# --- The bootstrap -----------------------------------------------------------------------------------------------


def test_a_bootstrap_draws_the_same_for_a_group_wherever_it_comes_up_and_something_else_for_another_seed():
    everywhere = bootstrap_weights(range(2000), 3, seed=1)
    assert torch.equal(bootstrap_weights([7, 1999, 0], 3, seed=1), everywhere[[7, 1999, 0]])
    assert not torch.equal(bootstrap_weights(range(2000), 3, seed=2), everywhere)
    assert bootstrap_weights([FILLER], 3, seed=1).shape == (1, 3)


def test_bootstrap_weights_are_poisson_of_mean_one_and_differ_between_heads():
    weights = bootstrap_weights(range(4000), 2, seed=0)
    for head in weights.unbind(1):
        assert head.mean().item() == pytest.approx(1, abs=0.05)
        assert head.var().item() == pytest.approx(1, abs=0.1)
        assert (head == 0).float().mean().item() == pytest.approx(math.exp(-1), abs=0.03)
    assert abs(torch.corrcoef(weights.T)[0, 1].item()) < 0.05


def test_a_head_counts_each_group_as_often_as_its_draw_says():
    scores, indices = random_scores(3).detach(), (5, 11, 2)
    heads, objective = ensemble_heads(3), {"training_mode": "bradley_terry"}
    found = head_losses(scores, groups(indices=indices), heads, bootstrap_seed=4, **objective)
    each = torch.stack([group_losses(head, torch.tensor(SIZES), **objective) for head in scores.unbind(1)], 1)
    torch.testing.assert_close(found, (each * bootstrap_weights(indices, 3, 4)).mean(1))
