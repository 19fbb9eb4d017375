"""Rows of public preference sets -> train records. Pure functions: one row in, one record out.

A converter raises ``FieldError`` for a row that is not of its format, and ``DroppedRow`` for one that is but makes no
training group (a tie, an empty answer), which the caller counts.

``preference``: ``chosen``, ``rejected`` (one answer or a list of them) and ``prompt`` or ``question``. Answers are
plain text, or message lists that end in the answer; what stands before it is the question, alike in every list. Without
a prompt, plain text is read as a transcript of "Human:" and "Assistant:" turns (Anthropic/hh-rlhf). Train records of
our own pass unchanged.

``unified-feedback`` (llm-blender/Unified-Feedback): ``conv_A`` and ``conv_B`` (message lists), ``conv_A_rating``,
``conv_B_rating``. The better rated conversation's last turn is chosen; equal ratings are ties.

``gram`` (NiuTrans/GRAM-fine-tuning-65k): the README of NiuTrans/GRAM says that ``instruction`` is a judge's prompt with
the question and both answers between the markers below, that ``input`` is empty and ``output`` is "A" or "B". Assumed
beyond that: the text before "[User Question]" and after the last marker is the judge's alone, and end-of-turn tokens
such as ``<|im_end|>`` at an answer's end are left over from generation and not part of it.
"""

import re
from collections import Counter
from collections.abc import Callable

from codes.common.records import (
    FieldError,
    Message,
    Question,
    aligned_bias_types,
    check_messages,
    check_rewards,
    check_train_record,
    rewards_of,
)

ROW_FORMATS = ("preference", "gram", "unified-feedback")
FORMATS = (*ROW_FORMATS, "bias-pairs")
ALIGNED_WITH_REJECTED = ("verdicts", "provenance")
# What the converters of rated and of judged pairs write; carried fields must not stand in their way.
MADE_FIELDS = ("question", "chosen", "rejected", "chosen_rating", "rejected_rating")

GRAM_MARKERS = (
    "[User Question]",
    "[The Start of Assistant A's Answer]",
    "[The End of Assistant A's Answer]",
    "[The Start of Assistant B's Answer]",
    "[The End of Assistant B's Answer]",
)


class DroppedRow(Exception):
    """A row of the right format that makes no group; its text is the reason to count it under."""


def detect_format(row: dict) -> str:
    """The format whose fields the row has. Raises FieldError where it is none."""
    if {"original_response1", "rewritten_response1"} <= row.keys() or {
        "original_response",
        "rewritten_response",
    } <= row.keys():
        return "bias-pairs"
    if {"conv_A", "conv_B"} <= row.keys():
        return "unified-feedback"
    if {"chosen", "rejected"} <= row.keys():
        return "preference"
    if {"instruction", "output"} <= row.keys():
        return "gram"
    fields = ", ".join(sorted(map(str, row))[:12])
    raise FieldError("(row)", f"the fields {fields} are of no known format ({', '.join(FORMATS)})")


# --- preference --------------------------------------------------------------------------------------------------


def preference_record(row: dict) -> dict:
    """A prompt/chosen/rejected row in any of the shapes that the module's docstring names."""
    if _is_train_record(row):
        return row
    question_field = "question" if row.get("question") is not None else "prompt"
    prompt = row.get(question_field)
    answers = [_split_answer(_present(row, "chosen"), "chosen", prompt)]
    for field, value in _rejected_answers(_present(row, "rejected")):
        answers.append(_split_answer(value, field, prompt))
    contexts = [context for context, _ in answers if context]
    if any(context != contexts[0] for context in contexts):
        raise DroppedRow("chosen and rejected differ before their last turn")
    used = {question_field, "question", "chosen", "rejected"}
    return {
        "question": _question(prompt, question_field, contexts[0] if contexts else []),
        "chosen": answers[0][1],
        "rejected": [answer for _, answer in answers[1:]],
        **{field: value for field, value in row.items() if field not in used},
    }


def _is_train_record(row: dict) -> bool:
    try:
        check_train_record(row)
    except FieldError:
        return False
    return True


