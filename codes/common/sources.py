"""Rows of a data set, whatever holds it: JSONL, JSON, Parquet or CSV files, folders of them, or the Hugging Face Hub.

Every row comes with where it stands (file and line, or file and row), so that errors can name it. One row (JSONL, CSV),
a few megabytes (JSON arrays, Parquet) or a memory-mapped cache (Hub) is held at a time. Nothing of a data set is ever
executed: only these formats are read, and Hub data sets that need their own code are refused.
"""

import csv
import datetime
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from codes.common.cli import RunFailed
from codes.common.records import FieldError, InputError, iter_jsonl, parse_record

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev", "eval", "filtered"}
# What our own commands and the datasets library write beside their data.
NOT_DATA = (
    "run_info.json",
    ".failures.jsonl",
    ".journal.jsonl",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)

Row = tuple[str, dict]

_JSON_CHUNK = 1 << 20
_JSON_WHITESPACE = " \t\r\n"
_LONGEST_JSON_ROW = 1 << 26


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine, read one after another."""

    paths: tuple[Path, ...]

    def rows(self) -> Iterator[Row]:
        for path in self.paths:
            yield from iter_file(path)


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face Hub, or in its local cache."""

    name: str
    split: str
    config: str | None = None
    revision: str | None = None

    @cached_property
    def dataset(self):
        return load_from_hub(self.name, self.split, self.config, self.revision)

    @property
    def version(self) -> str | None:
        """What the Hub's cache files the data under: the commit that they were taken from."""
        files = self.dataset.cache_files
        return Path(files[0]["filename"]).parent.name if files else None

    def rows(self) -> Iterator[Row]:
        for number, row in enumerate(self.dataset, start=1):
            where = f"{self.name}[{self.split}]: row {number}"
            yield where, _plain_row(row, where)


def find_source(source: str, split: str, config: str | None = None, revision: str | None = None):
    """What SOURCE names: a file, a folder (``LocalFiles``) or OWNER/NAME on the Hub (``HubDataset``).

    Raises InputError where it is none of these.
    """
    path = Path(source)
    if path.is_dir():
        return LocalFiles(tuple(find_files(path, split, config)))
    if path.is_file():
        if path.suffix not in DATA_SUFFIXES:
            raise InputError(f"{source}: the name ends in none of {', '.join(DATA_SUFFIXES)}")
        return LocalFiles((path,))
    if path.suffix in DATA_SUFFIXES or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise InputError(f"{source}: no such file or folder, and no OWNER/NAME of the Hub either")
    return HubDataset(source, split, config, revision)


def find_files(folder: Path, split: str, config: str | None = None) -> list[Path]:
    """The data files of one split in a folder, by name; else in its subfolder ``config``, else in ``data``.

    Files that name the split (``train-00000-of-00002.parquet``, ``length_train.jsonl``) are taken alone; where none
    names any split, all files are the train split.
    """
    places = [folder, *([folder / config] if config else []), folder / "data"]
    files = next((found for place in places if (found := _data_files(place))), [])
    if not files:
        raise InputError(f"{folder}: the folder holds no {', '.join(DATA_SUFFIXES)} file")
    exact = [path for path in files if re.sub(r"-\d+-of-\d+.*$", "", path.stem) == split]
    named = exact or [path for path in files if split in _name_parts(path)]
    if not named and split == "train":
        named = [path for path in files if not _name_parts(path) & SPLIT_NAMES]
    if not named:
        names = ", ".join(path.name for path in files[:5])
        raise InputError(f"{folder}: no file is of the split '{split}' (--split); found {names}")
    return named


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in DATA_SUFFIXES and not path.name.startswith(".") and not path.name.endswith(NOT_DATA)
    )


def _name_parts(path: Path) -> set[str]:
    return set(re.split(r"[-_.]", path.stem.lower()))


def iter_file(path: Path) -> Iterator[Row]:
    """Yield (where, row) of one file; its suffix says the format. Raises InputError naming file, line and field."""
    if path.suffix == ".parquet":
        rows = _iter_parquet(path)
    elif path.suffix == ".csv":
        rows = _iter_csv(path)
    elif path.suffix == ".json" and _starts_an_array(path):
        rows = _iter_json_array(path)
    else:
        rows = ((f"{path}:{number}", row) for number, row in iter_jsonl(path))
    found = False
    for where, row in rows:
        found = True
        yield where, row
    if not found:
        raise InputError(f"{path}: the file has no records")


