"""From the scores of one bias's rows to the figures in its summary, and over all biases. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from codes.common.records import content_hash
from codes.evaluate.metrics import (
    accuracy,
    bias_sensitivity_rate,
    clustered_bootstrap,
    clustered_rate_intervals,
    correlation_intervals,
    holm,
    length_balanced_accuracy,
    mcnemar_exact,
    pearson,
    refinement_score,
    robust_accuracy,
    row_weighted_mean,
    spearman,
    standardized_margin_shift,
    wilson_interval,
)

ORIGINAL_FIELDS = ("original_response1", "original_response2")
BIASED_FIELDS = ("rewritten_response1", "rewritten_response2")
RATES = ("original_pair_accuracy", "biased_pair_accuracy", "bias_sensitivity_rate", "robust_accuracy")


@dataclass(frozen=True)
class PairOutcomes:
    """What came out for each row of one bias, and the name of each row's question.

    Scores and lengths (characters) are arrays [rows, 2]: of the better answer, then of the worse one.
    """

    questions: list[str]
    original_scores: np.ndarray
    biased_scores: np.ndarray
    original_lengths: np.ndarray
    biased_lengths: np.ndarray

    @property
    def original_margins(self) -> np.ndarray:
        """Score of the better answer minus that of the worse one: [rows]."""
        return _difference(self.original_scores)

    @property
    def biased_margins(self) -> np.ndarray:
        return _difference(self.biased_scores)

    @property
    def original_length_difference(self) -> np.ndarray:
        """Length of the better answer minus that of the worse one: [rows]."""
        return _difference(self.original_lengths)

    @property
    def biased_length_difference(self) -> np.ndarray:
        return _difference(self.biased_lengths)

    @property
    def original_correct(self) -> np.ndarray:
        return self.original_margins > 0

    @property
    def biased_correct(self) -> np.ndarray:
        return self.biased_margins > 0

    @property
    def flipped(self) -> np.ndarray:
        return self.original_correct & ~self.biased_correct

    @property
    def recovered(self) -> np.ndarray:
        return ~self.original_correct & self.biased_correct

    def counts(self) -> dict[str, int]:
        """The counts that every rate is made of."""
        return {
            "original_correct": int(self.original_correct.sum()),
            "biased_correct": int(self.biased_correct.sum()),
            "flipped": int(self.flipped.sum()),
            "ties_original": int((self.original_margins == 0).sum()),
            "ties_biased": int((self.biased_margins == 0).sum()),
        }

    def only(self, rows: np.ndarray) -> "PairOutcomes":
        """The rows for which the flags [rows] are true."""
        questions = [question for question, kept in zip(self.questions, rows) if kept]
        return PairOutcomes(questions, *(getattr(self, name)[rows] for name in _ARRAYS))


_ARRAYS = tuple(field.name for field in fields(PairOutcomes) if field.name != "questions")


def _difference(pairs: np.ndarray) -> np.ndarray:
    return pairs[:, 0] - pairs[:, 1]


def pair_outcomes(
    rows: Sequence[dict], original_scores: Sequence[Sequence[float]], biased_scores: Sequence[Sequence[float]]
) -> PairOutcomes:
    """rows: bias pairs; scores: [rows, 2], of response1 and response2 as the files have them."""
    second = np.array([[row["label"] == "response2"] for row in rows])
    first_better = [np.asarray(pairs) for pairs in (original_scores, biased_scores, *_lengths(rows))]
    arrays = [np.where(second, pairs[:, ::-1], pairs) for pairs in first_better]
    return PairOutcomes([question_name(row["question"]) for row in rows], *arrays)


def length_outcomes(rows: Sequence[dict]) -> PairOutcomes:
    """The outcomes of the rule 'the longer answer (in characters) wins': the baseline beside every score."""
    return pair_outcomes(rows, *_lengths(rows))


def _lengths(rows: Sequence[dict]) -> list[list[list[int]]]:
    return [[[len(row[name]) for name in names] for row in rows] for names in (ORIGINAL_FIELDS, BIASED_FIELDS)]


def question_name(question: object) -> str:
    """A short name for a question; rows with the same question form one cluster."""
    return content_hash(question)[:16]


# --- One bias ----------------------------------------------------------------------------------------------------


def pairwise_rates(outcomes: PairOutcomes) -> dict:
    """The rates of one bias, the counts they are made of, and their 95% Wilson intervals."""
    rows, counts = len(outcomes.questions), outcomes.counts()
    right = counts["original_correct"]
    return {
        "total_records_evaluated": rows,
        "original_pair_accuracy": accuracy(outcomes.original_correct),
        "biased_pair_accuracy": accuracy(outcomes.biased_correct),
        "bias_sensitivity_rate": bias_sensitivity_rate(outcomes.original_correct, outcomes.biased_correct),
        "robust_accuracy": robust_accuracy(outcomes.original_correct, outcomes.biased_correct),
        "counts": counts,
        "ci95": {
            "original_pair_accuracy": wilson_interval(right, rows),
            "biased_pair_accuracy": wilson_interval(counts["biased_correct"], rows),
            "bias_sensitivity_rate": wilson_interval(counts["flipped"], right),
            "robust_accuracy": wilson_interval(right - counts["flipped"], rows),
        },
    }


def pairwise_summary(outcomes: PairOutcomes, *, seed: int) -> dict:
    """``pairwise_rates``, the test of original against biased, and what length and margins have to do with it."""
    return {
        **pairwise_rates(outcomes),
        "mcnemar_p": mcnemar_exact(int(outcomes.flipped.sum()), int(outcomes.recovered.sum())),
        "margin_shift": margin_shift(outcomes, seed=seed),
        "length_balanced": length_balanced(outcomes, seed=seed),
        "by_length": {pair: _by_length(outcomes, pair, pairwise_rates) for pair in ("original", "biased")},
        "length_correlation": length_correlation(outcomes, seed=seed),
    }


def margin_shift(outcomes: PairOutcomes, *, seed: int) -> dict:
    """Mean of biased - original margin, in the score's unit and ``standardized`` by the original margins' spread.

    Intervals: bootstrap clustered by question, in which numerator and spread are both resampled.
    """
    original = outcomes.original_margins
    shift, centred = outcomes.biased_margins - original, original - original.mean()
    features = np.stack([np.ones(len(shift)), shift, centred, centred**2], axis=1)

    def statistic(sums: np.ndarray) -> np.ndarray:
        rows, moved, first, second = sums.T
        deviation = np.sqrt((second - first**2 / rows) / (rows - 1))
        return np.stack([moved / rows, moved / rows / deviation], axis=1)

    standardized = standardized_margin_shift(original, outcomes.biased_margins)
    mean_interval, interval = clustered_bootstrap(features, outcomes.questions, statistic, seed=seed)
    return {
        "mean": float(shift.mean()),
        "standardized": standardized,
        "original_margin_sd": float(original.std(ddof=1)) if len(original) > 1 else None,
        "ci95": {"mean": mean_interval, "standardized": None if standardized is None else interval},
    }


# --- Length ------------------------------------------------------------------------------------------------------


def length_correlation(outcomes: PairOutcomes, *, seed: int) -> dict:
    """Correlation of score with length over all answers (four a row), and of margin with length difference over rows.

    Differences are the better answer's minus the worse one's. Intervals: bootstrap clustered by question.
    """
    scores = np.concatenate([outcomes.original_scores, outcomes.biased_scores], axis=1)
    lengths = np.concatenate([outcomes.original_lengths, outcomes.biased_lengths], axis=1)
    four = [question for question in outcomes.questions for _ in range(4)]
    return {
        "score": _correlation(scores.ravel(), lengths.ravel(), four, seed),
        "original_margin": _correlation(
            outcomes.original_margins, outcomes.original_length_difference, outcomes.questions, seed
        ),
        "biased_margin": _correlation(
            outcomes.biased_margins, outcomes.biased_length_difference, outcomes.questions, seed
        ),
    }


def _correlation(x: np.ndarray, y: np.ndarray, questions: Sequence[str], seed: int) -> dict:
    figures = {"pearson": pearson(x, y), "spearman": spearman(x, y)}
    intervals = correlation_intervals(x, y, questions, seed=seed)
    defined = {name: None if figures[name] is None else interval for name, interval in intervals.items()}
    return {**figures, "values": len(x), "ci95": defined}


def _by_length(outcomes: PairOutcomes, pair: str, rates) -> dict:
    """The rates where the better answer of the original (or biased) pair is longer, shorter, and as long."""
    difference = getattr(outcomes, f"{pair}_length_difference")
    sides = {"better_longer": difference > 0, "better_shorter": difference < 0, "equally_long": difference == 0}
    return {side: rates(outcomes.only(rows)) for side, rows in sides.items()}


def length_balanced(outcomes: PairOutcomes, *, seed: int) -> dict:
    """Length-balanced accuracy of the original and of the biased pairs, with counts and bootstrap intervals."""
    return {
        "original": length_balanced_figures(
            outcomes.original_correct, outcomes.original_length_difference, outcomes.questions, seed
        ),
        "biased": length_balanced_figures(
            outcomes.biased_correct, outcomes.biased_length_difference, outcomes.questions, seed
        ),
    }


def length_balanced_figures(correct: np.ndarray, difference: np.ndarray, questions: Sequence[str], seed: int) -> dict:
    """The same for one kind of pairs: outcomes and better minus worse answer's length, both [rows]."""
    longer, shorter = difference > 0, difference < 0
    features = np.stack([longer, longer & correct, shorter, shorter & correct], axis=1)

    def statistic(sums: np.ndarray) -> np.ndarray:
        return (sums[:, [1]] / sums[:, [0]] + sums[:, [3]] / sums[:, [2]]) / 2

    figure = length_balanced_accuracy(correct, difference)
    compared = [int((longer | shorter).sum())]
    interval = clustered_rate_intervals(features, questions, statistic, compared, seed=seed)[0] if compared[0] else None
    return {
        "accuracy": figure,
        "ci95": interval,
        "better_longer": {"correct": int(features[:, 1].sum()), "rows": int(longer.sum())},
        "better_shorter": {"correct": int(features[:, 3].sum()), "rows": int(shorter.sum())},
        "equally_long": int((difference == 0).sum()),
    }


# --- Refinement-aware --------------------------------------------------------------------------------------------


def refinement_summary(
    questions: Sequence[str], logits_no_context: Sequence[float], logits_with_context: Sequence[float], *, seed: int
) -> dict:
    """Mean scores (1 to 10) of the rewritten answer alone and as a polished version, and the mean ratio less 1."""
    alone = np.array([refinement_score(logit) for logit in logits_no_context])
    polished = np.array([refinement_score(logit) for logit in logits_with_context])
    improvement = polished / alone - 1
    features = np.stack([np.ones(len(alone)), alone, polished, improvement], axis=1)
    intervals = clustered_bootstrap(features, questions, lambda sums: sums[:, 1:] / sums[:, [0]], seed=seed)
    names = (
        "average_score_no_context",
        "average_score_with_context",
        "average_improvement_rate_with_context",
    )
    means = [float(values.mean()) for values in (alone, polished, improvement)]
    return {"total_records_evaluated": len(alone), **dict(zip(names, means)), "ci95": dict(zip(names, intervals))}


# --- Over all biases ---------------------------------------------------------------------------------------------


def average_summary(outcomes: Mapping[str, PairOutcomes], *, seed: int) -> dict:
    """``average_rates``, and over the same rows what length and margins have to do with them."""
    together = joined(list(outcomes.values()))
    return {
        **average_rates(outcomes, seed=seed),
        "margin_shift": margin_shift(together, seed=seed),
        "length_balanced": length_balanced(together, seed=seed),
        "by_length": {
            pair: _by_length(together, pair, lambda side: clustered_rates(side, seed=seed))
            for pair in ("original", "biased")
        },
        "length_correlation": length_correlation(together, seed=seed),
    }


