"""Intervals of rates over clusters: against the cluster bootstrap, Wilson's own, and how often they hold the truth."""

import numpy as np
import pytest

from codes.common.intervals import clustered_wilson_interval, wilson_interval
from codes.evaluate.metrics import clustered_rate_intervals


def test_clusters_of_one_trial_give_wilson_s_interval():
    successes = np.r_[np.ones(40), np.zeros(60)]
    found = clustered_wilson_interval(successes, np.ones(100))
    assert found == pytest.approx(wilson_interval(40, 100), abs=2e-3)
    assert found[0] <= wilson_interval(40, 100)[0]


def test_it_agrees_with_the_interval_of_the_cluster_bootstrap():
    generator = np.random.default_rng(1)
    trials = generator.integers(1, 8, 150)
    successes = generator.binomial(trials, generator.beta(2, 3, 150))
    rows = np.repeat(np.arange(150), trials)
    right = np.concatenate([np.arange(n) < k for n, k in zip(trials, successes)])
    features = np.stack([np.ones(len(rows)), right], axis=1)
    (expected,) = clustered_rate_intervals(features, rows, lambda s: s[:, 1:] / s[:, :1], [len(rows)], seed=1)
    assert clustered_wilson_interval(successes, trials) == pytest.approx(expected, abs=4e-3)


def test_whole_clusters_that_agree_count_as_one_trial_each():
    successes = np.array([10.0, 0.0] * 20)
    found = clustered_wilson_interval(successes, np.full(40, 10.0))
    assert found == pytest.approx(wilson_interval(19.5, 39), abs=1e-9)


def test_at_nought_and_one_there_are_as_many_trials_as_clusters_and_one_cluster_tells_nothing():
    assert clustered_wilson_interval(np.zeros(5), np.full(5, 4.0)) == wilson_interval(0, 5)
    assert clustered_wilson_interval(np.full(5, 4.0), np.full(5, 4.0)) == wilson_interval(5, 5)
    assert clustered_wilson_interval(np.array([3.0, 0.0]), np.array([5.0, 0.0])) is None
    assert clustered_wilson_interval(np.zeros(0), np.zeros(0)) is None


def test_it_holds_the_true_rate_about_as_often_as_it_says():
    generator, held = np.random.default_rng(7), 0
    for _ in range(400):
        trials = generator.integers(1, 6, 80)
        successes = generator.binomial(trials, generator.beta(0.4, 1.6, 80))
        low, high = clustered_wilson_interval(successes, trials)
        held += low <= 0.2 <= high
    assert 0.92 <= held / 400 <= 0.98
