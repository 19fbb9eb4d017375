"""Turn public data sets and local files into train records.

    python -m codes.construct.import_data data/eval/public --holdout 0.3 \\
        --holdout_dir output/heldout --output_file output/train.jsonl
    python -m codes.construct.import_data NiuTrans/GRAM-fine-tuning-65k --output_file output/gram.jsonl

SOURCE is a file, a folder of files (.jsonl, .json, .parquet, .csv), or OWNER/NAME on the Hugging Face Hub. Formats,
told from the fields of the first row: 'preference' (prompt, chosen, rejected; messages or plain text), 'gram',
'unified-feedback' and 'bias-pairs' (<bias>_bias.jsonl files; one group for each question and better answer). Ties,
empty answers and answers equal to chosen are left out and counted; a row that is not of the format stops the import
with its file, line and field, and nothing is written. The same input and seed give the same bytes.
"""

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from codes.common.cli import EXIT_DONE, command_parser, fraction, positive_int, progress, random_seed, run_main
from codes.common.records import FieldError, InputError, file_sha256, record_key, write_jsonl
from codes.common.run_info import require_same_configuration, run_info_path, write_run_info
from codes.common.sources import HubDataset, LocalFiles, Row, find_source
from codes.construct.import_bias_pairs import PAIR_FILE_SUFFIX, bias_pair_groups, read_bias_rows, split_by_question
from codes.construct.import_formats import FORMATS, DroppedRow, detect_format, train_record

logger = logging.getLogger(__name__)

# The Hub has these sets in several configurations; this one holds all rows.
DEFAULT_CONFIGS = {"llm-blender/Unified-Feedback": "all"}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    config = arguments.config or DEFAULT_CONFIGS.get(arguments.source)
    source = find_source(arguments.source, arguments.split, config, arguments.revision)
    row_format, rows = _with_format(source, arguments.format)
    holds_out = arguments.holdout > 0
    if holds_out and row_format != "bias-pairs":
        raise InputError(f"--holdout: splits bias-pair files only; {arguments.source} is {row_format}")
    if row_format == "bias-pairs":
        source = _pair_files(source)
    configuration = {"command": "import_data", "format": row_format, "limit": arguments.limit, **_identity(source)}
    if holds_out:
        configuration |= {"holdout": arguments.holdout, "seed": arguments.seed}
    output = Path(arguments.output_file)
    _require_apart(source, arguments)
    require_replaceable(output, configuration)
    if holds_out:
        _require_replaceable_pairs(Path(arguments.holdout_dir), configuration)

    counts: Counter[str] = Counter({"rows read": 0})
    if row_format == "bias-pairs":
        _import_bias_pairs(source, arguments, configuration, counts)
    else:
        records = itertools.islice(iter_train_rows(rows, row_format, counts), arguments.limit)
        counts["groups written"] = _write(output, _require_some(records, arguments.source, counts), configuration)
    write_run_info(output, configuration, counts=dict(counts))
    _print_counts(counts, output)
    if holds_out and not any(label.startswith("rows held out") for label in counts):
        logger.warning(
            "--holdout %s holds nothing out: none of the %d rows' questions falls into that share, and %s has no pair "
            "files; take a larger share or another --seed",
            arguments.holdout,
            counts["rows read"],
            arguments.holdout_dir,
        )
    return EXIT_DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.construct.import_data")
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder of files, or OWNER/NAME on the Hub")
    parser.add_argument("--output_file", required=True, help="train records are written here (JSONL)")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="the rows' format")
    parser.add_argument("--split", default="train", help="the split to take of a Hub data set or of a folder's files")
    parser.add_argument("--config", help="the configuration of a Hub data set that has several")
    parser.add_argument("--revision", help="the commit, tag or branch of a Hub data set")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="write the first N groups at most")
    parser.add_argument(
        "--holdout",
        type=fraction,
        default=0.0,
        help="bias-pairs: the share of the questions (0 to 1) kept from training",
    )
    parser.add_argument("--holdout_dir", help="bias-pairs: the held-out questions' pair files are written here")
    parser.add_argument("--seed", type=random_seed, default=42, help="decides which questions are held out")
    arguments = parser.parse_args(argv)
    if (arguments.holdout > 0) != (arguments.holdout_dir is not None):
        raise InputError("--holdout and --holdout_dir: both or neither (a share above 0, and where its pairs go)")
    return arguments


def _with_format(source: LocalFiles | HubDataset, wanted: str) -> tuple[str, Iterator[Row]]:
    """The rows' format, and all rows from the first one on."""
    rows = source.rows()
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source.name}: the split '{source.split}' has no rows")
    where, row = first
    if wanted == "auto":
        try:
            wanted = detect_format(row)
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
    return wanted, itertools.chain([first], rows)


def _pair_files(source: LocalFiles | HubDataset) -> LocalFiles:
    if isinstance(source, HubDataset):
        raise InputError(f"{source.name}: bias pairs are read from local <bias>{PAIR_FILE_SUFFIX} files only")
    named = tuple(path for path in source.paths if path.name.endswith(PAIR_FILE_SUFFIX))
    return LocalFiles(named or source.paths)


def _identity(source: LocalFiles | HubDataset) -> dict:
    """What the rows are, independent of where the files lie."""
    if isinstance(source, HubDataset):
        return {"hub": {"dataset": source.name, "config": source.config, "split": source.split, "at": source.version}}
    return {"files": {path.name: file_sha256(path) for path in source.paths}}


