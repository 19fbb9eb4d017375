"""Scores that were paid for once: an append-only file for each scoring configuration, under the output folder."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codes.common.append_only import AppendOnlyFile
from codes.common.records import FieldError, InputError, content_hash, iter_jsonl, to_json

if TYPE_CHECKING:
    from codes.evaluate.ranks import Ranks
    from codes.evaluate.scorers import Conversation, Pair

FOLDER = "score_store"
# Part of a file's name, so that files of another layout are left alone.
LAYOUT = 2


@dataclass
class Scores:
    """Score by conversation key, and the keys of the conversations that were cut to fit.

    ``heads`` has the scores of the single heads, where these are several, of the same conversations.
    """

    values: dict[str, float] = field(default_factory=dict)
    prompt_cut: set[str] = field(default_factory=set)
    answer_cut: set[str] = field(default_factory=set)
    heads: dict[str, list[float]] = field(default_factory=dict)

    def __getitem__(self, conversation: "Conversation") -> float:
        return self.values[conversation.key]

    def pair(self, pair: "Pair") -> tuple[float, float]:
        """The scores of a pair's answers, in its order."""
        return self[pair.first], self[pair.second]

    def details(self, conversation: "Conversation") -> dict:
        """What a row of ``codes.evaluate.score`` says of its score besides the score."""
        return {}

    def add(self, other: "Scores") -> None:
        self.values |= other.values
        self.prompt_cut |= other.prompt_cut
        self.answer_cut |= other.answer_cut
        self.heads |= other.heads

    def only(self, keys: Iterable[str]) -> "Scores":
        """The scores of these conversations, as far as they are known."""
        known = {key: self.values[key] for key in keys if key in self.values}
        heads = {key: self.heads[key] for key in known if key in self.heads}
        return Scores(known, self.prompt_cut & known.keys(), self.answer_cut & known.keys(), heads)

    def truncation(self, keys: Iterable[str]) -> dict[str, int]:
        """How many of the conversations with these keys lost prompt tokens, and how many part of the answer."""
        keys = set(keys)
        return {
            "conversations": len(keys),
            "prompt_truncated": len(keys & self.prompt_cut),
            "answer_truncated": len(keys & self.answer_cut),
        }


class ScoreStore:
    """Scores by conversation key, for one scoring configuration (weights, template, dtype, max_length).

    ``folder/score_store/<hash of the configuration>.jsonl`` opens with the configuration; each further line holds one
    batch and is synced before ``add`` returns, so a killed run loses one batch at most. Ranks above 0 write files of
    their own beside it, which ``gather_files`` takes into the first. Raises InputError for a file that holds something
    else.
    """

    def __init__(self, folder: Path, configuration: dict, rank: int = 0):
        self.known = Scores()
        first = _file(folder, configuration)
        if first.exists():
            self.known = _read(first, configuration)
        self.path = first if rank == 0 else first.with_suffix(f".rank{rank}.jsonl")
        self._file = AppendOnlyFile(self.path)
        if self.path.stat().st_size == 0:
            self._file.append({"configuration": configuration})

    def add(self, scores: Scores) -> None:
        """Keep the finite scores of one batch."""
        line = {"conversations": list(scores.values), "scores": list(scores.values.values())}
        if scores.heads:
            line["head_scores"] = [scores.heads[key] for key in scores.values]
        for name in ("prompt_cut", "answer_cut"):
            if cut := getattr(scores, name):
                line[name] = sorted(cut)
        self._file.append(line)
        self.known.add(scores)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_store(folder: Path, configuration: dict, ranks: "Ranks") -> ScoreStore:
    """This rank's store, in which each rank knows the same scores before any adds one."""
    if ranks.is_first:
        gather_files(folder, configuration)
    ranks.wait_for_all()
    store = ScoreStore(folder, configuration, ranks.rank)
    ranks.wait_for_all()
    return store


def gather_files(folder: Path, configuration: dict) -> None:
    """Take what other ranks have stored, in this run's parts before or in a run that was killed, into the one file."""
    first = _file(folder, configuration)
    others = sorted(first.parent.glob(f"{first.stem}.rank*.jsonl"))
    if not others:
        return
    with ScoreStore(folder, configuration) as store:
        for path in others:
            if (found := _read(path, configuration)).values:
                store.add(found)
            path.unlink()


def _file(folder: Path, configuration: dict) -> Path:
    return folder / FOLDER / f"{content_hash(configuration, LAYOUT)[:16]}.jsonl"


def _read(path: Path, configuration: dict) -> Scores:
    AppendOnlyFile(path).close()  # cuts a line that a kill has torn
    scores = Scores()
    if path.stat().st_size == 0:
        return scores
    for number, line in iter_jsonl(path, _check_line):
        if "configuration" in line:
            if to_json(line["configuration"], sort_keys=True) != to_json(configuration, sort_keys=True):
                raise InputError(f"{path}:{number}: field 'configuration': is not the one its name stands for")
            continue
        values = dict(zip(line["conversations"], line["scores"], strict=True))
        heads = dict(zip(line["conversations"], line["head_scores"], strict=True)) if "head_scores" in line else {}
        scores.add(Scores(values, set(line.get("prompt_cut", ())), set(line.get("answer_cut", ())), heads))
    return scores


def _check_line(line: dict) -> None:
    if "configuration" in line:
        return
    for name in ("conversations", "prompt_cut", "answer_cut"):
        keys = line.get(name, None if name == "conversations" else [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise FieldError(name, "expected a list of conversation hashes; remove this file to score afresh")
    conversations = len(line["conversations"])
    if not _are_numbers(line.get("scores"), conversations):
        raise FieldError("scores", "expected one number a conversation; remove this file to score afresh")
    if "head_scores" in line:
        rows = line["head_scores"]
        heads = len(rows[0]) if isinstance(rows, list) and rows and isinstance(rows[0], list) else 0
        if not heads or len(rows) != conversations or not all(_are_numbers(row, heads) for row in rows):
            raise FieldError("head_scores", "expected a number a head each; remove this file to score afresh")


def _are_numbers(values: object, count: int) -> bool:
    of_that_length = isinstance(values, list) and len(values) == count
    return of_that_length and all(type(value) in (int, float) and math.isfinite(value) for value in values)
