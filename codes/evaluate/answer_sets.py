"""Files of answers, one a row, as `codes.evaluate.score` reads and writes them: several answers to each prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from codes.common.records import FieldError, finite_number, iter_jsonl
from codes.evaluate.bias_summary import question_name
from codes.evaluate.score import conversation_of


class Answer(NamedTuple):
    """An answer and its scores, in the order in which their fields were asked for."""

    text: str
    scores: tuple[float, ...]


def read_answers(path: Path, score_fields: Sequence[str]) -> dict[str, list[Answer]]:
    """The answers to each prompt, by the prompt's name, in the file's order.

    Raises InputError naming file, line and field for a row without an answer or without one of the scores.
    """
    answers: dict[str, list[Answer]] = {}

    def take(row: dict) -> None:
        conversation = conversation_of(row)
        scores = tuple(score_of(row, field) for field in score_fields)
        answers.setdefault(question_name(conversation.question), []).append(Answer(conversation.answer, scores))

    for _ in iter_jsonl(path, take):
        pass
    return answers


def has_field(path: Path, field: str) -> bool:
    """Whether the first row has the field."""
    return field in next(iter_jsonl(path))[1]


def score_of(row: dict, field: str) -> float:
    """A score of the row. Raises FieldError where it is absent or no finite number."""
    if field not in row:
        raise FieldError(field, f"is missing; `python -m codes.evaluate.score --score_field {field}` adds it")
    return finite_number(row[field], field)
