"""Bias-pair evaluation files -> training groups, with questions held out for evaluation.

The same questions recur across biases, so the split is by question and over all files at once: a held-out question is
in no group, whichever file it stands in.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from codes.common.records import (
    REFINEMENT_BIAS,
    RESPONSE_LABELS,
    FieldError,
    InputError,
    Question,
    check_eval_record,
    content_hash,
)
from codes.common.sources import iter_file

PAIR_FILE_SUFFIX = "_bias.jsonl"

BiasRow = tuple[str, dict]


def bias_of(path: Path) -> str:
    """The bias that ``<bias>_bias.jsonl`` names. Raises InputError for another file name."""
    bias = path.name.removesuffix(PAIR_FILE_SUFFIX)
    if not bias or bias == path.name:
        raise InputError(f"{path}: a bias-pair file is named <bias>{PAIR_FILE_SUFFIX}, which says its bias")
    return bias


def read_bias_rows(paths: Iterable[Path]) -> list[BiasRow]:
    """(bias, row) of all files in order, checked."""
    rows = []
    for path in paths:
        bias = bias_of(path)
        check = check_eval_record(bias)
        for where, row in iter_file(path):
            try:
                check(row)
            except FieldError as error:
                raise InputError(f"{where}: {error}") from None
            rows.append((bias, row))
    return rows


def is_held_out(question: Question, share: float, seed: int) -> bool:
    """Whether the question belongs to the held-out share; depends on the seed and the question's words alone.

    Case and white space do not count, so that two spellings of one question fall on the same side.
    """
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    words = [[turn["role"], *turn["content"].casefold().split()] for turn in question]
    return int(content_hash(seed, words)[:16], 16) < share * 2**64


def split_by_question(rows: Iterable[BiasRow], share: float, seed: int) -> tuple[list[BiasRow], list[BiasRow]]:
    """(training rows, held-out rows), each in input order."""
    training, held_out = [], []
    for bias, row in rows:
        (held_out if is_held_out(row["question"], share, seed) else training).append((bias, row))
    return training, held_out


def bias_pair_groups(rows: Iterable[BiasRow], counts: Counter) -> list[dict]:
    """One train record for every (question, better original), in order of first appearance.

    ``rejected`` holds the distinct worse originals and then the distinct rewritten worse answers, ``bias_type`` says
    which is which. Refinement-aware rows are no pairs and are left out; so are answers equal to chosen. Both are
    counted.
    """
    groups: dict[str, dict] = {}
    for bias, row in rows:
        if bias == REFINEMENT_BIAS:
            counts["rows left out: refinement-aware rows are no pairs"] += 1
            continue
        better = row["label"]
        worse = RESPONSE_LABELS[1 - RESPONSE_LABELS.index(better)]
        chosen = row[f"original_{better}"]
        group = groups.setdefault(
            content_hash(row["question"], chosen),
            {"question": row["question"], "chosen": chosen, "originals": {}, "rewritten": {}},
        )
        for field, kind, name in (("originals", "original", "original"), ("rewritten", "rewritten", bias)):
            answer = row[f"{kind}_{worse}"]
            if answer == chosen:
                counts["answers dropped: equal to chosen"] += 1
            elif answer in group["originals"] or answer in group["rewritten"]:
                counts[f"answers met again: {kind} worse answers that their group has already"] += 1
            else:
                group[field][answer] = name
    return [record for group in groups.values() if (record := _group_record(group, counts))]


def _group_record(group: dict, counts: Counter) -> dict | None:
    rejected = group["originals"] | group["rewritten"]
    if not rejected:
        counts["groups dropped: no rejected answer left"] += 1
        return None
    return {
        "question": group["question"],
        "chosen": group["chosen"],
        "rejected": list(rejected),
        "bias_type": list(rejected.values()),
    }
