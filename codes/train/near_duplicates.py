"""Near-duplicates among many texts: MinHash of word shingles, banded, and every pair verified exactly.

Two texts are as alike as the Jaccard similarity of their sets of word shingles (Broder 1997). The smallest hash over a
set is the same for two sets with just that probability, so ``rows`` such hashes together are the same with similarity
to the power of ``rows``; texts that agree in one of several ``bands`` of them are candidates (locality-sensitive
hashing: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). Candidates are compared on their
shingles, so what is reported is true; what is missed is known by ``miss_probability``.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

import numpy as np

HASHES = 128  # of a signature, at most
MOST_MISSES = 0.01  # of the pairs whose similarity is the threshold itself
SHINGLES_AT_A_TIME = 4096
# Buckets of candidates up to this size are compared pair by pair; in larger ones each text is compared with so many
# representatives of what the bucket holds, or of the other side.
WHOLE_BUCKET = 64
CACHED_TEXTS = 4096

# Words and numbers; Chinese and Japanese characters and Korean syllables, which no spaces part, one by one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order; signs are no words."""
    return _WORD.findall(text.casefold())


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """The runs of ``size`` words; a text of fewer words is one shingle, and one without any is its own."""
    found = words(text) or [text.strip()]
    return frozenset(tuple(found[start : start + size]) for start in range(max(1, len(found) - size + 1)))


def jaccard(one: frozenset, other: frozenset) -> float:
    """The share of two non-empty sets' members that both have."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, rows): the most rows, so the fewest candidates in vain, that miss few enough pairs at the threshold."""
    for rows in range(HASHES, 1, -1):
        if miss_probability(threshold, HASHES // rows, rows) <= MOST_MISSES:
            return HASHES // rows, rows
    return HASHES, 1


def miss_probability(similarity: float, bands: int, rows: int) -> float:
    """How likely two texts of this similarity agree in no band."""
    return (1 - similarity**rows) ** bands


class MinHash:
    """``signer(text)`` gives one key a band, uint32 [bands]; texts that share one are candidates."""

    def __init__(self, threshold: float, size: int, *, seed: int):
        self.bands, self.rows = banding(threshold)
        self.size = size
        generator = np.random.default_rng([seed, size])
        full = np.iinfo(np.uint64).max
        count = self.bands * self.rows
        self._factors, self._terms = generator.integers(0, full, (2, count), np.uint64, endpoint=True)
        self._factors |= np.uint64(1)
        self._weights = generator.integers(0, full, (self.bands, self.rows), np.uint64, endpoint=True) | np.uint64(1)

    def __call__(self, text: str) -> np.ndarray:
        hashes = self._shingle_hashes(text)
        smallest = np.full(self.bands * self.rows, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(hashes), SHINGLES_AT_A_TIME):
            # Multiply-shift: the upper halves of a random line through each hash are as good as drawn anew.
            part = hashes[start : start + SHINGLES_AT_A_TIME, None] * self._factors + self._terms
            np.minimum(smallest, (part >> np.uint64(32)).min(0), out=smallest)
        keys = (smallest.reshape(self.bands, self.rows) * self._weights).sum(1, dtype=np.uint64)
        return (_mixed(keys) >> np.uint64(32)).astype(np.uint32)

    def _shingle_hashes(self, text: str) -> np.ndarray:
        found = words(text) or [text.strip()]
        of_words = np.fromiter(map(_word_hash, found), np.uint64, len(found))
        count = max(1, len(found) - self.size + 1)
        hashes = np.zeros(count, np.uint64)
        for place in range(min(self.size, len(found))):
            hashes = _mixed(hashes * _ODD + of_words[place : place + count])
        return hashes


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value: the finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# --- From keys to pairs --------------------------------------------------------------------------------------------


@dataclass
class NearDuplicates:
    """Verified pairs (first, second, similarity), first below second; and what was looked at to find them.

    Within a side pairs connect clusters: two texts that are connected already are not compared again.
    """

    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    compared: int = 0
    large_buckets: int = 0

    def clusters(self) -> list[list[int]]:
        """The texts that pairs connect, each cluster in order, largest first."""
        roots = _Roots()
        for first, second, _ in self.pairs:
            roots.join(first, second)
        found: dict[int, list[int]] = {}
        for text in sorted({text for pair in self.pairs for text in pair[:2]}):
            found.setdefault(roots.of(text), []).append(text)
        return sorted(found.values(), key=lambda cluster: (-len(cluster), cluster))


def near_duplicates(
    keys: np.ndarray,
    sides: Sequence[int],
    text_of: Callable[[int], str],
    *,
    threshold: float,
    size: int,
    counts: Callable[[int, int], bool] = lambda first, second: True,
) -> NearDuplicates:
    """Pairs of distinct texts that are at least ``threshold`` alike.

    keys: uint32 [texts, bands], as ``MinHash`` gives them; sides: [texts], 0 or 1, such as training and evaluation.
    Within a side the pairs connect what is alike; across sides all candidates are compared, so every text that has a
    near-duplicate on the other side is in a pair (but for large buckets, see ``WHOLE_BUCKET``). Two texts for which
    ``counts(first, second)`` does not hold are no pair, and connect nothing.
    """
    search = _Search(np.asarray(sides), text_of, threshold, size, counts)
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(column[order]) != 0])
        ends = np.r_[starts[1:], len(order)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1]):
            search.look_through(order[start:end].tolist())
    search.found.pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return search.found


