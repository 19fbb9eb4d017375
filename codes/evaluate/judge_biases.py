"""What is measured of judges alone: how far the order of the answers sways them, and what people are said to like.

Both use the original pairs of whatever bias files are there, each pair once. *Position*: how often the verdict changes
its answer when the answers change places (Zheng et al. 2023; Wang et al. 2024), from the verdicts that
pairwise judging asks for anyway. *Bandwagon*: the judge is also told that 90% of people preferred the worse answer
(after Koo et al. 2024; the wording is our own); of the pairs it got right, the share it gets wrong then.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codes.common.records import JUDGE_BIASES, REFINEMENT_BIAS, InputError, check_bias_pair, content_hash, iter_jsonl
from codes.common.result_files import rate_cell
from codes.evaluate.api import FAILED, FIRST, SECOND, TIE, UNPARSABLE, Comparison, Preferences, Ratings, missing_verdict
from codes.evaluate.bias_summary import (
    BIASED_FIELDS,
    ORIGINAL_FIELDS,
    pair_outcomes,
    pairwise_rates,
    question_name,
)
from codes.evaluate.metrics import clustered_rate_intervals, mcnemar_exact, ratio
from codes.evaluate.scorers import Conversation, Pair

POSITION, BANDWAGON = JUDGE_BIASES
JUDGES_ONLY = "is measured of judges that compare two answers only (--scorer judge, --judge_mode pairwise)"


@dataclass(frozen=True)
class JudgeBiasData:
    """Every distinct original pair of the bias files in a folder; for bandwagon each also with what people are said
    to prefer. ``rows`` are bias pairs without rewritten answers.
    """

    bias: str
    sha256: str
    rows: list[dict]
    original: list[Pair]
    data_file: str = "*_bias.jsonl"

    @property
    def crowded(self) -> list[Pair]:
        """The pairs with the worse answer as the one that most people are said to prefer; none for position."""
        if self.bias == POSITION:
            return []
        return [pair._replace(crowd=row[_worse_field(row)]) for pair, row in zip(self.original, self.rows)]

    @property
    def pairs(self) -> list[Pair]:
        return [*self.original, *self.crowded]

    def all_conversations(self) -> list[Conversation]:
        return [conversation for pair in self.original for conversation in pair[:2]]


def _worse_field(row: dict) -> str:
    return ORIGINAL_FIELDS[1] if row["label"] == "response1" else ORIGINAL_FIELDS[0]


def read_judge_bias(folder: Path, bias: str) -> JudgeBiasData:
    """Raises InputError where the folder has no file of pairs, and for a row that is none."""
    rows: dict[str, dict] = {}
    pairs: dict[str, Pair] = {}
    for path in sorted(folder.glob("*_bias.jsonl")):
        if path.name == f"{REFINEMENT_BIAS}_bias.jsonl":
            continue
        for number, row in iter_jsonl(path, check_bias_pair):
            wheres = [f"{path}:{number}: field '{name}'" for name in ORIGINAL_FIELDS]
            pair = Pair(*(Conversation(row["question"], row[n], w) for n, w in zip(ORIGINAL_FIELDS, wheres)))
            # The same two answers may stand in either order, and the same one is the better.
            key = content_hash(Comparison.of(pair).key, row[_worse_field(row)])
            rows.setdefault(key, {name: row[name] for name in ("question", *ORIGINAL_FIELDS, "label")})
            pairs.setdefault(key, pair)
    if not rows:
        raise InputError(f"--data_dir {folder}: has no <bias>_bias.jsonl file with pairs")
    return JudgeBiasData(bias, content_hash(list(rows.values())), list(rows.values()), list(pairs.values()))


def evaluate_judge_bias(data: JudgeBiasData, preferences: Preferences, seed: int) -> tuple[list[dict], dict]:
    """(rows with verdicts, figures of the summary) of one of the two biases."""
    orders = [preferences.orders(pair) for pair in data.original]
    if data.bias == POSITION:
        rows = [{**row, "verdicts_original": list(order)} for row, order in zip(data.rows, orders)]
        questions = [question_name(row["question"]) for row in data.rows]
        return rows, {"total_records_evaluated": len(rows), **position_figures(orders, questions, seed=seed)}
    # Nothing is rewritten: what people are said to prefer stands in the prompt.
    pair_rows = [row | dict(zip(BIASED_FIELDS, (row[name] for name in ORIGINAL_FIELDS))) for row in data.rows]
    plain, told = ([preferences.pair(pair) for pair in pairs] for pairs in (data.original, data.crowded))
    outcome = pair_outcomes(pair_rows, plain, told)
    rows = [
        {
            **row,
            "scores_original": list(plain[i]),
            "scores_biased": list(told[i]),
            "original_evaluation_correct": bool(outcome.original_correct[i]),
            "bias_evaluation_correct": bool(outcome.biased_correct[i]),
            "verdicts_original": list(orders[i]),
            "verdicts_biased": list(preferences.orders(data.crowded[i])),
        }
        for i, row in enumerate(data.rows)
    ]
    rates = pairwise_rates(outcome)
    rates["counts"] |= counts_without_verdict(preferences, data.original, data.crowded, rates["counts"])
    return rows, {**rates, "mcnemar_p": mcnemar_exact(int(outcome.flipped.sum()), int(outcome.recovered.sum()))}


def counts_without_verdict(
    judged: Preferences | Ratings, original: Sequence[Pair], biased: Sequence[Pair], counts: dict[str, int]
) -> dict[str, int]:
    """Pairs without a verdict, by reason, and what is left of the ties among ``counts`` without them."""
    changed = {}
    for name, pairs in (("original", original), ("biased", biased)):
        missing = without_verdict(judged, pairs)
        changed |= {f"{reason}_{name}": count for reason, count in missing.items()}
        changed[f"ties_{name}"] = counts[f"ties_{name}"] - sum(missing.values())
    return changed


def summed_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Over several biases: ties, and pairs without a verdict by reason, of the original and of the biased pairs."""
    names = [f"{reason}_{pairs}" for reason in ("ties", UNPARSABLE, FAILED) for pairs in ("original", "biased")]
    return {name: sum(of_bias[name] for of_bias in counts) for name in names}