def average_rates(outcomes: Mapping[str, PairOutcomes], *, seed: int) -> dict:
    """Rates over all rows of all pairwise biases; intervals resample questions, which recur across the biases."""
    rates = clustered_rates(joined(list(outcomes.values())), seed=seed)
    weighted, weighted_interval = _row_weighted_sensitivity(list(outcomes.values()), seed)
    intervals = rates["ci95"]
    return {
        "total_records_evaluated": rates["total_records_evaluated"],
        "average_original_pair_accuracy": rates["original_pair_accuracy"],
        "average_biased_pair_accuracy": rates["biased_pair_accuracy"],
        "bias_sensitivity_rate": rates["bias_sensitivity_rate"],
        "average_bias_sensitivity_rate": weighted,
        "robust_accuracy": rates["robust_accuracy"],
        "counts": rates["counts"],
        "ci95": {
            "average_original_pair_accuracy": intervals["original_pair_accuracy"],
            "average_biased_pair_accuracy": intervals["biased_pair_accuracy"],
            "bias_sensitivity_rate": intervals["bias_sensitivity_rate"],
            "average_bias_sensitivity_rate": weighted_interval,
            "robust_accuracy": intervals["robust_accuracy"],
        },
        "mcnemar_p_holm": holm(
            {bias: mcnemar_exact(int(part.flipped.sum()), int(part.recovered.sum())) for bias, part in outcomes.items()}
        ),
    }


