"""From the scores of one bias's rows to the figures in its summary, and over all biases. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codes.common.records import content_hash
from codes.evaluate.metrics import (
    accuracy,
    bias_sensitivity_rate,
    clustered_bootstrap,
    holm,
    length_balanced_accuracy,
    mcnemar_exact,
    refinement_score,
    robust_accuracy,
    row_weighted_mean,
    wilson_interval,
)

ORIGINAL_FIELDS = ("original_response1", "original_response2")
BIASED_FIELDS = ("rewritten_response1", "rewritten_response2")


@dataclass(frozen=True)
class PairOutcomes:
    """What came out for each row of one bias: arrays [rows], and the name of each row's question.

    ``*_length_difference`` is the better answer's length minus the worse one's, in characters.
    """

    questions: list[str]
    original_correct: np.ndarray
    biased_correct: np.ndarray
    original_tie: np.ndarray
    biased_tie: np.ndarray
    original_length_difference: np.ndarray
    biased_length_difference: np.ndarray

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
            "ties_original": int(self.original_tie.sum()),
            "ties_biased": int(self.biased_tie.sum()),
        }


def pair_outcomes(
    rows: Sequence[dict], original_scores: Sequence[Sequence[float]], biased_scores: Sequence[Sequence[float]]
) -> PairOutcomes:
    """rows: bias pairs; scores: [rows, 2], of response1 and response2 as the files have them."""
    better = np.array([0 if row["label"] == "response1" else 1 for row in rows])
    original, biased = (_better_minus_worse(scores, better) for scores in (original_scores, biased_scores))
    lengths = [[[len(row[name]) for name in fields] for row in rows] for fields in (ORIGINAL_FIELDS, BIASED_FIELDS)]
    return PairOutcomes(
        questions=[question_name(row["question"]) for row in rows],
        original_correct=original > 0,
        biased_correct=biased > 0,
        original_tie=original == 0,
        biased_tie=biased == 0,
        original_length_difference=_better_minus_worse(lengths[0], better),
        biased_length_difference=_better_minus_worse(lengths[1], better),
    )


def length_outcomes(rows: Sequence[dict]) -> PairOutcomes:
    """The outcomes of the rule 'the longer answer (in characters) wins': the baseline beside every score."""
    original, biased = (
        [[len(row[name]) for name in names] for row in rows] for names in (ORIGINAL_FIELDS, BIASED_FIELDS)
    )
    return pair_outcomes(rows, original, biased)


def question_name(question: object) -> str:
    """A short name for a question; rows with the same question form one cluster."""
    return content_hash(question)[:16]


def _better_minus_worse(pairs: Sequence[Sequence[float]], better: np.ndarray) -> np.ndarray:
    values, rows = np.asarray(pairs), np.arange(len(better))
    return values[rows, better] - values[rows, 1 - better]


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
    """``pairwise_rates``, with the test of original against biased and the accuracies balanced by length."""
    return {
        **pairwise_rates(outcomes),
        "mcnemar_p": mcnemar_exact(int(outcomes.flipped.sum()), int(outcomes.recovered.sum())),
        "length_balanced": length_balanced(outcomes, seed=seed),
    }


def length_balanced(outcomes: PairOutcomes, *, seed: int) -> dict:
    """Length-balanced accuracy of the original and of the biased pairs, with counts and bootstrap intervals."""
    return {
        "original": _length_balanced(
            outcomes.original_correct, outcomes.original_length_difference, outcomes.questions, seed
        ),
        "biased": _length_balanced(
            outcomes.biased_correct, outcomes.biased_length_difference, outcomes.questions, seed
        ),
    }


def _length_balanced(correct: np.ndarray, difference: np.ndarray, questions: Sequence[str], seed: int) -> dict:
    longer, shorter = difference > 0, difference < 0
    features = np.stack([longer, longer & correct, shorter, shorter & correct], axis=1)

    def statistic(sums: np.ndarray) -> np.ndarray:
        return (sums[:, [1]] / sums[:, [0]] + sums[:, [3]] / sums[:, [2]]) / 2

    figure = length_balanced_accuracy(correct, difference)
    interval = None if figure is None else clustered_bootstrap(features, questions, statistic, seed=seed)[0]
    return {
        "accuracy": figure,
        "ci95": interval,
        "better_longer": {"correct": int(features[:, 1].sum()), "rows": int(longer.sum())},
        "better_shorter": {"correct": int(features[:, 3].sum()), "rows": int(shorter.sum())},
        "equally_long": int((difference == 0).sum()),
    }


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


def average_summary(outcomes: Mapping[str, PairOutcomes], *, seed: int) -> dict:
    """Figures over all rows of all pairwise biases; intervals resample questions, which recur across the biases."""
    joined = _join(list(outcomes.values()))
    rates = pairwise_rates(joined)
    per_bias = {bias: pairwise_rates(part) for bias, part in outcomes.items()}
    return {
        "total_records_evaluated": rates["total_records_evaluated"],
        "average_original_pair_accuracy": rates["original_pair_accuracy"],
        "average_biased_pair_accuracy": rates["biased_pair_accuracy"],
        "bias_sensitivity_rate": rates["bias_sensitivity_rate"],
        "average_bias_sensitivity_rate": row_weighted_mean(
            [rate["bias_sensitivity_rate"] for rate in per_bias.values()],
            [rate["total_records_evaluated"] for rate in per_bias.values()],
        ),
        "robust_accuracy": rates["robust_accuracy"],
        "counts": rates["counts"],
        "ci95": _average_intervals(list(outcomes.values()), seed),
        "mcnemar_p_holm": holm(
            {bias: mcnemar_exact(int(part.flipped.sum()), int(part.recovered.sum())) for bias, part in outcomes.items()}
        ),
        "length_balanced": length_balanced(joined, seed=seed),
    }


def _average_intervals(parts: Sequence[PairOutcomes], seed: int) -> dict[str, list[float] | None]:
    """Bootstrap intervals of the overall rates, clustered by question."""
    # Each row adds to its own bias's four sums: rows, right on original, right on biased, flipped.
    features = np.zeros((sum(len(part.questions) for part in parts), len(parts), 4))
    start = 0
    for bias, part in enumerate(parts):
        columns = [np.ones(len(part.questions)), part.original_correct, part.biased_correct, part.flipped]
        features[start : start + len(part.questions), bias] = np.stack(columns, axis=1)
        start += len(part.questions)

    def statistic(sums: np.ndarray) -> np.ndarray:
        sums = sums.reshape(len(sums), len(parts), 4)
        rows, original, biased, flipped = np.moveaxis(sums.sum(1), -1, 0)
        rates = sums[..., 3] / sums[..., 1]
        weights = np.where(np.isfinite(rates), sums[..., 0], 0)
        weighted = (np.nan_to_num(rates) * weights).sum(-1) / weights.sum(-1)
        return np.stack([original / rows, biased / rows, flipped / original, weighted, (original - flipped) / rows], 1)

    names = (
        "average_original_pair_accuracy",
        "average_biased_pair_accuracy",
        "bias_sensitivity_rate",
        "average_bias_sensitivity_rate",
        "robust_accuracy",
    )
    questions = [question for part in parts for question in part.questions]
    return dict(zip(names, clustered_bootstrap(features.reshape(len(features), -1), questions, statistic, seed=seed)))


def _join(parts: Sequence[PairOutcomes]) -> PairOutcomes:
    arrays = [name for name in PairOutcomes.__dataclass_fields__ if name != "questions"]
    return PairOutcomes(
        questions=[question for part in parts for question in part.questions],
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )
