"""JSONL files that only grow, one whole, synced line at a time: journals, stores of scores, training logs."""

import errno
import os
from pathlib import Path

from codes.common.records import name_the_file, to_json


class AppendOnlyFile:
    """A JSONL file that only grows: every record is one write, synced before ``append`` returns.

    Opening it cuts a torn last line, which a killed process may have left, back to the last newline.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._handle, _end_of_last_line(self._handle))

    def append(self, record: dict) -> None:
        self.append_lines((to_json(record) + "\n").encode("utf-8"))

    def append_lines(self, data: bytes) -> None:
        """Add whole lines with one write and one sync."""
        try:
            if os.write(self._handle, data) != len(data):
                raise OSError(errno.ENOSPC, "the disk is full: a record could not be written whole")
            os.fsync(self._handle)
        except OSError as error:
            name_the_file(error, self._path)
            raise

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> "AppendOnlyFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _end_of_last_line(handle: int, block: int = 1 << 16) -> int:
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