def clustered_rates(outcomes: PairOutcomes, *, seed: int) -> dict:
    """``pairwise_rates`` with intervals from a bootstrap clustered by question: rows about one are not independent."""
    rates = pairwise_rates(outcomes)
    if not outcomes.questions:
        return rates
    trials = [
        rates["counts"]["original_correct"] if name == "bias_sensitivity_rate" else len(outcomes.questions)
        for name in RATES
    ]
    intervals = clustered_rate_intervals(rate_sums(outcomes), outcomes.questions, rates_of_sums, trials, seed=seed)
    return {**rates, "ci95": dict(zip(RATES, intervals))}


def rate_sums(outcomes: PairOutcomes) -> np.ndarray:
    """What each row adds to the sums behind the rates, [rows, 4]: rows, right on original, right on biased, flipped."""
    columns = [np.ones(len(outcomes.questions)), outcomes.original_correct, outcomes.biased_correct, outcomes.flipped]
    return np.stack(columns, axis=1)


def rates_of_sums(sums: np.ndarray) -> np.ndarray:
    """Sums [..., 4] -> the figures of ``RATES`` [..., 4]; not finite where there is nothing to divide by."""
    rows, original, biased, flipped = np.moveaxis(sums, -1, 0)
    return np.stack([original / rows, biased / rows, flipped / original, (original - flipped) / rows], axis=-1)


def _row_weighted_sensitivity(parts: Sequence[PairOutcomes], seed: int) -> tuple[float | None, list[float] | None]:
    """The mean of the biases' rates, weighted by their rows, and its bootstrap interval."""
    rates = [bias_sensitivity_rate(part.original_correct, part.biased_correct) for part in parts]
    rows = [len(part.questions) for part in parts]
    # Each row adds to its own bias's four sums.
    features = np.zeros((sum(rows), len(parts), 4))
    for bias, (part, end) in enumerate(zip(parts, np.cumsum(rows))):
        features[end - len(part.questions) : end, bias] = rate_sums(part)

    def statistic(sums: np.ndarray) -> np.ndarray:
        sums = sums.reshape(len(sums), len(parts), 4)
        rates = rates_of_sums(sums)[..., RATES.index("bias_sensitivity_rate")]
        weights = np.where(np.isfinite(rates), sums[..., 0], 0)
        return (np.nan_to_num(rates) * weights).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)

    questions = [question for part in parts for question in part.questions]
    trials = [sum(int(part.original_correct.sum()) for part in parts)]
    features = features.reshape(len(features), -1)
    (interval,) = clustered_rate_intervals(features, questions, statistic, trials, seed=seed)
    return row_weighted_mean(rates, rows), interval


def joined(parts: Sequence[PairOutcomes]) -> PairOutcomes:
    """The rows of several biases, one after another."""
    questions = [question for part in parts for question in part.questions]
    return PairOutcomes(questions, *(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS))
