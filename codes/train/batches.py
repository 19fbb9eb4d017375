"""Which groups make up which batch: files mixed by weight, batches of so many groups or tokens, dealt out to ranks.

An *epoch's batches* depend on the data, the seed and the epoch alone. Step s of an epoch takes those from s * b up to
(s + 1) * b, with b = ranks * accumulation steps, so every rank takes the same number of forwards, and a run that is
continued with other ranks but the same product b goes on with exactly the groups that no rank has seen yet: skipping
whole steps skips the same groups at any world size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from codes.common.prefix_sharing import BatchLayout
from codes.train.tokenized_data import TokenizedFile
from codes.train.training_data import DataCounts, EncodedGroup

FILLER = -1  # The index of a group that only keeps a rank busy; it counts for nothing.
# Batches of similar lengths are formed among this share of the groups, and among no more than so many: enough to find
# alike ones, few enough that they differ by epoch.
SORTED_SHARE, SORTED_GROUPS = 1 / 8, 2048


@dataclass(frozen=True)
class GroupSizes:
    """What groups take up in a batch, int64 [groups]: a batch computes the sum of their rows by its widest group."""

    rows: np.ndarray
    width: np.ndarray

    @cached_property
    def tokens(self) -> np.ndarray:
        """The tokens of each group in a batch of its own."""
        return self.rows * self.width


@dataclass(frozen=True)
class EpochOrder:
    """The groups of an epoch in the order they are drawn.

    file_sizes: the groups of each file; weights: how much of each file an epoch holds. A weight's whole part is how
    often every group comes up; its fraction is a subset of that share, drawn anew each epoch. An epoch so always has
    the same number of groups, at least one of every file. Without a seed the order is the data's, and a fraction is
    the file's first groups.
    """

    file_sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int | None = None

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many groups of each file an epoch holds."""
        return tuple(max(1, round(size * weight)) for size, weight in zip(self.file_sizes, self.weights))

    def __len__(self) -> int:
        return sum(self.counts)

    def __call__(self, epoch: int) -> np.ndarray:
        """Group indices, int64 [groups of an epoch]."""
        parts, start = [], 0
        for place, (size, count) in enumerate(zip(self.file_sizes, self.counts)):
            whole, rest = divmod(count, size)
            drawn = np.arange(size)
            if self.seed is not None and rest:
                drawn = np.random.default_rng([self.seed, epoch, place]).permutation(size)
            parts += [start + np.tile(np.arange(size), whole), start + drawn[:rest]]
            start += size
        groups = np.concatenate(parts)
        return groups if self.seed is None else np.random.default_rng([self.seed, epoch]).permutation(groups)


class GroupDataset(Dataset):
    """The groups of all files one after another; ``FILLER`` gives the one of the fewest tokens under that index.

    weights: how much of each file an epoch holds, see ``EpochOrder``; all of each where none are given.
    """

    def __init__(self, files: Sequence[TokenizedFile], weights: Sequence[float] | None = None):
        self.files = files
        self.weights = tuple(weights or [1.0] * len(files))
        self._starts = np.cumsum([0, *map(len, files)])
        shortest = int(np.concatenate([file.tokens for file in files]).argmin())
        self._filler = replace(self[shortest], index=FILLER)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> EncodedGroup:
        if index == FILLER:
            return self._filler
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.files[file].group(index - int(self._starts[file]), index)

    @property
    def counts(self) -> DataCounts:
        """What all files together hold, and what was left out and cut."""
        counts = DataCounts()
        for file in self.files:
            counts.add(file.counts)
        return counts

    def order(self, seed: int | None) -> EpochOrder:
        return EpochOrder(tuple(map(len, self.files)), self.weights, seed)

    def sizes(self, layout: BatchLayout) -> GroupSizes:
        """What each group takes up in a batch that ``layout`` makes."""
        columns = ("answers", "tokens", "longest", "prefix")
        return GroupSizes(*layout.sizes(*(np.concatenate([getattr(file, c) for file in self.files]) for c in columns)))


@dataclass(frozen=True)
class BatchesOfGroups:
    """An epoch's order cut into batches of ``batch_size`` groups; the last one may be smaller, or is left out."""

    order: EpochOrder
    batch_size: int
    drop_last: bool = False

    def __len__(self) -> int:
        return len(self.order) // self.batch_size if self.drop_last else -(-len(self.order) // self.batch_size)

    def __call__(self, epoch: int) -> list[list[int]]:
        order = self.order(epoch)
        return [order[place : place + self.batch_size].tolist() for place in range(0, len(order), self.batch_size)]


