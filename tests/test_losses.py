"""The training objectives: known answers, exact equivalences, and what they refuse."""

import math

import pytest
import torch

from codes.train.losses import (
    bradley_terry_loss,
    centering_penalty,
    contrastive_loss,
    group_losses,
    pairwise_margin_loss,
)


def test_contrastive_loss_of_equal_scores_is_the_log_of_the_group_size():
    loss = contrastive_loss(torch.zeros(7), torch.tensor([2, 5]), temperature=0.5)
    assert loss.item() == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-6)


def test_contrastive_loss_is_cross_entropy_over_scores_divided_by_the_temperature():
    scores = torch.tensor([1.0, 0.0, -1.0, 2.0, 3.0])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0) + math.exp(-2)))
    second = -math.log(math.exp(4) / (math.exp(4) + math.exp(6)))
    loss = contrastive_loss(scores, torch.tensor([3, 2]), temperature=0.5)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_contrastive_loss_of_one_rejected_answer_is_bradley_terry_at_temperature_one():
    scores = torch.tensor([0.3, -0.2, 1.0, 4.0])
    contrast = contrastive_loss(scores, torch.tensor([2, 2]), temperature=1.0)
    assert torch.allclose(contrast, bradley_terry_loss(scores[::2], scores[1::2]), atol=1e-7)


def test_every_rejected_answer_receives_a_gradient_whatever_the_group_sizes():
    scores = torch.randn(9, requires_grad=True)
    contrastive_loss(scores, torch.tensor([4, 2, 3]), temperature=0.5).backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[[0, 4, 6]] < 0).all()
    assert (scores.grad[[1, 2, 3, 5, 7, 8]] > 0).all()


def test_a_group_without_rejected_answers_has_no_loss():
    assert contrastive_loss(torch.tensor([3.0]), torch.tensor([1]), temperature=0.5).item() == 0


@pytest.mark.parametrize("sizes", [[2, 2], [5, 1], [3, 0]])
def test_group_sizes_that_do_not_divide_the_scores_are_refused(sizes):
    with pytest.raises(ValueError, match="do not divide"):
        contrastive_loss(torch.zeros(3), torch.tensor(sizes), temperature=0.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        contrastive_loss(torch.zeros(2), torch.tensor([2]), temperature=temperature)


def test_pairwise_margin_loss_has_known_values():
    chosen, rejected = torch.tensor([3.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 2.0])
    assert pairwise_margin_loss(chosen, rejected, margin=1.0).item() == pytest.approx((0 + 0.5 + 3) / 3)


def test_bradley_terry_loss_has_known_values_and_stays_finite_far_out():
    assert bradley_terry_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == pytest.approx(math.log(2))
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == pytest.approx(1000)


def test_chosen_and_rejected_of_different_shapes_are_refused_rather_than_broadcast():
    with pytest.raises(ValueError, match="do not pair"):
        bradley_terry_loss(torch.zeros(1), torch.zeros(3))


def test_losses_of_bfloat16_scores_are_computed_in_float32():
    scores = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    assert contrastive_loss(scores, torch.tensor([2]), temperature=0.5).dtype == torch.float32
    assert bradley_terry_loss(scores[:1], scores[1:]).dtype == torch.float32


SCORES, SIZES = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0]), torch.tensor([3, 2])


def test_pairs_first_uses_the_first_rejected_answer_and_pairs_all_averages_within_the_group():
    first = group_losses(SCORES, SIZES, training_mode="pairwise", pairs="first", margin=1.0)
    every = group_losses(SCORES, SIZES, training_mode="pairwise", pairs="all", margin=1.0)
    assert first.tolist() == [0.5, 4.0]
    assert every.tolist() == [(0.5 + 2.0) / 2, 4.0]


@pytest.mark.parametrize("mode", ["contrast", "pairwise", "bradley_terry"])
def test_the_loss_of_a_group_does_not_depend_on_its_neighbours(mode):
    together = group_losses(SCORES, SIZES, training_mode=mode, pairs="all")
    alone = [
        group_losses(row, torch.tensor([len(row)]), training_mode=mode, pairs="all") for row in SCORES.split([3, 2])
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_centring_penalty_is_the_squared_mean_of_the_group_and_is_weighted():
    assert centering_penalty(torch.tensor([1.0, 3.0, -2.0, 2.0]), torch.tensor([2, 2])).tolist() == [4.0, 0.0]
    plain = group_losses(SCORES, SIZES, training_mode="contrast")
    centred = group_losses(SCORES, SIZES, training_mode="contrast", center_rewards_coefficient=0.1)
    assert torch.allclose(centred - plain, 0.1 * centering_penalty(SCORES, SIZES))


def test_an_unknown_training_mode_is_refused():
    with pytest.raises(ValueError, match="unknown training mode"):
        group_losses(SCORES, SIZES, training_mode="dpo")
