"""One part of an input: rows are dealt out by a hash of their id, so their order and their neighbours do not matter."""

import hashlib
import re
from dataclasses import dataclass

from codes.common.records import InputError


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "i/n". Raises InputError for anything else."""
        found = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise InputError(f"--shard {text}: expected i/n with i from 1 to n")
        return cls(int(found[1]), int(found[2]))

    def number_of(self, row_id: str) -> int:
        """The number of the part that the row belongs to."""
        return int.from_bytes(hashlib.sha256(row_id.encode("utf-8")).digest()[:8], "big") % self.count + 1

    def holds(self, row_id: str) -> bool:
        return self.number_of(row_id) == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