def missing_verdicts_text(summaries: Iterable[dict]) -> str | None:
    """One line on the pairs of these biases that a judge gave no verdict on; None where there are none."""
    counted = [summary["counts"] for summary in summaries if f"{UNPARSABLE}_original" in summary["counts"]]
    total = summed_counts(counted)
    unparsable, failed = (total[f"{reason}_original"] + total[f"{reason}_biased"] for reason in (UNPARSABLE, FAILED))
    if not unparsable + failed:
        return None
    return f"pairs without a verdict, counted as not right: {unparsable} unparsable, {failed} without an answer"


def without_verdict(judged: Preferences | Ratings, pairs: Sequence[Pair]) -> dict[str, int]:
    """How many of the pairs a judge has given no verdict on, by reason."""
    reasons = [judged.without_verdict(pair) for pair in pairs]
    return {reason: reasons.count(reason) for reason in (UNPARSABLE, FAILED)}


def with_verdicts(
    rows: Sequence[dict], original: Sequence[Pair], rewritten: Sequence[Pair], preferences: Preferences, seed: int
) -> tuple[list[dict], dict]:
    """(The rows of a bias with the verdicts in both orders, the position figures over all of these)."""
    before, after = ([preferences.orders(pair) for pair in pairs] for pairs in (original, rewritten))
    questions = [question_name(row["question"]) for row in rows]
    rows = [
        {**row, "verdicts_original": list(there), "verdicts_biased": list(back)}
        for row, there, back in zip(rows, before, after)
    ]
    return rows, position_figures([*before, *after], [*questions, *questions], seed=seed)


def judge_bias_text(bias: str, summary: dict) -> str:
    """One line for people."""

    def rate(name: str) -> str:
        return rate_cell(summary[name], summary["ci95"][name])

    if bias == POSITION:
        return (
            f"{bias}: {summary['total_records_evaluated']} pairs, first place wins {rate('first_place_share')} of the "
            f"verdicts with a winner, the winner changes with the order in {rate('order_dependent_rate')}"
        )
    return (
        f"{bias}: {summary['total_records_evaluated']} pairs, accuracy {rate('original_pair_accuracy')}, where people "
        f"are said to prefer the worse answer {rate('biased_pair_accuracy')}, BSR {rate('bias_sensitivity_rate')}"
    )


def position_figures(orders: Sequence[tuple[str, str]], questions: Sequence[str], *, seed: int) -> dict:
    """How far verdicts depend on the order of the answers, with counts and 95% intervals clustered by question.

    orders: [pairs] of verdicts by place, before and after the answers changed places. ``first_place_share``: of the
    verdicts that name a winner, those for the first place; 1/2 without a position bias. ``order_dependent_rate``: of
    the pairs with two verdicts, those where the same place wins twice, that is, the winner changes with the order.
    ``inconsistent_rate`` also counts those where one verdict is a tie and the other is not.
    """
    verdicts = [Counter(order) for order in orders]
    known = np.array([missing_verdict(order) is None for order in orders])
    same_place = np.array([order in ((FIRST, FIRST), (SECOND, SECOND)) for order in orders])
    half_tie = known & np.array([counted[TIE] == 1 for counted in verdicts])
    first, second = (np.array([counted[place] for counted in verdicts]) for place in (FIRST, SECOND))
    sums = np.stack([known, same_place, same_place | half_tie, first, first + second], axis=1).astype(float)

    def rates(sums: np.ndarray) -> np.ndarray:
        return np.stack([sums[:, 3] / sums[:, 4], sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]], axis=1)

    names = ("first_place_share", "order_dependent_rate", "inconsistent_rate")
    pairs, dependent, inconsistent, firsts, winners = sums.sum(axis=0).astype(int).tolist()
    values = (ratio(firsts, winners), ratio(dependent, pairs), ratio(inconsistent, pairs))
    intervals = clustered_rate_intervals(sums, questions, rates, (winners, pairs, pairs), seed=seed)
    every = Counter(verdict for order in orders for verdict in order)
    return {
        **dict(zip(names, values)),
        "ci95": dict(zip(names, intervals)),
        "counts": {
            "pairs_with_both_verdicts": pairs,
            "order_dependent": dependent,
            "always_first_place": sum(order == (FIRST, FIRST) for order in orders),
            "always_second_place": sum(order == (SECOND, SECOND) for order in orders),
            "tie_in_one_order": inconsistent - dependent,
            **{f"verdicts_{verdict}": every[verdict] for verdict in (FIRST, SECOND, TIE, UNPARSABLE, FAILED)},
        },
    }
