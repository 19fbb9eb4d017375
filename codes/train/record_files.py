"""A file of train records that is read once from end to end, and then here and there, without being held in memory."""

from array import array
from collections.abc import Iterator
from pathlib import Path

from codes.common.records import InputError, parse_record


class RecordFile:
    """Where each record of a JSONL file stands; ``file[place]`` reads one, places count from 0 as a reader sees them.

    Holds 12 bytes a record. Raises InputError where the file cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        self._starts, self._lines = array("q"), array("i")
        offset = 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._starts.append(offset)
                        self._lines.append(number)
                    offset += len(line)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> dict:
        with open(self.path, "rb") as file:
            file.seek(self._starts[place])
            return parse_record(file.readline())

    @property
    def name(self) -> str:
        return Path(self.path).name

    def line_number(self, place: int) -> int:
        """The record's line in the file, from 1."""
        return self._lines[place]

    def lines(self) -> Iterator[bytes]:
        """The records' lines as they stand in the file, one after another."""
        with open(self.path, "rb") as file:
            yield from (line for line in file if line.strip())