class _Search:
    def __init__(
        self,
        sides: np.ndarray,
        text_of: Callable[[int], str],
        threshold: float,
        size: int,
        counts: Callable[[int, int], bool],
    ):
        self.sides, self.threshold, self.counts = sides, threshold, counts
        self.found = NearDuplicates()
        self._shingles = lru_cache(maxsize=CACHED_TEXTS)(lambda text: shingles(text_of(text), size))
        self._roots = _Roots()
        self._alike: dict[tuple[int, int], bool] = {}

    def look_through(self, bucket: list[int]) -> None:
        if len(bucket) <= WHOLE_BUCKET:
            for first, second in combinations(bucket, 2):
                self._compare(first, second)
            return
        self.found.large_buckets += 1
        one, other = ([text for text in bucket if self.sides[text] == side] for side in (0, 1))
        for texts in (one, other):
            representatives: list[int] = []
            for text in texts:
                if not any(self._compare(known, text) for known in representatives):
                    representatives = [*representatives, text][:WHOLE_BUCKET]
        for text in one:
            any(self._compare(text, known) for known in other[:WHOLE_BUCKET])
        for text in other:
            any(self._compare(text, known) for known in one[:WHOLE_BUCKET])

    def _compare(self, first: int, second: int) -> bool:
        """Whether the two are known to be alike, or connected by what is, after having compared them once."""
        first, second = sorted((first, second))
        within = self.sides[first] == self.sides[second]
        if within and self._roots.of(first) == self._roots.of(second):
            return True
        if (first, second) in self._alike:
            return self._alike[first, second]
        if not self.counts(first, second):
            return False
        self.found.compared += 1
        similarity = jaccard(self._shingles(first), self._shingles(second))
        self._alike[first, second] = alike = similarity >= self.threshold
        if alike:
            self.found.pairs.append((first, second, similarity))
        if alike and within:
            self._roots.join(first, second)
        return alike


class _Roots:
    """Disjoint sets of numbers, each known by one of its members."""

    def __init__(self):
        self._parents: dict[int, int] = {}

    def of(self, member: int) -> int:
        root = member
        while (parent := self._parents.get(root, root)) != root:
            root = parent
        while (parent := self._parents.get(member, member)) != root:
            self._parents[member], member = root, parent
        return root

    def join(self, one: int, other: int) -> None:
        one, other = self.of(one), self.of(other)
        self._parents[max(one, other)] = min(one, other)
