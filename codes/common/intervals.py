"""The interval that goes with every rate, in every stage."""

import math

import numpy as np

Z_95 = 1.959963984540054  # the 97.5% quantile of the normal distribution


def wilson_interval(successes: float, trials: float) -> list[float] | None:
    """95% score interval of a proportion as [low, high] (Wilson 1927); None without trials.

    Neither need be whole, where they are effective numbers of trials that are not independent.
    """
    if not trials:
        return None
    share, square = successes / trials, Z_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    # At 0 and at all successes the bound is exact; rounding would leave 1e-17 instead.
    return [0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half]


def clustered_wilson_interval(successes: np.ndarray, trials: np.ndarray) -> list[float] | None:
    """95% score interval of the pooled rate of clusters, such as the pairs of a question, which are not independent.

    Both [clusters]. The rate p is the clusters' sums divided; its variance v among clusters says that it is as
    uncertain as p (1 - p) / v independent trials (Kish 1965, the design effect), at most as many as there are; at 0 and
    1, where nothing varies, as many as there are clusters. None without trials and where there is but one cluster,
    which tells nothing of how clusters differ.
    """
    successes, trials = (np.asarray(values, dtype=float) for values in (successes, trials))
    total, clusters = trials.sum(), int((trials > 0).sum())
    if clusters < 2:
        return None
    rate = float(successes.sum() / total)
    variance = clustered_variance(successes, trials)
    effective = float(min(total, rate * (1 - rate) / variance)) if variance > 0 and 0 < rate < 1 else clusters
    return wilson_interval(rate * effective, effective)


def clustered_variance(sums: np.ndarray, trials: np.ndarray) -> float:
    """Variance of the pooled rate of at least two clusters, from their residuals; both [clusters].

    The ratio estimator's (Cochran 1977, section 6.4).
    """
    total, clusters = trials.sum(), int((trials > 0).sum())
    return float(((sums - sums.sum() / total * trials) ** 2).sum() / total**2 * clusters / (clusters - 1))
