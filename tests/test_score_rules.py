"""Scores of several members made one, against numpy."""

import numpy as np
import pytest
import torch

from codes.common.score_rules import RULES, combined, disagreement

SCORES = np.random.default_rng(0).normal(size=(7, 3, 4))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", SCORES.mean(-1)),
        ("minimum", SCORES.min(-1)),
        ("penalised", SCORES.mean(-1) - 0.5 * SCORES.var(-1)),
    ],
)
def test_each_rule_is_what_numpy_gives(rule, expected):
    np.testing.assert_allclose(combined(torch.tensor(SCORES), rule, 0.5), expected, rtol=1e-12)


def test_disagreement_is_the_standard_deviation_over_members():
    np.testing.assert_allclose(disagreement(torch.tensor(SCORES)), SCORES.std(-1), rtol=1e-12)


def test_members_that_agree_are_scored_as_each_of_them_by_every_rule():
    alike = torch.tensor([[1.5, 1.5], [-2.0, -2.0]])
    for rule in RULES:
        assert combined(alike, rule).tolist() == [1.5, -2.0]
    assert disagreement(alike).tolist() == [0, 0]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'median'"):
        combined(torch.zeros(1, 2), "median")