# --- Where it may be written -------------------------------------------------------------------------------------


def require_replaceable(output: Path, configuration: dict) -> None:
    """Raise InputError where the file is there already and was not made by this very configuration."""
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name a file")
    if output.exists():
        if not run_info_path(output).exists():
            raise InputError(f"{output}: is there and no {run_info_path(output).name} says what made it; not replaced")
        require_same_configuration(output, configuration)


def _require_replaceable_pairs(folder: Path, configuration: dict) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--holdout_dir {folder}: is not a folder")
    if not folder.is_dir():
        return
    if any(folder.glob(f"*{PAIR_FILE_SUFFIX}")) and not run_info_path(folder).exists():
        raise InputError(f"--holdout_dir {folder}: holds pair files that this command did not write; not replaced")
    require_same_configuration(folder, configuration)


def _require_apart(source: LocalFiles | HubDataset, arguments: argparse.Namespace) -> None:
    """What is written must not replace the input, nor become input of the next run."""
    if isinstance(source, HubDataset):
        return
    files = {path.resolve() for path in source.paths}
    folders = {path.parent for path in files}
    output = Path(arguments.output_file).resolve()
    if output in files or (Path(arguments.source).is_dir() and output.parent in folders):
        raise InputError(f"--output_file {arguments.output_file}: lies among the input files; choose another place")
    if arguments.holdout_dir is not None and Path(arguments.holdout_dir).resolve() in folders:
        raise InputError(f"--holdout_dir {arguments.holdout_dir}: holds the input files; choose another folder")


# --- Rows of one format ------------------------------------------------------------------------------------------


def iter_train_rows(rows: Iterator[Row], row_format: str, counts: Counter) -> Iterator[dict]:
    """Stream the train records of the rows; what was left out is counted. Raises InputError naming a bad row.

    Ids are kept. One that stands twice is an error in train records, which nothing may change; in other sets, where
    an id often numbers prompts rather than rows, its later rows get ``-1``, ``-2`` ... appended.
    """
    seen: set[str] = set()
    last_number: Counter[str] = Counter()  # of ids met again, so that each repetition looks no further than the next
    for where, row in progress(rows, desc="importing"):
        counts["rows read"] += 1
        try:
            record = train_record(row, row_format, counts)
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
        except DroppedRow as reason:
            counts[f"rows dropped: {reason}"] += 1
            continue
        if "id" in record:
            key = _row_id(where, record)
            if key in seen and record is row:
                raise InputError(f"{where}: field 'id': {key!r} stands twice")
            if key in seen:
                key = _numbered(key, last_number, seen)
                record = record | {"id": key}
                counts["ids met again and numbered"] += 1
            seen.add(key)
        yield record


def _numbered(key: str, last_number: Counter[str], seen: set[str]) -> str:
    """The id with the next number that makes one not seen yet."""
    while True:
        last_number[key] += 1
        if (numbered := f"{key}-{last_number[key]}") not in seen:
            return numbered


def _row_id(where: str, record: dict) -> str:
    path, _, number = where.rpartition(":")
    return record_key(path, number, record)


def _write(output: Path, records: Iterator[dict], configuration: dict) -> int:
    """Replace the output. What made it is noted just before it takes its name, so that the run that is killed between
    the two can be run again; a run that finds a bad row notes nothing.
    """

    def then_note() -> Iterator[dict]:
        yield from records
        write_run_info(output, configuration)

    return write_jsonl(output, then_note())


def _require_some(records: Iterator[dict], source: str, counts: Counter) -> Iterator[dict]:
    first = next(records, None)
    if first is None:
        left_out = "; ".join(f"{label} {number}" for label, number in counts.items())
        raise InputError(f"{source}: no group could be made ({left_out})")
    yield from itertools.chain([first], records)


# --- Bias pairs --------------------------------------------------------------------------------------------------


def _import_bias_pairs(source: LocalFiles, arguments: argparse.Namespace, configuration: dict, counts: Counter) -> None:
    rows = read_bias_rows(source.paths)
    training, held_out = split_by_question(rows, arguments.holdout, arguments.seed)
    groups = bias_pair_groups(training, counts)[: arguments.limit]
    counts["rows read"] = len(rows)
    held_out_rows = Counter(bias for bias, _ in held_out)
    counts.update({f"rows held out: {bias}": number for bias, number in sorted(held_out_rows.items())})
    records = list(_require_some(iter(groups), arguments.source, counts))
    if arguments.holdout > 0:
        folder = Path(arguments.holdout_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # First, so that a run killed below finds its own folder again.
        write_run_info(folder, configuration, held_out_rows=dict(sorted(held_out_rows.items())))
        for bias in held_out_rows:
            write_jsonl(folder / f"{bias}{PAIR_FILE_SUFFIX}", (row for name, row in held_out if name == bias))
    counts["groups written"] = _write(Path(arguments.output_file), iter(records), configuration)


def _print_counts(counts: Counter, output: Path) -> None:
    for label, number in counts.items():
        if label != "groups written":
            print(f"{number:>9}  {label}")
    print(f"{counts['groups written']:>9}  groups written to {output}")


if __name__ == "__main__":
    run_main(main)