def _rejected_answers(value: object) -> list[tuple[str, object]]:
    """(field name, answer) of one rejected answer, of several, or of several conversations."""
    if not isinstance(value, list) or (value and isinstance(value[0], dict)):
        return [("rejected", value)]
    if not value:
        raise FieldError("rejected", "the list is empty; at least one rejected answer is needed")
    return [(f"rejected[{position}]", answer) for position, answer in enumerate(value)]


def _split_answer(value: object, field: str, prompt: object) -> tuple[list[Message], str]:
    """(the turns before it, the answer) of a plain answer, a message list, or a transcript where there is no prompt."""
    if isinstance(value, list):
        return _split_messages(value, field)
    if not isinstance(value, str):
        raise FieldError(field, f"expected a string or a list of messages, found {type(value).__name__}")
    if prompt is not None:
        return [], value
    turns = _transcript(value)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise FieldError("prompt", f"is missing, and '{field}' is no transcript that ends in an 'Assistant:' turn")
    return turns[:-1], turns[-1]["content"]


def _transcript(text: str) -> list[Message]:
    """The turns of a text such as ``\\n\\nHuman: Hi\\n\\nAssistant: Hello``; empty where it is none."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", "\n\n" + text.lstrip("\n"))
    if len(parts) < 3 or parts[0].strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in zip(parts[1::2], parts[2::2])]


def _split_messages(value: object, field: str) -> tuple[list[Message], str]:
    messages = _messages(value, field)
    if messages[-1]["role"] != "assistant":
        raise FieldError(field, f"the messages end in a {messages[-1]['role']} turn, not in an assistant turn")
    return messages[:-1], messages[-1]["content"]


def _messages(value: object, field: str) -> list[Message]:
    """Checked messages, of which only role and content are kept."""
    if not isinstance(value, list):
        raise FieldError(field, f"expected a list of messages, found {type(value).__name__}")
    check_messages(value, field)
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _question(prompt: object, field: str, context: list[Message]) -> Question:
    """The turns before the answer where there are any, else the prompt; a lone user turn becomes its text."""
    if isinstance(prompt, list):
        prompt = _messages(prompt, field)
        if context and context[: len(prompt)] != prompt:
            raise FieldError("chosen", f"its first turns are not those of '{field}'")
    elif prompt is not None and not isinstance(prompt, str):
        raise FieldError(field, f"expected a string or a list of messages, found {type(prompt).__name__}")
    question = context or prompt
    if question is None:
        raise FieldError("prompt", "is missing, and 'chosen' has no turns before its answer")
    if isinstance(question, list) and len(question) == 1 and question[0]["role"] == "user":
        return question[0]["content"]
    return question


# --- unified-feedback --------------------------------------------------------------------------------------------


def unified_feedback_record(row: dict) -> dict:
    """Two rated conversations: the better rated one's last turn is chosen; other fields are carried."""
    sides = {}
    for side in "AB":
        context, answer = _split_messages(_present(row, f"conv_{side}"), f"conv_{side}")
        if not context:
            raise FieldError(f"conv_{side}", "has no turn before the answer")
        rating = _present(row, f"conv_{side}_rating")
        if isinstance(rating, bool) or not isinstance(rating, (int, float)):
            raise FieldError(f"conv_{side}_rating", f"expected a number, found {type(rating).__name__}")
        sides[side] = (rating, context, answer)
    if sides["A"][0] == sides["B"][0]:
        raise DroppedRow("tie")
    if sides["A"][1] != sides["B"][1]:
        raise DroppedRow("chosen and rejected differ before their last turn")
    better, worse = sorted(sides.values(), key=lambda side: side[0], reverse=True)
    return {
        "question": _question(None, "prompt", better[1]),
        "chosen": better[2],
        "rejected": [worse[2]],
        "chosen_rating": better[0],
        "rejected_rating": worse[0],
        **_carried(row, ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating")),
    }


# --- gram --------------------------------------------------------------------------------------------------------


def gram_record(row: dict) -> dict:
    """A judge's prompt with two answers between markers, and the better one's letter; other fields are carried."""
    instruction, output = _present(row, "instruction"), _present(row, "output")
    if not isinstance(instruction, str):
        raise FieldError("instruction", f"expected a string, found {type(instruction).__name__}")
    if not isinstance(output, str) or output.strip() not in ("A", "B"):
        raise FieldError("output", f'expected "A" or "B", found {str(output)[:40]!r}')
    if row.get("input"):
        raise FieldError("input", "is expected to be empty in this format")
    counts = [instruction.count(marker) for marker in GRAM_MARKERS]
    if not any(counts):
        raise FieldError(
            "instruction", f"has none of the markers that GRAM puts around the texts ({GRAM_MARKERS[0]} ...)"
        )
    places = [instruction.find(marker) for marker in GRAM_MARKERS]
    if counts != [1] * len(GRAM_MARKERS) or places != sorted(places):
        raise DroppedRow("the markers around the answers are missing, repeated or out of order")
    ends = [place + len(marker) for place, marker in zip(places, GRAM_MARKERS)]
    question = instruction[ends[0] : places[1]].strip()
    answers = {
        "A": _generated_text(instruction[ends[1] : places[2]]),
        "B": _generated_text(instruction[ends[3] : places[4]]),
    }
    better = output.strip()
    return {
        "question": question,
        "chosen": answers.pop(better),
        "rejected": list(answers.values()),
        **_carried(row, ("instruction", "input", "output")),
    }


def _generated_text(text: str) -> str:
    """An answer without the newlines of the template around it and without end-of-turn tokens at its end."""
    return re.sub(r"(?:\s*<\|[^|<>\s]{1,40}\|>)+\s*$", "", text).strip("\n").rstrip()


# --- what all row formats share ----------------------------------------------------------------------------------


CONVERTERS: dict[str, Callable[[dict], dict]] = {
    "preference": preference_record,
    "gram": gram_record,
    "unified-feedback": unified_feedback_record,
}


def train_record(row: dict, row_format: str, counts: Counter) -> dict:
    """The checked train record of a row: converted, without empty rejected answers and ones equal to chosen.

    Counts the answers left out. Raises DroppedRow where nothing is left to train on, FieldError for a bad row.
    """
    record = CONVERTERS[row_format](row)
    if not _has_text(record["question"]) or not _has_text(record["chosen"]):
        raise DroppedRow("empty question or chosen answer")
    problems = [_problem(answer, record["chosen"]) for answer in record["rejected"]]
    kept = [position for position, problem in enumerate(problems) if problem is None]
    for problem in filter(None, problems):
        counts[f"answers dropped: {problem}"] += 1
    if not kept:
        raise DroppedRow("no rejected answer left")
    if len(kept) < len(problems):
        record = _with_rejected(record, kept)
    check_train_record(record)
    return record


def _problem(answer: str, chosen: str) -> str | None:
    if not answer.strip():
        return "empty"
    return "equal to chosen" if answer == chosen else None


def _has_text(question: Question) -> bool:
    return bool((question if isinstance(question, str) else question[-1]["content"]).strip())


def _with_rejected(record: dict, kept: list[int]) -> dict:
    """The record with the rejected answers at these positions, and the lists aligned with them cut alike."""
    check_rewards(record)
    shorter = record | {"rejected": [record["rejected"][position] for position in kept]} | rewards_of(record, kept)
    if isinstance(record.get("bias_type"), list) and len(record["bias_type"]) <= len(record["rejected"]):
        biases = aligned_bias_types(record)
        shorter["bias_type"] = [biases[position] for position in kept]
    for field in ALIGNED_WITH_REJECTED:
        if isinstance(record.get(field), list) and len(record[field]) == len(record["rejected"]):
            shorter[field] = [record[field][position] for position in kept]
    return shorter


def _carried(row: dict, used: tuple[str, ...]) -> dict:
    """The fields of the row that the record keeps. Raises FieldError where one would overwrite what is made of it."""
    for field in MADE_FIELDS:
        if row.get(field) is not None:
            raise FieldError(field, "is made by this format from the row's other fields; rename it in the input")
    return {field: value for field, value in row.items() if field not in (*used, *MADE_FIELDS)}


def _present(row: dict, field: str) -> object:
    if row.get(field) is None:
        raise FieldError(field, "is missing")
    return row[field]
