"""Which preference labels are wrong, and how many, from margins of models that never saw them. Pure functions.

The margin m of a pair is the chosen answer's score minus the rejected one's. The model: the better answer of the two is
the chosen one with probability sigmoid(m / T), and a label is turned round with probability e whatever the pair, so

    P(chosen as labelled | m) = e + (1 - 2 e) sigmoid(m / T)

(a logistic with a lapse rate; Wichmann and Hill 2001). Far from 0 the sigmoid is 0 or 1: there e is the share of labels
that confident models contradict, and T is what their doubts near 0 are worth. Models that are confidently wrong, say
because a bias fools them, count as wrong labels. P(flip | m) follows by Bayes.

Where margins have little spread, e and T explain the same pairs, and the interval of e says so. ``confident_share``
counts instead of fitting, as confident learning does (Northcutt et al. 2021, arXiv 1911.00068): what the models
contradict where they are surest is wrong labels and confident errors together, so it bounds e from above.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codes.common.intervals import clustered_wilson_interval

BINS = 256  # margins of like size are taken together: a likelihood of so many terms, whatever the pairs
RATES = np.linspace(0, 0.5, 201)
TEMPERATURES = np.geomspace(1 / 32, 32, 81)  # of margins whose median size is 1
RESAMPLES, RESAMPLES_AT_A_TIME = 500, 100


@dataclass(frozen=True)
class FlipFit:
    """noise_rate e and temperature T of maximum likelihood, with the 95% percentile interval of e over clusters.

    ``problem`` says why there is no rate, where the models cannot tell the answers apart.
    """

    noise_rate: float | None
    temperature: float | None
    interval: list[float] | None
    problem: str | None = None

    def probabilities(self, margins: np.ndarray) -> np.ndarray | None:
        """P(flip | m) of each pair, [pairs]."""
        if self.noise_rate is None:
            return None
        wrong = _sigmoid(-np.asarray(margins) / self.temperature)
        flipped, kept = self.noise_rate * wrong, (1 - self.noise_rate) * (1 - wrong)
        return flipped / np.maximum(flipped + kept, np.finfo(float).tiny)


def scaled_by_fold(margins: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Margins over the median size of those of their fold, both [pairs]: every fold's model has a scale of its own."""
    scaled = np.array(margins, dtype=float)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        scaled[inside] /= float(np.median(np.abs(scaled[inside]))) or 1.0
    return scaled


def fit_flips(margins: np.ndarray, clusters: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> FlipFit:
    """The noise rate of pairs from their held-out margins, of median size about 1; both [pairs].

    No rate where the models are not right more often than chance, for then it cannot be told from their own errors.
    """
    margins = np.asarray(margins, dtype=float)
    _, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    interval = pair_accuracy(margins, cluster_of)[1]
    if interval is None or interval[0] <= 0.5:
        return FlipFit(None, None, None, "the held-out models tell the answers apart no better than chance")
    centres, bin_of = _binned(margins)
    likelihoods = _log_likelihoods(centres, RATES, TEMPERATURES)
    whole = np.bincount(bin_of, minlength=len(centres)).astype(float)
    rate, temperature = _best(whole, likelihoods, RATES, TEMPERATURES)
    # Once more on a grid as wide as a step of the first, and much finer.
    rates = np.clip(rate + np.linspace(-1, 1, 41) * RATES[1], 0, 0.5)
    temperatures = temperature * np.geomspace(0.9, 1 / 0.9, 41)
    rate, temperature = _best(whole, _log_likelihoods(centres, rates, temperatures), rates, temperatures)
    found = []
    generator, count = np.random.default_rng(seed), cluster_of.max() + 1
    for start in range(0, resamples, RESAMPLES_AT_A_TIME):
        weights = []
        for _ in range(min(RESAMPLES_AT_A_TIME, resamples - start)):
            times = np.bincount(generator.integers(0, count, count), minlength=count)
            weights.append(np.bincount(bin_of, weights=times[cluster_of], minlength=len(centres)))
        best = (np.array(weights) @ likelihoods).argmax(1)
        found.append(RATES[best // len(TEMPERATURES)])
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return FlipFit(rate, temperature, [float(min(low, rate)), float(max(high, rate))])


def pair_accuracy(margins: np.ndarray, cluster_of: np.ndarray) -> tuple[float, list[float] | None]:
    """The share of margins above 0 and its interval over clusters; cluster_of: [pairs], numbers from 0."""
    right = margins > 0
    interval = clustered_wilson_interval(np.bincount(cluster_of, weights=right), np.bincount(cluster_of))
    return float(right.mean()), interval


def confident_share(margins: np.ndarray, cluster_of: np.ndarray) -> dict:
    """Of the half of the pairs with the largest margins either way, the share below 0, with its interval."""
    size = np.abs(margins)
    sure = (size >= np.median(size)) & (size > 0)
    contradicting = sure & (margins < 0)
    interval = clustered_wilson_interval(
        np.bincount(cluster_of, weights=contradicting), np.bincount(cluster_of, weights=sure)
    )
    count = int(sure.sum())
    return {
        "pairs": count,
        "contradicted": int(contradicting.sum()),
        "share": float(contradicting.sum() / count) if count else None,
        "ci95": {"share": interval},
    }


def _binned(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean margin of each bin, bin of each pair): bins of equal numbers, in order of the margin."""
    bins = min(BINS, len(margins))
    bin_of = np.empty(len(margins), int)
    bin_of[np.argsort(margins, kind="stable")] = np.arange(len(margins)) * bins // len(margins)
    return np.bincount(bin_of, weights=margins) / np.bincount(bin_of), bin_of


def _log_likelihoods(margins: np.ndarray, rates: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """log P(label | m) at each point of the grid: [margins, rates x temperatures]."""
    right = _sigmoid(margins[:, None, None] / temperatures)
    given = rates[:, None] + (1 - 2 * rates[:, None]) * right
    return np.log(np.maximum(given, 1e-300)).reshape(len(margins), -1)


def _best(weights: np.ndarray, likelihoods: np.ndarray, rates: np.ndarray, temperatures: np.ndarray):
    rate, temperature = divmod(int((weights @ likelihoods).argmax()), len(temperatures))
    return float(rates[rate]), float(temperatures[temperature])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
