"""One pass over files of train records that leaves numbers of every record in memory, and no texts.

About 220 bytes a record stay (168 of them the keys of near-duplicates of question and chosen answer), plus 12 a
rejected answer; the ids of the file that is being read take as much again while it is. Style is counted on a sample,
whose size bounds its time and memory.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from codes.common.cli import progress
from codes.common.conversation import as_messages
from codes.common.prompt_text import as_text
from codes.common.records import Question, aligned_bias_types, iter_train_records
from codes.train.near_duplicates import MinHash
from codes.train.record_files import RecordFile
from codes.train.text_style import STYLE_COUNTS, style_counts
from codes.train.training_data import DataCounts, EncodingSettings, is_used

TRAIN, EVAL = 0, 1
SIDES = ("train", "eval")
SHOWN_CHARACTERS = 2000  # of a text, in examples


@dataclass(frozen=True)
class ReadingSettings:
    """What is looked at while reading: how alike near-duplicates are, and how many records style is counted on."""

    threshold: float
    shingle_words: int
    style_records: int
    seed: int
    encoding: EncodingSettings


@dataclass
class StyleSample:
    """The style counts of both answers of each pair of the sampled training records, with bias and question."""

    records: int = 0
    chosen: array = field(default_factory=lambda: array("q"))
    rejected: array = field(default_factory=lambda: array("q"))
    bias_types: dict[str, int] = field(default_factory=dict)
    bias_of_pair: array = field(default_factory=lambda: array("i"))
    question_of_pair: array = field(default_factory=lambda: array("Q"))

    def add(self, record: dict, question: int) -> None:
        self.records += 1
        chosen = style_counts(record["chosen"])
        for answer, bias in zip(record["rejected"], aligned_bias_types(record)):
            self.chosen.extend(chosen)
            self.rejected.extend(style_counts(answer))
            self.bias_of_pair.append(self.bias_types.setdefault(bias, len(self.bias_types)))
            self.question_of_pair.append(question)

    def counts(self, of: array) -> np.ndarray:
        """int64 [pairs, counts]."""
        return np.frombuffer(of, np.int64).reshape(-1, len(STYLE_COUNTS))


class InspectedRecords:
    """The used records of all files in order. Arrays over records: file, place, question, chosen, group, rejected.

    question, chosen and group name the question, the chosen answer and the whole record by 64-bit hashes of their
    texts; questions that differ in white space and case alone have one name. ``rejected_names`` holds the names of all
    rejected answers one after another.
    """

    def __init__(self, files: Sequence[tuple[str, int]], settings: ReadingSettings):
        self.files = [RecordFile(path) for path, _ in files]
        self.side_of_file = np.array([side for _, side in files])
        self.counts = [DataCounts() for _ in files]
        self.outcomes: list[Counter[str]] = [Counter() for _ in files]
        self.signer = MinHash(settings.threshold, settings.shingle_words, seed=settings.seed)
        self.style = StyleSample()
        self._columns = {name: array(kind) for name, kind in _COLUMNS.items()}
        self.conversation_characters = array("i")
        total = sum(map(len, self.files))
        with progress(total=total, desc="reading", unit="record") as bar:
            for number, drawn in enumerate(self._drawn_for_style(settings)):
                self._read(number, drawn, settings, bar)
        if not self.style.records and (in_training := np.flatnonzero(self.sides == TRAIN)).size:
            # None of the drawn records is used.
            self.style.add(self.record(in_training[0]), int(self.column("question")[in_training[0]]))

    def _drawn_for_style(self, settings: ReadingSettings) -> list[set[int]]:
        """The places in each file of the training records that style is counted on."""
        sizes = [len(file) if side == TRAIN else 0 for file, side in zip(self.files, self.side_of_file)]
        total = sum(sizes)
        drawn = np.arange(total)
        if total > settings.style_records:
            drawn = np.random.default_rng([settings.seed, 1]).choice(total, settings.style_records, replace=False)
        ends = np.cumsum(sizes)
        return [
            set((drawn[(drawn >= end - size) & (drawn < end)] - (end - size)).tolist())
            for end, size in zip(ends, sizes)
        ]

    def _read(self, number: int, drawn: set[int], settings: ReadingSettings, bar) -> None:
        columns, in_training = self._columns, self.side_of_file[number] == TRAIN
        for place, record in enumerate(iter_train_records(self.files[number].path)):
            bar.update()
            self.outcomes[number][record.get("verify_correctness", "absent")] += 1
            if not is_used(record, settings.encoding, self.counts[number]):
                continue
            question = as_text(record["question"])
            names = [answer_name(answer) for answer in (record["chosen"], *record["rejected"])]
            name = question_name(question)
            group = _name(b"".join(part.to_bytes(8, "little") for part in (name, names[0], *sorted(names[1:]))))
            values = (number, place, name, names[0], group, len(names) - 1)
            for column, value in zip(("file", "place", "question", "chosen", "group", "rejected"), values):
                columns[column].append(value)
            columns["rejected_names"].extend(names[1:])
            columns["question_keys"].frombytes(self.signer(asked(record["question"])).tobytes())
            columns["chosen_keys"].frombytes(self.signer(record["chosen"]).tobytes())
            if in_training:
                self.conversation_characters.extend(
                    len(question) + len(answer) for answer in (record["chosen"], *record["rejected"])
                )
            if place in drawn:
                self.style.add(record, name)

    def __len__(self) -> int:
        return len(self._columns["file"])

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, without a copy; keys are [records, bands]."""
        values = np.frombuffer(self._columns[name], _DTYPES[_COLUMNS[name]])
        return values.reshape(len(self), -1) if name.endswith("_keys") else values

    @cached_property
    def sides(self) -> np.ndarray:
        """TRAIN or EVAL, [records]."""
        return self.side_of_file[self.column("file")]

    def record(self, number: int) -> dict:
        """A record, read from its file."""
        return self.files[self._columns["file"][number]][self._columns["place"][number]]

    def where(self, number: int) -> dict:
        """File and line of a record, and its id where it has one of its own."""
        file, place = self.files[self._columns["file"][number]], self._columns["place"][number]
        own = self.record(number).get("id")
        side = SIDES[self.sides[number]]
        return {
            "file": file.name,
            "line": file.line_number(place),
            "split": side,
            "id": None if own is None else str(own),
        }


_COLUMNS = {
    **{"file": "H", "place": "i", "question": "Q", "chosen": "Q", "group": "Q", "rejected": "i"},
    **{"rejected_names": "Q", "question_keys": "I", "chosen_keys": "I"},
}
_DTYPES = {"H": np.uint16, "i": np.int32, "Q": np.uint64, "I": np.uint32}


def asked(question: Question) -> str:
    """What nearness of questions is judged by: without system turns, which many unlike questions may share."""
    return as_text([message for message in as_messages(question) if message["role"] != "system"])


def question_name(question: str) -> int:
    """64 bits that stand for a question, whatever its white space and case."""
    return _name(" ".join(question.casefold().split()).encode("utf-8"))


def answer_name(answer: str) -> int:
    """64 bits that stand for an answer, whatever white space is around it."""
    return _name(answer.strip().encode("utf-8"))


def _name(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def shown(text: str) -> str:
    """A text as examples hold it: its beginning, where it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
