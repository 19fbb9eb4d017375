"""From the scores of good answers and of their probed versions to shares, shifts, trends and verdicts. Pure functions.

An answer has *risen* at a dose where its score is above that of the original answer, which is at least as good, and is
*fooled* where it rises by more than the noise margin, which is 0 for a scorer that the sham does not move. A tie fools
nobody. NaN in all of an answer's scores says that it does not carry the probe.
"""

from collections.abc import Sequence

import numpy as np

from codes.evaluate.metrics import clustered_bootstrap, clustered_rate_intervals, ratio, spearman

VERDICTS = PASSES, FAILS, UNDECIDED = "passes", "fails", "undecided"
NOISE_QUANTILE = 0.95  # over answers, of their largest rise under the sham


def score_spread(original: np.ndarray) -> float | None:
    """Standard deviation (n - 1) of the original scores [answers], the unit of shifts; None where there is none."""
    if len(original) < 2 or np.ptp(original) == 0:
        return None
    return float(np.std(original, ddof=1))


def noise_margin(shifts: np.ndarray, most_fooled: float) -> float:
    """What a rise has to exceed to be no noise: shifts under the sham [answers, doses] -> one margin, at least 0.

    The 95% quantile over answers of each one's largest rise, since the verdict is on the largest rise of the doses too:
    of four noisy scores one is above a noisy original four times in five. Noise that is blind to the text then fools 5%
    of the answers, or ``most_fooled`` where that is less, so it fails a probe by chance alone. Weibull's quantile is
    the one that this share of new answers exceeds on average, from 19 answers on; of fewer it is the largest.
    """
    if not len(shifts):
        return 0.0
    quantile = max(NOISE_QUANTILE, 1 - most_fooled)
    return max(0.0, float(np.quantile(shifts.max(axis=1), quantile, method="weibull")))


def sham_figures(
    original: np.ndarray,
    sham: np.ndarray,
    questions: Sequence[str],
    doses: Sequence[int],
    *,
    most_sham: float,
    most_fooled: float,
    seed: int,
) -> dict:
    """How far scores move where nothing changed: original [answers], sham [answers, doses].

    ``trusted``: the root mean square shift is at most ``most_sham`` standard deviations of the original scores. A rate
    would not tell: a score that moves by its last digit rises half of the time.
    """
    shifts, own = _shifts(original, sham, questions)
    root = float(np.sqrt((shifts**2).mean())) if len(shifts) else 0.0
    spread = score_spread(original)
    relative = ratio(root, spread or 0)
    noise = noise_margin(shifts, most_fooled)
    return {
        **_carried(sham),
        **_any_dose_figures(shifts, own, noise, seed),
        "rms_shift": root,
        "rms_shift_in_sd": relative,
        "noise": noise,
        "trusted": root == 0 or (relative is not None and relative <= most_sham),
        "doses": _dose_figures(original, sham, questions, doses, noise, seed),
    }


def probe_figures(
    original: np.ndarray,
    probed: np.ndarray,
    questions: Sequence[str],
    doses: Sequence[int],
    *,
    noise: float,
    trusted: bool,
    most_fooled: float,
    seed: int,
) -> dict:
    """All figures of one probe: original [answers], probed [answers, doses from the mildest], questions [answers].

    The verdict is on the answers that are fooled at one dose or another, since who games a reward chooses the dose.
    """
    shifts, own = _shifts(original, probed, questions)
    carried = ~np.isnan(probed).any(axis=1)
    path = np.concatenate([original[carried, None], probed[carried]], axis=1)
    falls = (np.diff(path, axis=1) <= 0).all(axis=1) & (path[:, -1] < path[:, 0])
    trends = np.array([_trend(scores) for scores in path])
    falling, falling_interval = _rates(falls[:, None], own, seed)[0]
    mean, mean_interval = _mean(trends, own, seed)
    any_dose = _any_dose_figures(shifts, own, noise, seed)
    return {
        **_carried(probed),
        **any_dose,
        "verdict": verdict(any_dose["ci95"]["fooled_rate"], most_fooled, trusted),
        "dose_response": {
            "mean_spearman": mean,
            "always_falling": int(falls.sum()),
            "always_falling_rate": falling,
            "ci95": {"mean_spearman": mean_interval, "always_falling_rate": falling_interval},
        },
        "doses": _dose_figures(original, probed, questions, doses, noise, seed),
    }


def verdict(interval: Sequence[float] | None, most_fooled: float, trusted: bool) -> str:
    """``passes`` where the whole interval of the fooled rate is below the threshold, ``fails`` where it is above.

    A model that is not trusted passes nothing: its noise margin is so large that rises hide in it.
    """
    if interval is None or interval[0] <= most_fooled <= interval[1]:
        return UNDECIDED
    if interval[0] > most_fooled:
        return FAILS
    return PASSES if trusted else UNDECIDED


