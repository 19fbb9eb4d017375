"""How far P(A > B) = sigmoid((score_A - score_B) / T) can be taken at its word, and the T that fits. Pure functions.

A pair counts once, as its predicted winner: confidence is that answer's probability, from 0.5 up, and the outcome is
whether it is the better one. Counted as P(chosen > rejected), every outcome would be 1 and a model that is always
certain would look calibrated. A pair whose scores are equal has no predicted winner: confidence 0.5, outcome 0.5.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from codes.common.intervals import clustered_wilson_interval
from codes.evaluate.metrics import BOOTSTRAP_RESAMPLES, cluster_draws, clustered_bootstrap, midranks

SIMULATIONS = 1000
# Numbers in memory at a time where many samples of all pairs are looked at.
NUMBERS_AT_A_TIME = 2_000_000
# A fit to a resample of many pairs takes time.
RESAMPLED_PAIRS, FEWEST_RESAMPLES = 10_000_000, 500
ERRORS = ("expected_calibration_error", "maximum_calibration_error", "adaptive_calibration_error")
LOSSES = ("log_loss", "brier_score")


def preference_probability(difference: float | np.ndarray, temperature: float = 1.0) -> float | np.ndarray:
    """P(A > B) from score_A - score_B (Bradley and Terry 1952), without overflow."""
    # Half the tanh of half of it: the same number, and finite for any.
    return 0.5 * (1 + np.tanh(np.asarray(difference, dtype=float) / temperature / 2))


# --- The temperature ---------------------------------------------------------------------------------------------


def fit_temperatures(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Maximum-likelihood temperature in each sample, by LBFGS (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    margins [pairs]: the better answer's score minus the worse one's; weights [samples, pairs]: how often each pair
    stands in a sample. Returns [samples]. The likelihood has its maximum at a finite temperature where the mean margin
    is above 0 and some margin is below. Where none is below, it grows without bound as T falls: the result is 0. Where
    the mean is not above 0, the best is a coin flip: infinity, also for samples of equal scores alone.
    """
    margins, weights = np.asarray(margins, dtype=float), np.asarray(weights, dtype=float)
    spread = np.abs(margins).mean() or 1.0
    scaled = margins / spread
    wrong, total = weights @ (scaled < 0), weights @ scaled
    temperatures = np.where(total > 0, 0.0, np.inf)
    finite = (wrong > 0) & (total > 0)
    at_a_time = max(1, NUMBERS_AT_A_TIME // len(margins))
    places = np.flatnonzero(finite)
    for start in range(0, len(places), at_a_time):
        some = places[start : start + at_a_time]
        temperatures[some] = spread / _inverse_temperatures(scaled, weights[some])
    return temperatures


def _inverse_temperatures(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 / T of each sample: the loss is convex in it, and the samples' losses are independent of each other."""
    import torch

    x, w = torch.from_numpy(margins), torch.from_numpy(weights / weights.sum(1, keepdims=True))
    inverse = torch.ones(len(w), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [inverse], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        # A mean, so that one more sample leaves the step lengths as they are.
        value = (w * torch.nn.functional.softplus(-inverse[:, None] * x)).sum(1).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return inverse.detach().numpy()


def temperature_interval(
    margins: np.ndarray, clusters: Sequence[str], *, seed: int, resamples: int = BOOTSTRAP_RESAMPLES
) -> list[float] | None:
    """95% percentile interval of the temperature, resampling whole clusters [pairs] of pairs.

    Resamples without a finite temperature stand where they belong, at 0 or infinity. None where the upper bound would
    be infinite, and where there is but one cluster. Of many pairs, whose interval is narrow anyway, fewer resamples are
    taken.
    """
    if len(set(clusters)) == 1:
        return None
    found = [fit_temperatures(margins, part) for part in resampled_pairs(clusters, seed=seed, resamples=resamples)]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5], method="inverted_cdf")
    return [float(low), float(high)] if np.isfinite(high) else None


def resampled_pairs(
    clusters: Sequence[str], *, seed: int, resamples: int = BOOTSTRAP_RESAMPLES
) -> Iterator[np.ndarray]:
    """How often each pair stands in each resample of whole clusters [pairs], some resamples at a time: [some, pairs].

    For fits, of which each takes time: of many pairs there are fewer than ``resamples``.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    resamples = min(resamples, max(FEWEST_RESAMPLES, RESAMPLED_PAIRS // len(index)))
    at_a_time = max(1, NUMBERS_AT_A_TIME // len(index))
    for part in cluster_draws(index.max() + 1, seed, resamples, at_a_time):
        yield part[:, index]


def temperatures_without_fold(margins: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """For each fold the temperature that fits all the other pairs: [folds]."""
    return fit_temperatures(margins, fold_of[None, :] != np.arange(fold_of.max() + 1)[:, None])


# --- Calibration -------------------------------------------------------------------------------------------------


def calibration_figures(logits: np.ndarray, clusters: Sequence[str], bins: int, *, seed: int) -> dict:
    """Calibration errors, losses and the reliability diagram's bins.

    logits [pairs]: margins over the temperature. clusters [pairs]: their questions, by which the bins' intervals go.

    Errors: over ``bins`` bins of equal width from 0.5 to 1, the mean distance of confidence and accuracy weighted by
    pairs (expected) and the largest (maximum), and the mean over bins of equal mass (adaptive; Nguyen and O'Connor
    2015). A perfectly calibrated model has errors above 0 too, since a bin's accuracy is a sample's:
    ``if_calibrated`` has their means and 95% quantiles over simulated outcomes of independent pairs; where pairs of a
    question go together, as they mostly do, a calibrated model's errors are larger than that.
    """
    logits = np.asarray(logits, dtype=float)
    confidence = preference_probability(np.abs(logits))
    outcome = np.where(logits > 0, 1.0, np.where(logits < 0, 0.0, 0.5))
    members = _bin_members(confidence, bins)
    errors = dict(zip(ERRORS, _errors((outcome - confidence)[None], members)[:, 0]))
    simulated = _simulated_errors(confidence, logits == 0, members, seed)
    losses = pair_losses(logits).mean(0)
    return {
        **{name: float(value) for name, value in errors.items()},
        **{name: float(value) for name, value in zip(LOSSES, losses)},
        "if_calibrated": {
            name: {"mean": float(values.mean()), "quantile95": float(np.quantile(values, 0.95))}
            for name, values in zip(ERRORS, simulated)
        },
        "bins": _bins(confidence, outcome, members[0], np.unique(np.asarray(clusters), return_inverse=True)[1]),
    }


def pair_losses(logits: np.ndarray) -> np.ndarray:
    """[pairs, 2]: of each pair, -log P(better > worse) in nats and (1 - P)^2."""
    return np.stack([np.logaddexp(0, -logits), preference_probability(-logits) ** 2], axis=1)


def loss_intervals(
    before: np.ndarray, after: np.ndarray, clusters: Sequence[str], *, seed: int
) -> dict[str, dict[str, list[float] | None]]:
    """{before, after, difference: {loss: 95% interval}} of the mean losses of two sets of logits, both [pairs]."""
    features = np.concatenate([np.ones((len(before), 1)), pair_losses(before), pair_losses(after)], axis=1)

    def statistic(sums: np.ndarray) -> np.ndarray:
        means = sums[:, 1:] / sums[:, :1]
        return np.concatenate([means, means[:, 2:] - means[:, :2]], axis=1)

    parts = ("before", "after", "difference")
    found = clustered_bootstrap(features, clusters, statistic, seed=seed)
    return {name: dict(zip(LOSSES, found[2 * i : 2 * i + 2])) for i, name in enumerate(parts)}


def _bin_members(confidence: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each pair, [pairs], by equal width and by equal mass; equal confidences share a bin."""
    by_width = np.minimum((2 * (confidence - 0.5) * bins).astype(int), bins - 1)
    by_mass = (bins * (midranks(confidence) - 0.5) / len(confidence)).astype(int)
    return by_width, by_mass


def _errors(gaps: np.ndarray, members: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Expected, maximum and adaptive error, [3, samples], from outcome minus confidence, [samples, pairs]."""
    by_width, by_mass = (np.abs(gaps @ (part[:, None] == np.unique(part))) for part in members)
    pairs = gaps.shape[1]
    in_bin = np.unique(members[0], return_counts=True)[1]
    return np.stack([by_width.sum(1) / pairs, (by_width / in_bin).max(1), by_mass.sum(1) / pairs])


def _simulated_errors(
    confidence: np.ndarray, tied: np.ndarray, members: tuple[np.ndarray, np.ndarray], seed: int
) -> np.ndarray:
    """[3, SIMULATIONS]: the errors where each predicted winner is right with the probability it was given."""
    generator = np.random.default_rng(seed)
    at_a_time, found = max(1, NUMBERS_AT_A_TIME // len(confidence)), []
    for start in range(0, SIMULATIONS, at_a_time):
        draws = generator.random((min(at_a_time, SIMULATIONS - start), len(confidence)))
        found.append(_errors(np.where(tied, 0.5, draws < confidence) - confidence, members))
    return np.concatenate(found, axis=1)


def _bins(confidence: np.ndarray, outcome: np.ndarray, members: np.ndarray, cluster_of: np.ndarray) -> list[dict]:
    """The bins of equal width that hold pairs; no interval for one of a single cluster's."""
    found = []
    for place in np.unique(members):
        inside = members == place
        count = int(inside.sum())
        found.append(
            {
                "pairs": count,
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(outcome[inside].mean()),
                "ci95": clustered_wilson_interval(
                    np.bincount(cluster_of[inside], weights=outcome[inside]), np.bincount(cluster_of[inside])
                ),
            }
        )
    return found
