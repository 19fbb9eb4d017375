"""Score differences of better and worse answers, from the rows that eval_reward_bench, eval_benchmark, eval_rm write.

Rows of your own need `prompt` (or `question`), `chosen_score` and `rejected_score`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codes.common.records import FieldError, InputError, check_bias_pair, content_hash, finite_number, iter_jsonl
from codes.evaluate.bias_summary import question_name

BIAS_PAIRS = {"original": ("original",), "biased": ("biased",), "both": ("original", "biased")}
# Where a row may hold its question.
QUESTION_FIELDS = ("prompt", "question", "input", "instruction")
_ANSWERS_OF = {"original": "original_response", "biased": "rewritten_response"}


@dataclass(frozen=True)
class ScoredPairs:
    """margins [pairs]: the better answer's score minus the worse one's; questions [pairs]: names of their questions."""

    margins: np.ndarray
    questions: list[str]
    repeated: int


def read_scored_pairs(paths: Sequence[Path], bias_pairs: str) -> ScoredPairs:
    """Every pair of the files, once: bias files repeat original pairs of each other, of which the first is taken.

    Raises InputError naming file, line and field for a row that holds no scored pair.
    """
    margins, questions, seen, repeated = [], [], set(), 0
    for path in paths:
        for number, row in iter_jsonl(path):
            try:
                found = list(pairs_of(row, bias_pairs))
            except FieldError as error:
                raise InputError(f"{path}:{number}: {error}") from None
            question = question_name(next((row[name] for name in QUESTION_FIELDS if name in row), f"{path}:{number}"))
            for answers, margin in found:
                key = (question, answers)
                if answers is not None and key in seen:
                    repeated += 1
                    continue
                seen.add(key)
                margins.append(margin)
                questions.append(question)
    return ScoredPairs(np.array(margins, dtype=float), questions, repeated)


def pairs_of(row: dict, bias_pairs: str = "original") -> Iterator[tuple[str | None, float]]:
    """(name of the two answers' texts, None where the row has none by known names, and margin) of each pair of a row.

    Raises FieldError for a row without scores, or with a judge's comparisons in their place.
    """
    if "scores_original" in row or "scores_biased" in row:
        check_bias_pair(row)
        better, worse = ("1", "2") if row["label"] == "response1" else ("2", "1")
        for kind in BIAS_PAIRS[bias_pairs]:
            first, second = _scores(row, f"scores_{kind}", 2)
            answers = [row[_ANSWERS_OF[kind] + place] for place in (better, worse)]
            yield content_hash(answers), first - second if better == "1" else second - first
    elif "chosen_scores" in row:
        chosen, rejected = (_scores(row, f"{name}_scores") for name in ("chosen", "rejected"))
        texts = [part if isinstance(part, list) else [part] for part in (row.get("chosen"), row.get("rejected"))]
        named = [len(part) == len(scores) and None not in part for part, scores in zip(texts, (chosen, rejected))]
        for i, better in enumerate(chosen):
            for j, worse in enumerate(rejected):
                yield content_hash([texts[0][i], texts[1][j]]) if all(named) else None, better - worse
    elif "comparisons" in row:
        raise FieldError("comparisons", "are a judge's, which gives answers no scores to calibrate")
    else:
        better, worse = _score(row, "chosen_score"), _score(row, "rejected_score")
        has_texts = "chosen" in row and "rejected" in row
        yield content_hash([row["chosen"], row["rejected"]]) if has_texts else None, better - worse


def _scores(row: dict, field: str, count: int | None = None) -> list[float]:
    values = row.get(field)
    if not isinstance(values, list) or not values or count not in (None, len(values)):
        raise FieldError(field, f"expected a list of {count or 'at least one'} finite numbers")
    return [_score({f"{field}[{i}]": value}, f"{field}[{i}]") for i, value in enumerate(values)]


def _score(row: dict, field: str) -> float:
    if field not in row:
        raise FieldError(field, "is missing: expected rows with chosen_score and rejected_score, or results of eval_*")
    return finite_number(row[field], field)
