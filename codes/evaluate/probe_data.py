"""The good answers that probes are made from, out of the rows of any of our files."""

from dataclasses import dataclass
from pathlib import Path

from codes.common.cli import require_files
from codes.common.records import (
    CHOSEN_IS_BEST,
    FieldError,
    InputError,
    Question,
    check_answer,
    check_bias_pair,
    check_question,
    content_hash,
    verification_outcome,
)
from codes.common.sources import iter_file
from codes.evaluate.bias_summary import question_name
from codes.evaluate.probes import Subject
from codes.evaluate.score import conversation_of

# Where a row says that a refusal would be right, so that the probe `refusal` damages nothing.
REFUSAL_FIELD = "refusal_is_right"
# The subsets of Reward-Bench whose better answer refuses.
REFUSING_SUBSETS = ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "donotanswer")


@dataclass(frozen=True)
class GoodAnswer:
    """One row and the answer in it that is probed; ``harmless``: a refusal of its question would be worse."""

    where: str
    row: dict
    subject: Subject
    harmless: bool

    @property
    def question(self) -> str:
        """A short name: answers to the same question form one cluster."""
        return question_name(self.subject.question)


def read_good_answers(path: str, limit: int | None) -> tuple[list[GoodAnswer], dict[str, int]]:
    """The first ``limit`` distinct answers of a file (all with None), and how many rows were left out, by reason.

    Raises InputError naming file, line and field for a row that holds no good answer, and where none is left.
    """
    require_files([path], "--data")
    answers, seen = [], set()
    left_out = {"blank": 0, "not_best": 0, "repeated": 0, "beyond_limit": 0}
    for where, row in iter_file(Path(path)):
        try:
            question, answer = good_answer(row)
            harmless = not _refusal_is_right(row)
            is_best = verification_outcome(row) == CHOSEN_IS_BEST
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
        key = content_hash(question, answer)
        if not is_best:
            left_out["not_best"] += 1
        elif not answer.strip():
            left_out["blank"] += 1
        elif key in seen:
            left_out["repeated"] += 1
        elif limit is not None and len(answers) == limit:
            left_out["beyond_limit"] += 1
        else:
            seen.add(key)
            answers.append(GoodAnswer(where, row, Subject(question, answer), harmless))
    if not answers:
        told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
        raise InputError(f"--data {path}: has no answer to probe ({told or 'no rows'})")
    return answers, left_out


def good_answer(row: dict) -> tuple[Question, str]:
    """(question, good answer) of a preference row, a bias pair, or a row of prompt and response (or messages).

    Of a bias pair it is the better original response. Raises FieldError for a row of another shape.
    """
    if "original_response1" in row:
        check_bias_pair(row)
        return row["question"], row[f"original_{row['label']}"]
    if "chosen" in row:
        field = "prompt" if "prompt" in row else "question"
        check_question(row, field)
        check_answer(row, "chosen")
        return row[field], row["chosen"]
    if "response" not in row and "messages" not in row:
        raise FieldError("chosen", "is missing: expected rows with chosen, with response (or messages), or bias pairs")
    conversation = conversation_of({"prompt": row["question"], **row} if "question" in row else row)
    return conversation.question, conversation.answer


def _refusal_is_right(row: dict) -> bool:
    marked = row.get(REFUSAL_FIELD, False)
    if not isinstance(marked, bool):
        raise FieldError(REFUSAL_FIELD, f"expected true or false, found {marked!r:.80}")
    return marked or row.get("subset") in REFUSING_SUBSETS