class BatchesOfTokens:
    """An epoch's groups in batches of similar lengths, each of at most ``budget`` tokens as the model computes them.

    Padding counts. A group that alone exceeds the budget is a batch of its own. Every epoch has as many batches as the
    one that needs most among those that are trained on (so many ``epochs``, or as many as so many ``batches`` need, if
    that is not 0): others divide some of theirs. So all epochs take as many steps. With a seed the order of the
    batches is random; without, groups stay in the data's order.
    """

    def __init__(self, order: EpochOrder, sizes: GroupSizes, budget: int, epochs: int = 1, batches: int = 0):
        self.order, self.sizes, self.budget = order, sizes, budget
        self.number = len(self._filled(0))
        epochs = -(-batches // self.number) if batches else epochs
        self.number = max([self.number, *(len(self._filled(epoch)) for epoch in range(1, epochs))])

    def __len__(self) -> int:
        return self.number

    def __call__(self, epoch: int) -> list[list[int]]:
        batches = self._filled(epoch)
        # Any batch that holds two groups can be divided, and there are at least as many groups as batches.
        while len(batches) < self.number:
            largest = max(range(len(batches)), key=lambda place: len(batches[place]))
            half = len(batches[largest]) // 2
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
        if self.order.seed is None:
            return batches
        places = np.random.default_rng([self.order.seed, epoch, 1]).permutation(len(batches))
        return [batches[place] for place in places]

    def _filled(self, epoch: int) -> list[list[int]]:
        order = self.order(epoch)
        if self.order.seed is not None:
            together = min(SORTED_GROUPS, math.ceil(len(order) * SORTED_SHARE))
            windows = np.split(order, range(together, len(order), together))
            order = np.concatenate([part[np.argsort(-self.sizes.tokens[part], kind="stable")] for part in windows])
        batches, rows, width = [], 0, 0
        for group, more, wide in zip(order.tolist(), self.sizes.rows[order].tolist(), self.sizes.width[order].tolist()):
            if not batches or (rows + more) * max(width, wide) > self.budget:
                batches.append([])
                rows = width = 0
            batches[-1].append(group)
            rows, width = rows + more, max(width, wide)
        return batches


class GroupBatchSampler(Sampler[list[int]]):
    """One rank's batches of ``epoch``: every group of it once over all ranks, and as many forwards on each.

    Where the last ones do not go round, the ranks without get a ``FILLER``: under ZeRO-3 a rank that ran fewer
    forwards would hang the others.
    """

    def __init__(self, batches: BatchesOfGroups | BatchesOfTokens, *, rank: int = 0, world_size: int = 1):
        self.batches, self.rank, self.world_size = batches, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.batches(self.epoch)
        for forward in range(len(self)):
            place = forward * self.world_size + self.rank
            yield batches[place] if place < len(self.batches) else [FILLER]


@dataclass(frozen=True)
class BatchGroups:
    """Which groups a batch holds, each entry a group: ``group_sizes`` is an int64 CPU tensor [groups]; characters are
    given per answer, bias types per rejected answer. ``ratings`` are float64 [answers of all groups, objectives], NaN
    where there is none.
    """

    indices: list[int]
    group_sizes: torch.Tensor
    answer_characters: list[tuple[int, ...]]
    bias_types: list[tuple[str, ...]]
    ratings: torch.Tensor

    @property
    def counted(self) -> int:
        """The number of groups that are no filler."""
        return sum(index != FILLER for index in self.indices)


@dataclass(frozen=True)
class GroupCollator:
    """Groups -> ``inputs``, what ``RewardModel.forward`` takes as ``layout`` puts it, and ``groups``."""

    layout: BatchLayout

    def __call__(self, groups: Sequence[EncodedGroup]) -> dict:
        return {
            "inputs": self.layout([group.answers for group in groups]),
            "groups": BatchGroups(
                indices=[group.index for group in groups],
                group_sizes=torch.tensor([len(group.answers) for group in groups]),
                answer_characters=[group.answer_characters for group in groups],
                bias_types=[group.bias_types for group in groups],
                ratings=_ratings(groups),
            ),
        }


def _ratings(groups: Sequence[EncodedGroup]) -> torch.Tensor:
    rows = [[math.nan if rating is None else rating for rating in row] for group in groups for row in group.ratings]
    return torch.tensor(rows, dtype=torch.float64)
