"""Texts that stand more than once, within a split and across splits, and preferences that contradict each other."""

from collections.abc import Callable, Sequence

import numpy as np

from codes.common.prompt_text import as_text
from codes.common.records import aligned_bias_types
from codes.train.inspected_records import EVAL, SIDES, TRAIN, InspectedRecords, answer_name, asked, shown
from codes.train.near_duplicates import NearDuplicates, near_duplicates

# What is compared: the column with its names, and the text of a record.
TEXTS: dict[str, Callable[[dict], str]] = {
    "question": lambda record: asked(record["question"]),
    "chosen": lambda record: record["chosen"],
}


class RepeatedTexts:
    """One kind of text of all records: which are the same, and which nearly so.

    ``leaking`` marks the records whose text, or nearly the same, stands in the other split, too: [records].
    """

    def __init__(self, records: InspectedRecords, kind: str, *, threshold: float, shingle_words: int):
        self.records, self.kind = records, kind
        names, sides = records.column(kind), records.sides
        # A text in both splits counts in each; texts are in the order in which they come up.
        in_split = names ^ (sides.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        _, first, distinct, times = np.unique(in_split, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first)
        self._first, self._times, self._distinct = first[order], times[order], np.argsort(order)[distinct]
        self._sides = sides[self._first]
        self.near = near_duplicates(
            records.column(f"{kind}_keys")[self._first],
            self._sides,
            lambda text: self._text(int(self._first[text])),
            threshold=threshold,
            size=shingle_words,
            counts=self._is_news,
        )
        in_both = np.isin(names[sides == TRAIN], names[sides == EVAL])
        self.same_across = np.zeros(len(records), bool)
        self.same_across[sides == TRAIN] = in_both
        self.same_across[sides == EVAL] = np.isin(names[sides == EVAL], names[sides == TRAIN])
        across = [text for pair in self._pairs(None) for text in pair[:2]]
        self.leaking = self.same_across | np.isin(self._distinct, across)

    def _is_news(self, first: int, second: int) -> bool:
        """Not the same text in both splits, and no two answers to one question."""
        one, other = self._first[[first, second]]
        names, questions = self.records.column(self.kind), self.records.column("question")
        return names[one] != names[other] and (self.kind == "question" or questions[one] != questions[other])

    def _text(self, record: int) -> str:
        return TEXTS[self.kind](self.records.record(record))

    def _pairs(self, side: int | None) -> list[tuple[int, int, float]]:
        """The near-duplicates within a side, or across (None)."""
        sides = self._sides
        return [p for p in self.near.pairs if (sides[p[0]] if sides[p[0]] == sides[p[1]] else None) == side]

    def figures(self, examples: int) -> dict:
        """Counts and examples within each split and across."""
        across = self._pairs(None)
        return {
            **{SIDES[side]: self._within(side, examples) for side in np.unique(self._sides).tolist()},
            "across": {
                "train_records_same": int(self.same_across[self.records.sides == TRAIN].sum()),
                "train_records_same_or_near": int(self.leaking[self.records.sides == TRAIN].sum()),
                "eval_records_same": int(self.same_across[self.records.sides == EVAL].sum()),
                "eval_records_same_or_near": int(self.leaking[self.records.sides == EVAL].sum()),
                "same": self._same_across_examples(examples),
                "near": [self._example(pair) for pair in across[:examples]],
            },
            "pairs_compared": self.near.compared,
            "large_buckets": self.near.large_buckets,
        }

    def _within(self, side: int, examples: int) -> dict:
        times = np.where(self._sides == side, self._times, 0)
        pairs = self._pairs(side)
        clusters = NearDuplicates(pairs).clusters()
        often = [text for text in np.argsort(-times, kind="stable")[:examples] if times[text] > 1]
        return {
            "records": int(times.sum()),
            "distinct": int((times > 0).sum()),
            "repeating_records": int(np.maximum(times - 1, 0).sum()),
            "near_clusters": len(clusters),
            "texts_in_near_clusters": sum(map(len, clusters)),
            "most_repeated": [
                {
                    "times": int(times[text]),
                    "text": shown(self._text(int(self._first[text]))),
                    "first": self.records.where(int(self._first[text])),
                }
                for text in often
            ],
            "near": [self._example(pair) for pair in pairs[:examples]],
        }

    def _example(self, pair: tuple[int, int, float]) -> dict:
        first, second = (int(self._first[text]) for text in pair[:2])
        return {
            "similarity": pair[2],
            "texts": [shown(self._text(number)) for number in (first, second)],
            "where": [self.records.where(number) for number in (first, second)],
        }

    def _same_across_examples(self, examples: int) -> list[dict]:
        names, sides = self.records.column(self.kind), self.records.sides
        found = []
        for number in np.flatnonzero(self.same_across & (sides == TRAIN))[:examples].tolist():
            other = int(np.flatnonzero((names == names[number]) & (sides == EVAL))[0])
            where = [self.records.where(number), self.records.where(other)]
            found.append({"text": shown(self._text(number)), "where": where})
        return found


# --- Contradictions ------------------------------------------------------------------------------------------------


class Contradictions:
    """Preferences over the same two answers to one question that do not agree, and answers that stand on both sides.

    ``opposed``, ``chosen_in_own_rejected`` and ``repeated_groups`` mark records: [records].
    """

    def __init__(self, records: InspectedRecords):
        self.records = records
        questions, chosen = records.column("question"), records.column("chosen")
        rejected = records.column("rejected_names")
        self._record_of = np.repeat(np.arange(len(records)), records.column("rejected"))
        questions, chosen = questions[self._record_of], chosen[self._record_of]
        own = chosen == rejected
        self.chosen_in_own_rejected = _marked(len(records), self._record_of[own])
        # One number for question and unordered answers; which of the two is chosen tells the direction.
        low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
        pair = _joined(questions, low, high)
        first_chosen = chosen < rejected
        pair, first_chosen, of_record = pair[~own], first_chosen[~own], self._record_of[~own]
        both_ways = np.intersect1d(pair[first_chosen], pair[~first_chosen])
        opposed = np.isin(pair, both_ways)
        self.opposed = _marked(len(records), of_record[opposed])
        self._examples = self._one_each_way(pair, first_chosen, of_record, both_ways)
        self.opposed_pairs = len(both_ways)
        directed = _joined(pair, first_chosen.astype(np.uint64), np.uint64(0))
        self.repeated_pairs = len(directed) - len(np.unique(directed))
        as_chosen = _joined(questions, chosen, np.uint64(1))
        as_rejected = _joined(questions, rejected, np.uint64(1))
        self.both_roles = len(np.intersect1d(as_chosen, as_rejected[~own]))
        self.repeated_groups = np.ones(len(records), bool)
        self.repeated_groups[np.unique(records.column("group"), return_index=True)[1]] = False

    @staticmethod
    def _one_each_way(pair, first_chosen, of_record, both_ways) -> list[tuple[int, int]]:
        order = np.argsort(pair[first_chosen], kind="stable"), np.argsort(pair[~first_chosen], kind="stable")
        sides = (
            (pair[first_chosen][order[0]], of_record[first_chosen][order[0]]),
            (
                pair[~first_chosen][order[1]],
                of_record[~first_chosen][order[1]],
            ),
        )
        found = [numbers[np.searchsorted(names, both_ways)] for names, numbers in sides]
        return sorted((min(one, other), max(one, other)) for one, other in zip(*(part.tolist() for part in found)))

    def figures(self, examples: int) -> dict:
        return {
            "opposed_pairs": self.opposed_pairs,
            "records_with_opposed_pairs": int(self.opposed.sum()),
            "answers_chosen_and_rejected": self.both_roles,
            "records_whose_chosen_is_rejected": int(self.chosen_in_own_rejected.sum()),
            "repeated_pairs": self.repeated_pairs,
            "repeated_records": int(self.repeated_groups.sum()),
            "opposed": [self._opposed_example(*pair) for pair in self._examples[:examples]],
            "own": [self._own_example(number) for number in np.flatnonzero(self.chosen_in_own_rejected)[:examples]],
        }

    def _opposed_example(self, one: int, other: int) -> dict:
        """Two records of one question that rank two answers the other way round."""
        records = [self.records.record(number) for number in (one, other)]
        return {
            "question": shown(as_text(records[0]["question"])),
            "answers": [shown(record["chosen"]) for record in records],
            "bias_types": [
                _bias_of(record, answer_name(rival["chosen"])) for record, rival in zip(records, records[::-1])
            ],
            "where": [self.records.where(number) for number in (one, other)],
        }

    def _own_example(self, number: int) -> dict:
        record = self.records.record(int(number))
        name = answer_name(record["chosen"])
        return {
            "question": shown(as_text(record["question"])),
            "answer": shown(record["chosen"]),
            "bias_type": _bias_of(record, name),
            "where": self.records.where(int(number)),
        }


def _bias_of(record: dict, name: int) -> str | None:
    """The bias type under which a record rejects an answer."""
    answers = zip(record["rejected"], aligned_bias_types(record))
    return next((bias for answer, bias in answers if answer_name(answer) == name), None)


def _joined(*parts: np.ndarray) -> np.ndarray:
    """One 64-bit number for several, so different that chance does not matter."""
    joined = np.zeros_like(parts[0])
    for part in parts:
        joined = (joined ^ part) * np.uint64(0x9E3779B97F4A7C15)
        joined ^= joined >> np.uint64(29)
        joined *= np.uint64(0xBF58476D1CE4E5B9)
        joined ^= joined >> np.uint64(32)
    return joined


def _marked(length: int, places: Sequence[int]) -> np.ndarray:
    marks = np.zeros(length, bool)
    marks[places] = True
    return marks