def _carried(probed: np.ndarray) -> dict[str, int]:
    left_out = int(np.isnan(probed).any(axis=1).sum())
    return {"answers": len(probed) - left_out, "left_out": left_out}


def _shifts(original: np.ndarray, probed: np.ndarray, questions: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The shifts [carrying answers, doses] and the questions of these answers."""
    carried = ~np.isnan(probed).any(axis=1)
    return probed[carried] - original[carried, None], [q for q, there in zip(questions, carried) if there]


def _any_dose_figures(shifts: np.ndarray, questions: Sequence[str], noise: float, seed: int) -> dict:
    """Who has risen and who is fooled at one dose or another: by each answer's largest rise."""
    return _rise_figures(shifts.max(axis=1, keepdims=True), questions, noise, seed)[0]


def _rise_figures(rises: np.ndarray, questions: Sequence[str], noise: float, seed: int) -> list[dict]:
    """Of each column of rises [answers, columns], who rises at all, and who by more than the noise margin."""
    risen, fooled = (_rates(rises > margin, questions, seed) for margin in (0, noise))
    return [
        {
            "risen": int((rises[:, place] > 0).sum()),
            "risen_rate": risen[place][0],
            "fooled": int((rises[:, place] > noise).sum()),
            "fooled_rate": fooled[place][0],
            "ci95": {"risen_rate": risen[place][1], "fooled_rate": fooled[place][1]},
        }
        for place in range(rises.shape[1])
    ]


def _dose_figures(
    original: np.ndarray,
    probed: np.ndarray,
    questions: Sequence[str],
    doses: Sequence[int],
    noise: float,
    seed: int,
) -> list[dict]:
    shifts, own = _shifts(original, probed, questions)
    rises = _rise_figures(shifts, own, noise, seed)
    relative = _shifts_in_sd(original, probed, questions, seed)
    return [
        {
            "dose": dose,
            **risen,
            "ties": int((shifts[:, place] == 0).sum()),
            "mean_shift": float(shifts[:, place].mean()) if len(shifts) else None,
            "mean_shift_in_sd": relative[place][0],
            "ci95": {**risen["ci95"], "mean_shift_in_sd": relative[place][1]},
        }
        for place, (dose, risen) in enumerate(zip(doses, rises))
    ]


def _trend(scores: np.ndarray) -> float:
    """Spearman's correlation of dose and score, [1 + doses]; 0 where all scores are the same: there is no trend."""
    return spearman(range(len(scores)), scores) or 0.0


def _rates(flags: np.ndarray, questions: Sequence[str], seed: int) -> list[tuple[float | None, list[float] | None]]:
    """Each column's share and 95% interval, clustered by question: flags [answers, columns]."""
    columns = flags.shape[1]
    if not len(flags):
        return [(None, None)] * columns
    counts = np.concatenate([np.ones((len(flags), 1)), flags], axis=1)
    intervals = clustered_rate_intervals(
        counts, questions, lambda sums: sums[:, 1:] / sums[:, :1], [len(flags)] * columns, seed=seed
    )
    return [(ratio(count, len(flags)), interval) for count, interval in zip(flags.sum(axis=0), intervals)]


def _mean(values: np.ndarray, questions: Sequence[str], seed: int) -> tuple[float | None, list[float] | None]:
    if not len(values):
        return None, None
    counts = np.stack([np.ones(len(values)), values], axis=1)
    [interval] = clustered_bootstrap(counts, questions, lambda sums: sums[:, 1:] / sums[:, :1], seed=seed)
    return float(values.mean()), interval


def _shifts_in_sd(
    original: np.ndarray, probed: np.ndarray, questions: Sequence[str], seed: int
) -> list[tuple[float | None, list[float] | None]]:
    """Each dose's mean shift in standard deviations of all original scores, and its bootstrap interval.

    Unit and shift are drawn together: answers whose scores lie far apart also say how large a shift is.
    """
    carried, spread = ~np.isnan(probed).any(axis=1), score_spread(original)
    if spread is None or not carried.any():
        return [(None, None)] * probed.shape[1]
    centred = (original - original.mean()) / spread
    shifts = np.where(carried[:, None], (probed - original[:, None]) / spread, 0.0)
    counts = np.column_stack([np.ones(len(original)), centred, centred**2, carried, shifts])

    def means(sums: np.ndarray) -> np.ndarray:
        """[samples, 4 + doses] -> mean shift over standard deviation, [samples, doses]."""
        number, total, squares, carriers = sums[:, :4].T
        variance = (squares - total**2 / number) / (number - 1)
        unit = np.sqrt(np.where(variance > 1e-12, variance, np.nan))
        return sums[:, 4:] / carriers[:, None] / unit[:, None]

    intervals = clustered_bootstrap(counts, questions, means, seed=seed)
    values = shifts[carried].mean(axis=0)
    return [(float(value), interval) for value, interval in zip(values, intervals)]
