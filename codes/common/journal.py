"""A keyed, append-only journal: a synced JSONL line per outcome, found again by key without holding texts in memory.

The first line says which configuration the journal belongs to. Every other line is an object with ``key`` (what the
outcome is for) and ``request`` (a hash of what was asked); a later line for the same pair replaces an earlier one.
"""

import asyncio
import errno
import fcntl
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from codes.common.append_only import AppendOnlyFile
from codes.common.records import FieldError, InputError, parse_record, to_json
from codes.common.run_info import configuration_difference

logger = logging.getLogger(__name__)

VERSION = 1
_START = b'{"journal": '


class Journal:
    """The journal at ``path``, locked for this process until closed.

    ``seen`` is called with every outcome that is there already, and raises FieldError for one that is none. With
    ``read_only`` nothing is locked, created or cut: a journal that another process is writing can be looked at, and an
    absent one is empty.
    Raises InputError where the file is no journal, is damaged, belongs to another configuration (naming the first
    difference), or is in use by another process; nothing is changed then. A torn last line is cut off.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        configuration: dict,
        *,
        seen: Callable[[dict], None] = lambda record: None,
        read_only: bool = False,
    ):
        self.path = Path(path)
        self._seen = seen
        self._file: AppendOnlyFile | None = None
        self._offsets = OffsetTable(lambda offset: fingerprint(*_pair(self._read(offset))))
        self._waiting: list[tuple[dict, asyncio.Future]] = []  # for the next sync
        self._committing: asyncio.Task | None = None
        if read_only:
            self._handle = os.open(self.path if self.path.exists() else os.devnull, os.O_RDONLY)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not read_only:
                self._lock()
            self._refuse_other_files()
            if not read_only:
                self._file = AppendOnlyFile(self.path)
            self._open(configuration)
        except BaseException:
            os.close(self._handle)
            raise

    def find(self, key: str, request: str) -> dict | None:
        """The latest record for this key and request."""
        return self.find_fingerprint(fingerprint(key, request))

    def find_fingerprint(self, wanted: bytes) -> dict | None:
        """The latest record whose key and request have this ``fingerprint``."""
        offset = self._offsets.find(wanted)
        return None if offset is None else self._read(offset)

    def append(self, *records: dict) -> None:
        """Add records with their ``key`` and ``request``; they are on disk when this returns."""
        lines = [_line(record) for record in records]
        self._index(records, lines, self._write(b"".join(lines)))

    async def commit(self, record: dict) -> None:
        """As ``append``, without holding up the event loop: what comes while others are synced shares the next sync.

        A caller that is cancelled leaves its record to be written.
        """
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((record, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_waiting())
        await done

    async def settle(self) -> None:
        """Wait until all that was given to ``commit`` is on disk; the event loop may end then."""
        if self._committing is not None:
            await asyncio.wait([self._committing])

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                records = [record for record, _ in batch]
                lines = [_line(record) for record in records]
                problem = None
                try:
                    offset = await asyncio.to_thread(self._write, b"".join(lines))
                    self._index(records, lines, offset)
                except OSError as error:
                    problem = error
                for _, done in batch:
                    if done.done():  # its caller was cancelled
                        continue
                    if problem is None:
                        done.set_result(None)
                    else:
                        done.set_exception(problem)
        finally:
            self._committing = None

    def _write(self, data: bytes) -> int:
        """Append whole lines with one sync; returns where they start."""
        offset = os.fstat(self._handle).st_size
        try:
            self._file.append_lines(data)
        except OSError:
            os.ftruncate(self._handle, offset)  # nothing may follow a line that was written in part
            raise
        return offset

    def _index(self, records: Iterable[dict], lines: Iterable[bytes], offset: int) -> None:
        for record, line in zip(records, lines):
            self._offsets.put(fingerprint(*_pair(record)), offset)
            offset += len(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        os.close(self._handle)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path}: another process is writing to this journal; wait until it ends") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning("%s: this file system has no locks; do not run the same output twice at once", self.path)

    def _refuse_other_files(self) -> None:
        """A file that does not start as a journal does is someone else's: opening it would cut its last line."""
        start = os.pread(self._handle, len(_START), 0)
        if not _START.startswith(start):
            raise InputError(f"{self.path}: is not a journal of construction; move it away or choose another output")

    def _open(self, configuration: dict) -> None:
        lines = self._lines()
        header = next(lines, None)
        if header is None:
            if self._file is not None:
                self._file.append({"journal": VERSION, "configuration": configuration})
            return
        self._check_header(header, configuration)
        offset = len(header)
        for number, line in enumerate(lines, start=2):
            try:
                record = parse_record(line)
                self._offsets.put(fingerprint(*_pair(record)), offset)
                self._seen(record)
            except FieldError as error:
                raise InputError(
                    f"{self.path}:{number}: the journal is damaged ({error}); remove this line to ask again for it"
                ) from None
            offset += len(line)

    def _lines(self) -> Iterator[bytes]:
        """The whole lines; a last one that another process is just writing does not count."""
        with open(self._handle, "rb", closefd=False) as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def _check_header(self, line: bytes, configuration: dict) -> None:
        try:
            header = parse_record(line)
        except FieldError as error:
            raise InputError(f"{self.path}:1: the journal is damaged ({error})") from None
        if header.get("journal") != VERSION or not isinstance(header.get("configuration"), dict):
            raise InputError(f"{self.path}:1: field 'journal': this version reads journals of version {VERSION}")
        if difference := configuration_difference(header["configuration"], json.loads(to_json(configuration))):
            raise InputError(
                f"{self.path}: made with another configuration ({difference}); choose another output or remove it"
            )

    def _read(self, offset: int, block: int = 1 << 13) -> dict:
        data = b""
        while not data.endswith(b"\n"):
            more = os.pread(self._handle, block, offset + len(data))
            if not more:
                raise InputError(f"{self.path}: the journal was shortened while it was in use")
            end = more.find(b"\n")
            data += more if end < 0 else more[: end + 1]
        return json.loads(data)