def _starts_an_array(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _iter_json_array(path: Path) -> Iterator[Row]:
    """The objects of one JSON array, read in pieces that double only while one object does not fit."""
    number, position = 1, 0
    find_end = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8-sig") as file:
        text = _read(file, path, _JSON_CHUNK).lstrip()[1:]
        while True:
            position = _after_whitespace(text, position)
            if text[position : position + 1] == "]":
                rest = text[position + 1 :]
                while rest:
                    if rest.strip(_JSON_WHITESPACE):
                        raise InputError(f"{path}: after row {number - 1}: there is text after the array's end")
                    rest = _read(file, path, _JSON_CHUNK)
                return
            where = f"{path}: row {number}"
            try:
                end = find_end(text, position)[1]
            except (json.JSONDecodeError, RecursionError) as error:
                more = _read(file, path, max(_JSON_CHUNK, len(text) - position))
                if not more or len(text) - position > _LONGEST_JSON_ROW or isinstance(error, RecursionError):
                    raise InputError(f"{where}: invalid JSON: {error}") from None
                text, position = text[position:] + more, 0
                continue
            except ValueError:
                raise InputError(f"{where}: a whole number has too many digits") from None
            try:
                yield where, parse_record(text[position:end].encode("utf-8"))
            except FieldError as error:
                raise InputError(f"{where}: {error}") from None
            number += 1
            position = _after_whitespace(text, end)
            if position == len(text):
                text, position = _read(file, path, _JSON_CHUNK).lstrip(), 0
            if text[position : position + 1] == ",":
                position += 1
            elif text[position : position + 1] != "]":
                raise InputError(f"{path}: after row {number - 1}: expected ',' or the array's end")


def _read(file, path: Path, size: int) -> str:
    try:
        return file.read(size)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: invalid UTF-8: {error.reason}") from None


def _after_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in _JSON_WHITESPACE:
        position += 1
    return position


def _iter_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}: row {number}"
                    yield where, _plain_row(row, where)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: after row {number}: not readable as Parquet: {_first_line(error)}") from None


def _iter_csv(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header; a cell that holds a JSON list of {role, content} messages becomes that list."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        line = 1
        try:
            header = reader.fieldnames or []
            if len(set(header)) < len(header):
                raise InputError(f"{path}:1: a column name stands twice in the header")
            for cells in reader:
                where, line = f"{path}:{line + 1}", reader.line_num
                if None in cells or None in cells.values():
                    raise InputError(f"{where}: the row does not have the header's {len(header)} columns")
                yield where, {field: _cell_value(cell) for field, cell in cells.items() if field != "id" or cell}
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: after line {line}: invalid UTF-8: {error.reason}") from None
        except csv.Error as error:
            raise InputError(f"{path}:{line + 1}: not readable as CSV: {error}") from None


def _cell_value(cell: str) -> str | list[dict]:
    if not cell.lstrip().startswith("[{"):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    messages = all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value)
    return value if messages else cell


def _plain_row(row: dict, where: str) -> dict:
    """The row as JSON can hold it. A column without a value (null, or NaN as pandas writes it) counts as absent."""
    plain = {}
    for field, value in row.items():
        try:
            value = _plain(value)
        except ValueError as error:
            raise InputError(f"{where}: field '{field}': {error}") from None
        if value is not None:
            plain[field] = value
    return plain


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{value} is not a finite number")
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain for key, item in value.items() if (plain := _plain(item)) is not None}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise ValueError(f"a value of type {type(value).__name__} cannot be written as JSON")


def load_from_hub(name: str, split: str, config: str | None = None, revision: str | None = None):
    """A split of a Hub data set, downloaded once into the Hub's local cache and memory-mapped from there.

    Raises InputError for a split or configuration that it does not have, RunFailed where it cannot be fetched.
    """
    import datasets
    import huggingface_hub

    # Its messages come through the root logger already; without this they would stand twice.
    datasets.logging.disable_propagation()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        huggingface_hub.utils.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except ValueError as error:
        raise InputError(f"{name}: {_first_line(error)} (--split, --config)") from None
    except Exception as error:
        # The Hub client and its transport raise many types here; whichever it was, the data did not come.
        raise RunFailed(
            f"{name}: is no file or folder here and could not be fetched from the Hub ({_first_line(error)}); "
            "on a node without internet, download it elsewhere and give its folder or files instead"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
