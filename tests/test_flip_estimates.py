"""Estimates of wrong labels: planted rates come back within their interval, and the planted flips stand first."""

import numpy as np
import pytest

from codes.train.flip_estimates import FlipFit, confident_share, fit_flips, pair_accuracy, scaled_by_fold


def simulated(rate, *, pairs=3000, spread=4.0, seed=0):
    """(margins of labelled pairs, which labels are wrong): differences of scores whose sigmoid is the truth."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(0, spread, pairs)
    first_is_better = generator.random(pairs) < 1 / (1 + np.exp(-differences))
    wrong = generator.random(pairs) < rate
    return np.where(first_is_better ^ wrong, differences, -differences), wrong


def fitted(margins, clusters=None):
    clusters = np.arange(len(margins)) if clusters is None else clusters
    return fit_flips(scaled_by_fold(margins, np.zeros(len(margins))), clusters)


def sure_pairs(right, wrong):
    """Margins that no temperature explains: the wrong ones are the largest, so that e alone is left to do it."""
    return np.repeat([1.0, 10.0, -10.0], (right // 2, right - right // 2, wrong))


def binomial_deviance(rate, wrong, pairs):
    share = wrong / pairs
    return 2 * (wrong * np.log(share / rate) + (pairs - wrong) * np.log((1 - share) / (1 - rate)))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.3])
def test_a_planted_rate_of_wrong_labels_lies_within_its_interval(rate):
    margins, _ = simulated(rate)
    fit = fitted(margins)
    assert fit.interval[0] - 0.003 <= rate <= fit.interval[1] + 0.003
    assert fit.noise_rate == pytest.approx(rate, abs=0.03)
    assert fit.temperature * np.median(np.abs(margins)) == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize(("rate", "pairs", "spread"), [(0.005, 320, 7.0), (0.1, 800, 4.0)])
def test_the_interval_holds_the_planted_rate_about_as_often_as_it_says(rate, pairs, spread):
    runs, held = 40, 0
    for seed in range(runs):
        low, high = fitted(simulated(rate, pairs=pairs, spread=spread, seed=seed)[0]).interval
        held += low <= rate <= high
    # Three standard errors below what 95% of so many runs are.
    assert held >= runs * 0.95 - 3 * np.sqrt(runs * 0.95 * 0.05)


def test_an_interval_ends_where_the_deviance_is_what_chi_square_allows():
    fit = fit_flips(sure_pairs(3993, 7), np.arange(4000))
    assert fit.noise_rate == pytest.approx(7 / 4000, abs=1e-4)
    assert [binomial_deviance(end, 7, 4000) for end in fit.interval] == pytest.approx([3.8415, 3.8415], abs=0.05)


def test_where_nothing_is_contradicted_the_interval_ends_at_the_rate_that_would_show_19_times_in_20():
    fit = fit_flips(np.ones(320), np.arange(320))
    assert fit.noise_rate == fit.interval[0] == 0
    assert fit.interval[1] == pytest.approx(1 - 0.05 ** (1 / 320), abs=1e-5)  # 0.0093: the rule of three
    # Three pairs of a question may all be wrong together: there are as many trials as questions.
    assert fit_flips(np.ones(960), np.repeat(np.arange(320), 3)).interval == pytest.approx(fit.interval, abs=1e-5)


def test_the_pairs_with_the_lowest_margins_are_those_whose_labels_were_turned_round():
    margins, wrong = simulated(0.05, spread=6.0, seed=3)
    order = np.argsort(margins)
    found = int(wrong.sum()) // 2
    assert wrong[order[:found]].mean() > 0.95
    assert wrong[order[:30]].all()


def test_probabilities_of_a_flip_are_those_that_come_true_and_add_up_to_the_rate():
    margins, wrong = simulated(0.1, pairs=20_000, seed=4)
    fit = fitted(margins)
    probabilities = fit.probabilities(scaled_by_fold(margins, np.zeros(len(margins))))
    assert probabilities.mean() == pytest.approx(fit.noise_rate, abs=2e-3)
    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1)):
        inside = (probabilities >= low) & (probabilities < high)
        assert wrong[inside].mean() == pytest.approx(probabilities[inside].mean(), abs=0.06)
    # By hand: e = 0.2, T = 2, m = 2 log 3, so that the label is right with 3/4.
    assert FlipFit(0.2, 2.0, None).probabilities(np.array([2 * np.log(3)]))[0] == pytest.approx(
        0.2 / 4 / (0.2 / 4 + 0.8 * 3 / 4)
    )


def test_a_probability_falls_with_the_margin_and_is_finite_however_large_that_is():
    found = FlipFit(0.1, 0.5, None).probabilities(np.array([-1e6, -1.0, 0.0, 1.0, 1e6]))
    assert (np.diff(found) < 0).all()
    assert found[0] == pytest.approx(1)
    assert found[2] == pytest.approx(0.1)
    assert found[-1] == 0


def test_models_that_cannot_tell_the_answers_apart_give_no_rate():
    margins = np.random.default_rng(5).normal(size=500)
    fit = fitted(margins)
    assert (fit.noise_rate, fit.interval) == (None, None)
    assert "no better than chance" in fit.problem
    assert fit.probabilities(margins) is None
    assert fitted(np.ones(6), clusters=np.zeros(6)).noise_rate is None


def test_pairs_of_one_question_do_not_count_as_independent():
    margins, _ = simulated(0.1, pairs=400)
    one, five = fitted(margins), fitted(np.repeat(margins, 5), np.repeat(np.arange(400), 5))
    assert five.noise_rate == pytest.approx(one.noise_rate, abs=0.01)
    assert five.interval == pytest.approx(one.interval, abs=0.005)


def test_every_fold_s_margins_are_measured_by_their_own_median():
    scaled = scaled_by_fold(np.array([1.0, -2.0, 3.0, 100.0, -300.0, 200.0, 0.0]), np.array([0, 0, 0, 1, 1, 1, 2]))
    assert scaled.tolist() == [0.5, -1, 1.5, 0.5, -1.5, 1, 0]


def test_what_is_contradicted_where_models_are_surest_bounds_the_rate_of_random_mistakes_from_above():
    for spread, above in ((1.5, 0.2), (8.0, 0.03)):
        margins, _ = simulated(0.1, spread=spread, seed=6)
        found = confident_share(margins, np.arange(len(margins)))
        assert found["pairs"] == len(margins) // 2
        assert 0.1 - 0.02 < found["share"] < 0.1 + above
    assert confident_share(np.repeat([1.0, -1.0], (56, 4)), np.arange(60))["share"] == 4 / 60
    assert confident_share(np.zeros(3), np.arange(3))["share"] is None


def test_accuracy_is_the_share_above_nought():
    rate, interval = pair_accuracy(np.array([1.0, 0.0, -1.0, 2.0]), np.arange(4))
    assert rate == 0.5
    assert interval[0] < 0.5 < interval[1]
