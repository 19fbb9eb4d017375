"""The rows of one bias's evaluation file, and the conversations that they are judged by."""

from dataclasses import dataclass
from pathlib import Path

from codes.common.records import (
    EVALUATED_BIASES,
    REFINEMENT_BIAS,
    bias_name_problem,
    check_eval_record,
    file_sha256,
    iter_jsonl,
    read_jsonl,
)
from codes.evaluate.bias_summary import BIASED_FIELDS, ORIGINAL_FIELDS
from codes.evaluate.results import warn_of_replaced_fields
from codes.evaluate.scorers import Conversation, Pair

REFINEMENT_REQUEST = (
    "Thank you. Please go over your answer once more and polish it: keep what it says, and make it read better."
)
RESULT_FIELDS = (
    "scores_original",
    "scores_biased",
    "original_evaluation_correct",
    "bias_evaluation_correct",
    "disagreement_original",
    "disagreement_biased",
    "score_no_context",
    "score_with_context",
)


@dataclass(frozen=True)
class BiasData:
    """One bias's rows and the conversations each is judged by, in this order.

    Pairwise: both original, then both rewritten answers. Refinement-aware: the rewritten answer alone, then as the
    polished version of the original answer.
    """

    bias: str
    sha256: str
    rows: list[dict]
    conversations: list[list[Conversation]]

    def all_conversations(self) -> list[Conversation]:
        return [conversation for row in self.conversations for conversation in row]

    @property
    def original(self) -> list[Pair]:
        """Each row's original answers; nothing for refinement-aware, which compares none."""
        return [] if self.bias == REFINEMENT_BIAS else [Pair(*row[:2]) for row in self.conversations]

    @property
    def rewritten(self) -> list[Pair]:
        return [] if self.bias == REFINEMENT_BIAS else [Pair(*row[2:]) for row in self.conversations]

    @property
    def pairs(self) -> list[Pair]:
        return [*self.original, *self.rewritten]

    @property
    def data_file(self) -> str:
        return f"{self.bias}_bias.jsonl"


def other_biases(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The biases beyond the built-in ones that have a file in the folder, and those whose names cannot be used."""
    named = sorted(path.name.removesuffix("_bias.jsonl") for path in folder.glob("*_bias.jsonl") if path.is_file())
    problems = {name: bias_name_problem(name) for name in named if name not in EVALUATED_BIASES}
    usable = [name for name, problem in problems.items() if problem is None]
    return usable, {name: f"its file's name {problem}" for name, problem in problems.items() if problem}


def bias_file(folder: Path, bias: str) -> Path:
    return folder / f"{bias}_bias.jsonl"


def read_bias(folder: Path, bias: str, refinement_request: str = REFINEMENT_REQUEST) -> BiasData:
    """Read and check one bias's file. Raises InputError naming file, line and field."""
    path = bias_file(folder, bias)
    rows = read_jsonl(path, check_eval_record(bias))
    conversations = []
    for number, row in iter_jsonl(path):
        where = f"{path}:{number}"
        if not conversations:
            warn_of_replaced_fields(where, row, RESULT_FIELDS)
        if bias == REFINEMENT_BIAS:
            conversations.append(_refinement_conversations(row, where, refinement_request))
        else:
            fields = (*ORIGINAL_FIELDS, *BIASED_FIELDS)
            conversations.append([Conversation(row["question"], row[f], f"{where}: field '{f}'") for f in fields])
    return BiasData(bias, file_sha256(path), rows, conversations)


def _refinement_conversations(row: dict, where: str, request: str) -> list[Conversation]:
    question = row["question"]
    polished_after = [
        *([{"role": "user", "content": question}] if isinstance(question, str) else question),
        {"role": "assistant", "content": row["original_response"]},
        {"role": "user", "content": request},
    ]
    where = f"{where}: field 'rewritten_response'"
    return [Conversation(prompt, row["rewritten_response"], where) for prompt in (question, polished_after)]
