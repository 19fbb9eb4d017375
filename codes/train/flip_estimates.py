"""Which preference labels are wrong, and how many, from margins of models that never saw them. Pure functions.

The margin m of a pair is the chosen answer's score minus the rejected one's. The model: the better answer of the two is
the chosen one with probability sigmoid(m / T), and a label is turned round with probability e whatever the pair, so

    P(chosen as labelled | m) = e + (1 - 2 e) sigmoid(m / T)

(a logistic with a lapse rate; Wichmann and Hill 2001). Far from 0 the sigmoid is 0 or 1: there e is the share of labels
that confident models contradict, and T is what their doubts near 0 are worth. Models that are confidently wrong, say
because a bias fools them, count as wrong labels. P(flip | m) follows by Bayes.

Where margins have little spread, e and T explain the same pairs, and the interval of e says so. ``confident_share``
counts instead of fitting, as confident learning does (Northcutt et al. 2021, arXiv 1911.00068): what the models
contradict where they are surest is wrong labels and confident errors together, so for labels that are wrong at random
it is no less than e. Both are of such labels alone: a systematic mistake (of every answer that begins so, say) is
learnt from the other questions, the margins agree with it, and neither figure shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from codes.common.intervals import Z_95, clustered_variance, clustered_wilson_interval

BINS = 256  # margins of like size are taken together: a likelihood of so many terms, whatever the pairs
RATES = np.linspace(0, 0.5, 201)
TEMPERATURES = np.geomspace(1 / 32, 32, 81)  # of margins whose median size is 1
NEARBY = np.geomspace(0.9, 1 / 0.9, 41)  # a step of TEMPERATURES either way
TWO_SIDED = Z_95**2  # the 95% quantile of chi-square(1): how much deviance the ends of an interval may have
RULE_OF_THREE = 2 * np.log(20)  # the deviance, where no label is wrong, of a rate that leaves none wrong 1 time in 20
HALVINGS = 24  # of an interval at most 0.5 wide


@dataclass(frozen=True)
class FlipFit:
    """noise_rate e and temperature T of maximum likelihood, with the 95% profile likelihood interval of e.

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


def fit_flips(margins: np.ndarray, clusters: Sequence[str]) -> FlipFit:
    """The noise rate of pairs from their held-out margins, of median size about 1; both [pairs].

    No rate where the models are not right more often than chance, for then it cannot be told from their own errors.
    """
    margins = np.asarray(margins, dtype=float)
    _, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    accuracy = pair_accuracy(margins, cluster_of)[1]
    if accuracy is None or accuracy[0] <= 0.5:
        return FlipFit(None, None, None, "the held-out models tell the answers apart no better than chance")
    centres, weights = _binned(margins)
    rate, temperature, _ = _best(centres, weights, RATES, TEMPERATURES)
    # Once more on a grid as wide as a step of the first, and much finer.
    rates = np.clip(rate + np.linspace(-1, 1, 41) * RATES[1], 0, 0.5)
    rate, temperature, _ = _best(centres, weights, rates, temperature * NEARBY)
    fit = FlipFit(rate, temperature, None)
    effect = _design_effect(fit.probabilities(margins), cluster_of)
    return replace(fit, interval=_rate_interval(centres, weights, rate, effect, len(margins) / (cluster_of.max() + 1)))


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
    """(margin of each bin, pairs in it): bins of equal numbers in order of the margin's size, split by its sign.

    One bin for both signs would have a margin near 0, where a contradicted pair says nothing.
    """
    bins, size = min(BINS, len(margins)), np.abs(margins)
    bin_of = np.empty(len(margins), int)
    bin_of[np.argsort(size, kind="stable")] = np.arange(len(margins)) * bins // len(margins)
    centres = np.bincount(bin_of, weights=size) / np.bincount(bin_of)
    above, below = (np.bincount(bin_of[chosen], minlength=bins) for chosen in (margins >= 0, margins < 0))
    return np.r_[centres[above > 0], -centres[below > 0]], np.r_[above[above > 0], below[below > 0]].astype(float)


def _log_likelihoods(margins: np.ndarray, rates: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """log P(label | m) at each point of the grid: [margins, rates x temperatures]."""
    right = _sigmoid(margins[:, None, None] / temperatures)
    given = rates[:, None] + (1 - 2 * rates[:, None]) * right
    return np.log(np.maximum(given, 1e-300)).reshape(len(margins), -1)


def _best(
    margins: np.ndarray, weights: np.ndarray, rates: np.ndarray, temperatures: np.ndarray
) -> tuple[float, float, float]:
    """The rate and temperature of the grid that explain the margins best, and their log likelihood."""
    found = weights @ _log_likelihoods(margins, rates, temperatures)
    rate, temperature = divmod(int(found.argmax()), len(temperatures))
    return float(rates[rate]), float(temperatures[temperature]), float(found.max())


def _design_effect(flips: np.ndarray, cluster_of: np.ndarray) -> float:
    """How many times more uncertain a rate is than that of as many independent pairs (Kish 1965), at least 1.

    flips: P(flip | m), [pairs]. Their distances from their mean are the pairs' scores of e up to a factor (Louis 1982).
    """
    independent = flips.var() / len(flips)
    together = clustered_variance(np.bincount(cluster_of, weights=flips), np.bincount(cluster_of))
    return max(1.0, float(together / independent)) if independent > 0 else 1.0


def _rate_interval(
    margins: np.ndarray, weights: np.ndarray, best: float, effect: float, pairs_a_cluster: float
) -> list[float]:
    """The rates whose deviance, at the temperature that suits each, is no more than chi-square(1) allows.

    margins and weights: [bins]. The deviance of clustered pairs is larger by their design effect (Rotnitzky and Jewell
    1990). At the boundary the quantile is too small: n sure pairs hold no wrong label with probability (1 - e)^n, so
    the deviance of e is -2 log of that, and 1 time in 20 it is 6, not 3.84. There nothing shows how alike the pairs of
    a cluster are, and as many as there are clusters count, as in clustered_wilson_interval. The deviance of a rate of 0
    is taken off this bound, so that it fades out as the pairs speak against 0.
    """

    def likelihood(rate: float) -> float:
        _, temperature, _ = _best(margins, weights, np.array([rate]), TEMPERATURES)
        return _best(margins, weights, np.array([rate]), temperature * NEARBY)[2]

    highest = likelihood(best)

    def deviance(rate: float) -> float:
        return 2 * (highest - likelihood(rate))

    def end(outside: float, allowed: float) -> float:
        if deviance(outside) <= allowed:
            return outside
        inside = best
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if deviance(middle) <= allowed else (inside, middle)
        return inside

    allowed = TWO_SIDED * effect
    return [end(0.0, allowed), end(0.5, max(allowed, RULE_OF_THREE * pairs_a_cluster - deviance(0.0)))]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
