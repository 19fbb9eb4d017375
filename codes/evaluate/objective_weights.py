"""Weights that preferences give objectives: P(chosen > rejected) = sigmoid(weights . score difference). Pure functions.

The Bradley-Terry model (1952) with a linear score: logistic regression of the differences without an intercept. Its
likelihood has one maximum, unless some weights put no chosen answer below the rejected one (Albert and Anderson 1984,
separation) or the objectives depend linearly on each other: then there is none, or no single one, and no weights are
given.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from codes.common.folds import held_out_folds
from codes.evaluate.calibration import NUMBERS_AT_A_TIME, pair_losses, preference_probability, resampled_pairs
from codes.evaluate.metrics import BOOTSTRAP_RESAMPLES, clustered_bootstrap, clustered_rate_intervals
from codes.evaluate.objective_scores import Preferences

MOST_STEPS = 100
# The fit has come to its maximum where a step changes no pair's logit by more.
SMALLEST_CHANGE = 1e-10
# Of the curvatures along all directions: beside the largest, what is smaller comes of rounding.
SMALLEST_CURVATURE = 1e-12
# Percentiles at 2.5% say nothing where more resamples than that have no value.
MOST_WITHOUT_WEIGHTS = 0.025
# Which of them are 0 is found by trying.
MOST_NON_NEGATIVE = 10


def fit_weights(
    differences: np.ndarray, counts: np.ndarray, *, ridge: float = 0.0, non_negative: bool = False
) -> np.ndarray:
    """Maximum-likelihood weights in each sample, [samples, objectives]; NaN where there is no single maximum.

    differences [pairs, objectives]: the chosen answer's scores minus the rejected one's; counts [samples, pairs]: how
    often each pair stands in a sample. ``ridge`` takes ridge / 2 * |s * weights|^2 off the mean log likelihood, where s
    is each objective's root mean square difference, so that units do not count; with one there always is a maximum.
    ``non_negative`` looks for it among weights of at least 0.
    """
    differences, counts = np.asarray(differences, dtype=float), np.asarray(counts, dtype=float)
    spread = np.sqrt((differences**2).mean(0))
    scaled = differences / np.where(spread > 0, spread, 1.0)
    fit = _non_negative_maximum if non_negative else _maximum
    at_a_time = max(1, NUMBERS_AT_A_TIME // len(differences))
    found = []
    for start in range(0, len(counts), at_a_time):
        part = counts[start : start + at_a_time]
        found.append(fit(scaled, part / part.sum(1, keepdims=True), ridge))
    return np.concatenate(found) / np.where(spread > 0, spread, 1.0)


def _maximum(scaled: np.ndarray, shares: np.ndarray, ridge: float) -> np.ndarray:
    """The maximum by Newton's method, [samples, objectives]; NaN where none is reached.

    A step is shortened to log(1 + c) / c of itself, where c is the largest change of a logit by it: so much can always
    be taken (Sun and Tran-Dinh 2019, on generalised self-concordant functions). Where weights separate the
    pairs, no c is below 1: (1 - wrong) * change < 1 for all pairs makes wrong * (1 - (1 - wrong) * change) positive
    numbers that the differences, weighted by them, add up to 0 with, and then nothing separates (Stiemke's lemma).
    """
    objectives = scaled.shape[1]
    squares = (scaled[:, :, None] * scaled[:, None, :]).reshape(len(scaled), -1)
    weights = np.zeros((len(shares), objectives))
    going_on = np.arange(len(shares))
    for _ in range(MOST_STEPS):
        share = shares[going_on]
        slope, wrong = _slope(scaled, share, weights[going_on], ridge)
        curvature = ((share * wrong * (1 - wrong)) @ squares).reshape(-1, objectives, objectives)
        curvature += ridge * np.eye(objectives)
        spectrum = np.linalg.eigvalsh(curvature)
        single = spectrum[:, 0] > SMALLEST_CURVATURE * spectrum[:, -1]
        weights[going_on[~single]] = np.nan
        going_on = going_on[single]
        step = np.linalg.solve(curvature[single], slope[single][:, :, None])[:, :, 0]
        change = np.abs(step @ scaled.T).max(1, initial=0.0)
        shortened = np.divide(np.log1p(change), change, out=np.ones_like(change), where=change > 0)
        weights[going_on] += shortened[:, None] * step
        going_on = going_on[change > SMALLEST_CHANGE]
        if not len(going_on):
            return weights
    weights[going_on] = np.nan
    return weights


def _slope(scaled: np.ndarray, shares: np.ndarray, weights: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """(slope of the mean log likelihood [samples, objectives], P(rejected > chosen) [samples, pairs])."""
    wrong = preference_probability(-weights @ scaled.T)
    return (shares * wrong) @ scaled - ridge * weights, wrong


def _non_negative_maximum(scaled: np.ndarray, shares: np.ndarray, ridge: float) -> np.ndarray:
    """The maximum among weights of at least 0: the one where no slope of a weight that is 0 leads up, exactly.

    The others are at a maximum of their own, so it is looked for among these, from all objectives down to none.
    """
    objectives = scaled.shape[1]
    found = np.full((len(shares), objectives), np.nan)
    unsettled = np.arange(len(shares))
    for size in range(objectives, -1, -1):
        for part in map(list, combinations(range(objectives), size)):
            weights = np.zeros((len(unsettled), objectives))
            weights[:, part] = _maximum(scaled[:, part], shares[unsettled], ridge) if part else 0.0
            slope, _ = _slope(scaled, shares[unsettled], weights, ridge)
            slope[:, part] = 0.0
            settled = (weights >= 0).all(1) & (slope <= SMALLEST_CHANGE).all(1)
            found[unsettled[settled]] = weights[settled]
            unsettled = unsettled[~settled]
            if not len(unsettled):
                return found
    return found


# --- Figures of a fit ---------------------------------------------------------------------------------------------


class WithoutMaximum(ValueError):
    """Preferences to which no weights, or no single ones, fit best."""


def fit(preferences: Preferences, objectives: Sequence[str], *, folds: int, seed: int, how: Mapping) -> dict:
    """The weights that fit the preferences, and how far they can be believed; how: ridge and non_negative.

    Raises WithoutMaximum where the likelihood of all of them, or of those without a fold, has no single maximum.
    """
    differences, questions = preferences.differences, preferences.questions
    if (number := len(set(questions))) < folds:
        raise WithoutMaximum(f"{number} questions make no {folds} folds; more pairs, or fewer --folds, are needed")
    weights = fit_weights(differences, np.ones((1, len(differences))), **how)[0]
    logits = held_out_logits(differences, questions, folds, seed=seed, **how)
    for found, which in ((weights, ""), (logits, " without one of the folds")):
        if not np.isfinite(found).all():
            raise WithoutMaximum(f"the {len(differences)} pairs{which}: {_reason(differences, objectives)}")
    intervals, without = weight_intervals(differences, questions, seed=seed, **how)
    return {
        "weights": dict(zip(objectives, weights.tolist())),
        "ci95": {"weights": dict(zip(objectives, intervals))},
        "resamples_without_weights": without,
        "counts": {
            "pairs": len(differences),
            "questions": number,
            "level_pairs": int((differences == 0).all(1).sum()),
        },
        "held_out": {
            "folds": folds,
            **held_out_figures(differences, questions, logits, objectives, seed=seed),
        },
        **how,
    }


def _reason(differences: np.ndarray, objectives: Sequence[str]) -> str:
    """Why there is no single maximum, as far as it is plain to see."""
    for name, column in zip(objectives, differences.T):
        if not column.any():
            return f"{name!r} is the same for both answers of every pair, so nothing tells its weight"
    return (
        "their likelihood has no single maximum: some weights put no chosen answer below the rejected one, or the "
        "objectives depend linearly on each other; more pairs, or --ridge 0.01, are needed"
    )


def weight_intervals(
    differences: np.ndarray,
    clusters: Sequence[str],
    *,
    seed: int,
    resamples: int = BOOTSTRAP_RESAMPLES,
    ridge: float = 0.0,
    non_negative: bool = False,
) -> tuple[list[list[float] | None], float]:
    """(95% percentile interval of each weight, share of resamples without weights), resampling whole clusters [pairs].

    None where more than 2.5% of the resamples have no weights, and where there is but one cluster.
    """
    objectives = differences.shape[1]
    if len(set(clusters)) == 1:
        return [None] * objectives, 0.0
    draws = resampled_pairs(clusters, seed=seed, resamples=resamples)
    found = np.concatenate([fit_weights(differences, part, ridge=ridge, non_negative=non_negative) for part in draws])
    defined = found[np.isfinite(found).all(1)]
    without = 1 - len(defined) / len(found)
    if without > MOST_WITHOUT_WEIGHTS:
        return [None] * objectives, without
    return np.percentile(defined, [2.5, 97.5], axis=0).T.tolist(), without


def held_out_figures(
    differences: np.ndarray, questions: Sequence[str], logits: np.ndarray, objectives: Sequence[str], *, seed: int
) -> dict:
    """Accuracy and log loss (nats) of logits [pairs], and the accuracy of every objective alone, with intervals.

    Correct means that the chosen answer has the larger sum, or score; ties are wrong and counted.
    """
    right = np.concatenate([logits[:, None], differences], axis=1) > 0
    features = np.concatenate([np.ones((len(right), 1)), right], axis=1)
    losses = np.stack([features[:, 0], pair_losses(logits)[:, 0]], axis=1)

    def means(sums: np.ndarray) -> np.ndarray:
        return sums[:, 1:] / sums[:, :1]

    shares = right.mean(0).tolist()
    intervals = clustered_rate_intervals(features, questions, means, [len(right)] * right.shape[1], seed=seed)
    return {
        "accuracy": shares[0],
        "ties": int((logits == 0).sum()),
        "log_loss": float(losses[:, 1].mean()),
        "accuracy_alone": dict(zip(objectives, shares[1:])),
        "ci95": {
            "accuracy": intervals[0],
            "log_loss": clustered_bootstrap(losses, questions, means, seed=seed)[0],
            "accuracy_alone": dict(zip(objectives, intervals[1:])),
        },
    }


def held_out_logits(
    differences: np.ndarray, questions: Sequence[str], folds: int, *, seed: int, ridge: float, non_negative: bool
) -> np.ndarray:
    """Each pair's logit, [pairs], by the weights that fit the folds it is not in; NaN where these have none."""
    fold_of = held_out_folds(questions, folds, seed)
    others = fold_of[None, :] != np.arange(fold_of.max() + 1)[:, None]
    weights = fit_weights(differences, others, ridge=ridge, non_negative=non_negative)
    return (differences * weights[fold_of]).sum(1)