def _pair(record: dict) -> tuple[str, str]:
    for field in ("key", "request"):
        if not isinstance(record.get(field), str):
            raise FieldError(field, "is missing or not a string")
    return record["key"], record["request"]


def _line(record: dict) -> bytes:
    return (to_json(record) + "\n").encode("utf-8")


def fingerprint(key: str, request: str) -> bytes:
    """32 bytes that stand for a key and a request."""
    return hashlib.sha256(f"{key}\0{request}".encode()).digest()


class OffsetTable:
    """From fingerprints to file offsets in 16 bytes a slot: open addressing over two arrays.

    A slot holds the first 8 bytes of the fingerprint; where those agree, ``fingerprint_at`` (offset -> whole
    fingerprint) decides, so two keys are never taken for each other.
    """

    def __init__(self, fingerprint_at: Callable[[int], bytes], slots: int = 1024):
        self._fingerprint_at = fingerprint_at
        self._count = 0
        self._allocate(slots)

    def __len__(self) -> int:
        return self._count

    def find(self, fingerprint: bytes) -> int | None:
        offset = self._offsets[self._slot(fingerprint)]
        return offset - 1 if offset else None

    def put(self, fingerprint: bytes, offset: int) -> None:
        slot = self._slot(fingerprint)
        if not self._offsets[slot]:
            self._count += 1
        self._short[slot], self._offsets[slot] = _short(fingerprint), offset + 1  # 0 marks an empty slot
        if self._count * 3 > len(self._short) * 2:
            self._grow()

    def _slot(self, fingerprint: bytes) -> int:
        """Where the fingerprint is, or the empty slot where it would go."""
        short, mask = _short(fingerprint), len(self._short) - 1
        slot = short & mask
        while self._offsets[slot]:
            if self._short[slot] == short and self._fingerprint_at(self._offsets[slot] - 1) == fingerprint:
                break
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = zip(self._short, self._offsets)  # walks the arrays themselves: a list of them would be the peak of memory
        self._allocate(2 * len(self._short))
        mask = len(self._short) - 1
        for short, offset in old:
            if not offset:
                continue
            slot = short & mask
            while self._offsets[slot]:
                slot = (slot + 1) & mask
            self._short[slot], self._offsets[slot] = short, offset

    def _allocate(self, slots: int) -> None:
        self._short, self._offsets = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))


def _short(fingerprint: bytes) -> int:
    return int.from_bytes(fingerprint[:8], "big")
