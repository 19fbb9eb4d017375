"""Weights from preferences: scipy's and statsmodels' maxima, simulated weights, and likelihoods without a maximum."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import linprog, minimize

from codes.evaluate.objective_scores import Preferences
from codes.evaluate.objective_weights import WithoutMaximum, fit, fit_weights, held_out_logits, weight_intervals

PLAIN = {"ridge": 0.0, "non_negative": False}


def simulated(pairs, weights, seed=0, scale=1.0):
    """Differences of pairs whose P(chosen > rejected) = sigmoid(weights . difference) is true."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(len(weights)) + 0.4 * generator.normal(size=(len(weights), len(weights)))
    differences = generator.normal(size=(pairs, len(weights))) @ mixing * scale
    right = generator.random(pairs) < 1 / (1 + np.exp(-differences @ np.array(weights)))
    return np.where(right[:, None], differences, -differences)


def fitted(differences, **how):
    return fit_weights(differences, np.ones((1, len(differences))), **how)[0]


def has_maximum(differences):
    """Whether no weights separate, by linear programming: Stiemke's lemma, and full rank."""
    pairs, objectives = differences.shape
    found = linprog(np.zeros(pairs), A_eq=differences.T, b_eq=np.zeros(objectives), bounds=[(1, None)] * pairs)
    return found.status == 0 and np.linalg.matrix_rank(differences) == objectives


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_the_weights_are_those_of_logistic_regression_without_an_intercept(seed, scale):
    generator = np.random.default_rng(seed)
    differences = simulated(200, generator.normal(size=3) / scale, seed, scale)
    sides = generator.integers(0, 2, len(differences))
    expected = sm.Logit(sides, np.where(sides[:, None] == 1, differences, -differences)).fit(disp=0, tol=1e-12).params
    assert fitted(differences) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 3.0])
