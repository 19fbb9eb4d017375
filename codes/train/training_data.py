"""Train records -> encoded groups, with everything that was left out or cut on the way counted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from codes.common.conversation import encode_group
from codes.common.prefix_sharing import common_prefix_length
from codes.common.records import (
    CHOSEN_IS_BEST,
    InputError,
    aligned_bias_types,
    iter_train_records,
    rewards_of,
    to_json,
)

LARGEST_WEIGHT = 1000  # of a file: every group of it so often an epoch
OTHER_PROMPT = "other_prompt"  # The bias type of a rejected answer that is the chosen one of another prompt.


@dataclass
class DataCounts:
    """How many records, answers and tokens were used, left out or cut."""

    records: int = 0
    left_out_by_verification: dict[str, int] = field(default_factory=dict)
    rejected_by_bias_type: dict[str, int] = field(default_factory=dict)
    dropped_answers_equal_to_chosen: int = 0
    dropped_groups_without_rejected: int = 0
    groups: int = 0
    rejected_answers: int = 0
    conversations_with_cut_prompt: int = 0
    conversations_with_cut_answer: int = 0
    cut_prompt_tokens: int = 0
    cut_answer_tokens: int = 0
    tokens: int = 0
    rated_pairs: dict[str, int] = field(default_factory=dict)
    groups_without_rated_pair: int = 0

    def add(self, other: "DataCounts") -> None:
        """Add the counts of other records to these."""
        for item in fields(self):
            mine, others = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, dict):
                mine.update({name: mine.get(name, 0) + count for name, count in others.items()})
            else:
                setattr(self, item.name, mine + others)

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class EncodedGroup:
    """One question's answers as token ids, the chosen one first; at least one rejected answer.

    ``bias_types`` has an entry a rejected answer, one fewer than the others; ``index`` is the group's place in its
    data set. ``ratings`` has an entry an answer: its rating by each objective, None where there is none.
    """

    index: int
    answers: tuple[list[int], ...]
    answer_characters: tuple[int, ...]
    bias_types: tuple[str, ...]
    ratings: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True)
class EncodingSettings:
    """What, besides tokenizer and template, decides which records become groups and what these hold."""

    max_length: int
    first_rejected_only: bool = False
    keep_unverified: bool = False
    verified_only: bool = False
    in_batch_negatives: int = 0
    seed: int = 0  # of the draw of in-batch negatives
    objectives: tuple[str, ...] = ()  # those whose ratings are read


@dataclass(frozen=True)
class WeightedFile:
    """A training file and the share of its groups that an epoch holds: 0.3 is 30% of them, 2 is each twice."""

    path: str
    weight: float = 1.0


def weighted_file(text: str) -> WeightedFile:
    """``a.jsonl`` or ``a.jsonl:0.3``. A file whose own name ends like a weight is taken by its name.

    Raises InputError for a weight that is not above 0 and at most ``LARGEST_WEIGHT``.
    """
    path, colon, number = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return WeightedFile(text)
    try:
        weight = float(number)
    except ValueError:
        return WeightedFile(text)
    if not 0 < weight <= LARGEST_WEIGHT:
        raise InputError(
            f"--train_data_path {text}: the weight of a file must be a number above 0, at most {LARGEST_WEIGHT}"
        )
    return WeightedFile(path, weight)


def usable_records(path: str, settings: EncodingSettings, counts: DataCounts) -> Iterator[dict]:
    """Stream a file's records, without those that verification did not find ``CHOSEN_IS_BEST``.

    What was read and left out is added to ``counts``. Raises InputError where a line is bad.
    """
    return (record for record in iter_train_records(path) if is_used(record, settings, counts))


def is_used(record: dict, settings: EncodingSettings, counts: DataCounts) -> bool:
    """Whether training uses the record: verification found ``CHOSEN_IS_BEST``, or there was none.

    ``keep_unverified`` keeps those with another outcome too; ``verified_only`` also leaves out those that were never
    verified. The record is added to ``counts``.
    """
    usable = {CHOSEN_IS_BEST} if settings.verified_only else {CHOSEN_IS_BEST, "absent"}
    left_out, biases = counts.left_out_by_verification, counts.rejected_by_bias_type
    outcome = record.get("verify_correctness", "absent")
    counts.records += 1
    if not settings.keep_unverified and outcome not in usable:
        left_out[outcome] = left_out.get(outcome, 0) + 1
        return False
    for bias in aligned_bias_types(record):
        biases[bias] = biases.get(bias, 0) + 1
    return True


def with_in_batch_negatives(records: Sequence[dict], per_group: int, seed: int) -> list[dict]:
    """The records, each with the chosen answers of ``per_group`` other questions as further rejected answers.

    Which ones depends on the seed and the record's place alone, so a group is the same on any rank and in any epoch,
    and its length is known when batches are made. Raises InputError where the data has too few questions.
    """
    questions = [to_json(record["question"]) for record in records]
    answers = dict(zip(questions, (record["chosen"] for record in records)))
    distinct = list(answers)
    if len(distinct) <= per_group:
        raise InputError(f"--in_batch_negatives: {per_group} need more than the data's {len(distinct)} questions")
    extended = []
    for index, record in enumerate(records):
        drawn = np.random.default_rng([seed, index]).choice(len(distinct), per_group + 1, replace=False)
        others = [answers[distinct[i]] for i in drawn if distinct[i] != questions[index]][:per_group]
        biases = [*aligned_bias_types(record), *[OTHER_PROMPT] * per_group]
        rewards = rewards_of(record, [*range(len(record["rejected"])), *[None] * per_group])
        extended.append({**record, "rejected": [*record["rejected"], *others], "bias_type": biases, **rewards})
    return extended


def encode_record(
    tokenizer: PreTrainedTokenizerBase, record: dict, settings: EncodingSettings, counts: DataCounts
) -> dict | None:
    """The record's row of the tokenized data, or None where no rejected answer is left; ``counts`` is added to.

    ``ids`` are those of all answers one after another, the chosen one's first, ``lengths`` and ``characters`` are per
    answer, ``bias_types`` per rejected answer, ``ratings`` those of each answer by every objective one answer after
    another, and ``prefix`` counts the tokens that all answers begin with. A rejected answer whose ids equal the chosen
    one's, as truncation can make them, teaches nothing: it is dropped and counted, and so is a group that has none
    left. Raises InputError where the template refuses the record, naming it.
    """
    texts = [record["chosen"], *record["rejected"][: 1 if settings.first_rejected_only else None]]
    try:
        chosen, *rejected = encode_group(tokenizer, record["question"], texts, settings.max_length)
    except InputError as error:
        raise InputError(f"record {record['id']!r}: {error}" if "id" in record else str(error)) from None
    ratings = _ratings(record, settings.objectives)
    kept = [(chosen, texts[0], "", ratings[0])]
    answers = zip(rejected, texts[1:], aligned_bias_types(record), ratings[1:])
    kept += [answer for answer in answers if answer[0].ids != chosen.ids]
    counts.dropped_answers_equal_to_chosen += len(texts) - len(kept)
    if len(kept) == 1:
        counts.dropped_groups_without_rejected += 1
        return None
    encodings, texts, biases, ratings = zip(*kept)
    for encoding in encodings:
        counts.conversations_with_cut_prompt += encoding.prompt_cut > 0
        counts.conversations_with_cut_answer += encoding.answer_cut > 0
        counts.cut_prompt_tokens += encoding.prompt_cut
        counts.cut_answer_tokens += encoding.answer_cut
        counts.tokens += len(encoding.ids)
    counts.rejected_answers += len(kept) - 1
    counts.groups += 1
    _count_rated_pairs(ratings, settings.objectives, counts)
    return {
        "ids": [token for encoding in encodings for token in encoding.ids],
        "lengths": [len(encoding.ids) for encoding in encodings],
        "characters": [len(text) for text in texts],
        "bias_types": biases[1:],
        "ratings": [rating for of_answer in ratings for rating in of_answer],
        "prefix": common_prefix_length([encoding.ids for encoding in encodings]),
    }


def _ratings(record: dict, objectives: Sequence[str]) -> list[tuple[float | None, ...]]:
    """An entry an answer, the chosen one's first: its rating by each objective."""
    answers = 1 + len(record["rejected"])
    unrated = [None] * answers
    columns = [record.get("rewards", {}).get(name, unrated) for name in objectives]
    return [tuple(None if c[i] is None else float(c[i]) for c in columns) for i in range(answers)]


def _count_rated_pairs(
    ratings: Sequence[tuple[float | None, ...]], objectives: Sequence[str], counts: DataCounts
) -> None:
    """Add the pairs of answers that each objective rates differently, and a group that has none."""
    found = 0
    for name, column in zip(objectives, zip(*ratings)):
        pairs = sum(one != other for one, other in combinations([rating for rating in column if rating is not None], 2))
        counts.rated_pairs[name] = counts.rated_pairs.get(name, 0) + pairs
        found += pairs
    counts.groups_without_rated_pair += bool(objectives) and not found