@pytest.mark.parametrize("non_negative", [False, True])
def test_ridge_and_bounds_give_the_maximum_that_scipy_finds(ridge, non_negative):
    differences = simulated(150, [0.5, -0.8, 0.1, 1.2], 3)
    counts = np.random.default_rng(4).integers(0, 4, (5, 150)).astype(float)
    spread = np.sqrt((differences**2).mean(0))
    found = fit_weights(differences, counts, ridge=ridge, non_negative=non_negative)
    for weights, count in zip(found, counts):

        def loss(w, count=count):
            return count @ np.logaddexp(0, -differences @ w) / count.sum() + ridge / 2 * ((w * spread) ** 2).sum()

        bounds = [(0 if non_negative else None, None)] * 4
        best = minimize(loss, np.ones(4), bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
        assert weights == pytest.approx(best.x, abs=1e-4)
        assert loss(weights) <= best.fun + 1e-12
    assert (found[:, 1] == 0).all() == non_negative


def test_a_sample_s_weights_do_not_depend_on_its_neighbours():
    differences = simulated(60, [1.0, -0.5], 1)
    counts = np.random.default_rng(2).integers(0, 3, (30, 60)).astype(float)
    alone = [fit_weights(differences, count[None])[0] for count in counts]
    assert fit_weights(differences, counts) == pytest.approx(np.array(alone), rel=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_weights_are_given_exactly_where_the_likelihood_has_a_single_maximum(seed):
    generator = np.random.default_rng(seed)
    # So few pairs of whole numbers that about half of these sets are separable, wholly or but for level pairs.
    differences = generator.integers(-2, 4, (generator.integers(3, 9), 2)).astype(float)
    assert np.isfinite(fitted(differences)).all() == has_maximum(differences)
    assert np.isfinite(fitted(differences, ridge=0.01)).all()


def test_both_kinds_of_sets_are_among_these():
    generators = (np.random.default_rng(seed) for seed in range(60))
    sets = [generator.integers(-2, 4, (generator.integers(3, 9), 2)).astype(float) for generator in generators]
    assert 15 < sum(map(has_maximum, sets)) < 45


def test_without_a_single_maximum_there_are_no_weights():
    assert np.isnan(fitted(np.array([[1.0, 0], [2, 1], [0, 1]]))).all()
    # Only the second objective separates, and only some pairs.
    assert np.isnan(fitted(np.array([[1.0, 0], [-1, 0], [0, 1]]))).all()
    # The second objective is twice the first.
    assert np.isnan(fitted(np.array([[1.0, 2], [-1, -2], [2, 4]]))).all()
    assert np.isnan(fitted(np.array([[1.0, 0], [-1, 0], [2, 0]]))).all()


def test_one_wrong_pair_of_many_has_a_maximum_far_out():
    # 999 right and 1 wrong by the same difference: sigmoid(w) = 0.999.
    weights = fitted(np.array([[1.0]] * 999 + [[-1.0]]))
    assert weights == pytest.approx([np.log(999)], rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_of_all_sets_of_weights_above_zero_the_right_one_is_found(seed):
    generator = np.random.default_rng(seed)
    differences = simulated(80, generator.normal(size=4), seed)
    best = minimize(
        lambda w: np.logaddexp(0, -differences @ w).mean(),
        np.ones(4),
        bounds=[(0, None)] * 4,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    assert fitted(differences, non_negative=True) == pytest.approx(best.x, abs=1e-4)


@pytest.mark.parametrize(
    "differences",
    [
        [[-13.3, 0.2], [-1.8, -0.1], [0.5, 0.0], [0.0, -2.9]],
        [[-26.4, 0.3], [-0.2, -0.3], [0.0, 0.1], [1.8, -4.5], [-1.0, -1.2]],
        [[5.7, 0.0], [-0.1, 0.0], [1.0, 0.2], [1.8, 0.1], [1.4, 6.0], [3.5, -0.4], [2.1, 0.2]],
        [[-0.3, 1.2], [0.1, 0.2], [-0.1, 0.2], [-6.9, 0.0], [0.1, -0.1], [9.3, 6.7]],
    ],
)
def test_a_maximum_is_reached_where_whole_newton_steps_from_zero_would_leave_it_for_good(differences):
    differences = np.array(differences)
    weights = fitted(differences)
    best = minimize(lambda w: np.logaddexp(0, -differences @ w).mean(), weights, options={"gtol": 1e-9})
    assert weights == pytest.approx(best.x, rel=1e-4)
    assert (1 / (1 + np.exp(differences @ weights))) @ differences == pytest.approx(np.zeros(2), abs=1e-9)


def test_non_negative_weights_are_zero_where_the_best_ones_are_below():
    differences = simulated(300, [1.0, -0.6], 5)
    assert fitted(differences)[1] < -0.3
    weights = fitted(differences, non_negative=True)
    assert weights.tolist() == [pytest.approx(fitted(differences[:, :1])[0], rel=1e-6), 0]
    # Preferences against every objective leave none.
    assert fitted(-np.abs(simulated(50, [1.0, 1.0], 6)), non_negative=True).tolist() == [0, 0]


def test_simulated_weights_are_within_their_intervals_as_often_as_these_say():
    truth, inside = [1.0, 0.4], []
    for seed in range(60):
        differences = simulated(150, truth, seed)
        names = [str(i) for i in range(150)]
        intervals, without = weight_intervals(differences, names, seed=1, resamples=200)
        assert without == 0
        inside += [low < weight < high for weight, (low, high) in zip(truth, intervals)]
    assert 0.86 < np.mean(inside) < 0.99


def test_intervals_are_wider_where_pairs_of_a_question_agree_and_absent_for_one_question():
    differences = np.repeat(simulated(80, [1.0, 0.5], 1), 4, axis=0)
    by_pair, _ = weight_intervals(differences, [str(i) for i in range(320)], seed=1, resamples=300)
    by_question, _ = weight_intervals(differences, [str(i // 4) for i in range(320)], seed=1, resamples=300)
    assert np.ptp(by_question[0]) > 1.6 * np.ptp(by_pair[0])
    assert weight_intervals(differences, ["one"] * 320, seed=1) == ([None, None], 0)


def test_there_is_no_interval_where_too_many_resamples_have_no_weights():
    differences = np.array([[1.0]] * 9 + [[-1.0]])
    intervals, without = weight_intervals(differences, list("abcdefghij"), seed=1)
    assert intervals == [None]
    assert without == pytest.approx(0.9**10, abs=0.03)


def test_held_out_logits_do_not_know_their_own_question():
    differences, questions = simulated(40, [1.0, 0.5], 2), [str(i // 2) for i in range(40)]
    logits = held_out_logits(differences, questions, 5, seed=3, **PLAIN)
    changed = differences.copy()
    changed[:2] *= -1
    assert held_out_logits(changed, questions, 5, seed=3, **PLAIN)[:2] == pytest.approx(-logits[:2])


def test_a_fit_s_figures_count_pairs_ties_and_each_objective_alone():
    differences = np.concatenate([simulated(100, [1.5, 0.0], 1), np.zeros((2, 2))])
    preferences = Preferences(differences, [str(i // 2) for i in range(102)])
    found = fit(preferences, ["a", "b"], folds=5, seed=1, how=PLAIN)
    assert found["counts"] == {"pairs": 102, "questions": 51, "level_pairs": 2}
    held_out = found["held_out"]
    assert held_out["ties"] == 2
    assert held_out["accuracy_alone"]["a"] == (differences[:, 0] > 0).mean()
    assert held_out["accuracy"] == pytest.approx(held_out["accuracy_alone"]["a"], abs=0.05)
    low, high = held_out["ci95"]["accuracy"]
    assert low < held_out["accuracy"] < high
    assert held_out["log_loss"] < np.log(2)
    low, high = found["ci95"]["weights"]["b"]
    assert low < 0 < high


def test_preferences_without_a_maximum_and_too_few_questions_are_refused():
    apart = Preferences(np.array([[1.0, 0], [2, 1], [0, 1]]), ["a", "b", "c"])
    with pytest.raises(WithoutMaximum, match="the 3 pairs: their likelihood has no single maximum: some weights"):
        fit(apart, ["a", "b"], folds=2, seed=1, how=PLAIN)
    assert fit(apart, ["a", "b"], folds=2, seed=1, how=PLAIN | {"ridge": 0.1})["weights"]["b"] > 0
    with pytest.raises(WithoutMaximum, match="3 questions make no 4 folds"):
        fit(apart, ["a", "b"], folds=4, seed=1, how=PLAIN)
    level = Preferences(np.array([[1.0, 0], [-2, 0], [1, 0]]), ["a", "b", "c"])
    with pytest.raises(WithoutMaximum, match="'b' is the same for both answers of every pair"):
        fit(level, ["a", "b"], folds=2, seed=1, how=PLAIN)
