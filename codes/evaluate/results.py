"""Result folders: how they are named, when they are refused, and the tables printed after a run."""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from codes.common.records import InputError
from codes.common.run_info import require_same_configuration, run_info_path


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where results go."""
    parser.add_argument("--output_dir", default="results", help="results go to OUTPUT_DIR/MODEL_NAME")
    parser.add_argument("--model_name", help="name in result files; default: the last part of --model_path, cleaned")


def model_name(args: argparse.Namespace) -> str:
    """The name for folder and files: letters, digits, '.', '_' and '-' only, whatever was given.

    It comes from --model_name, else from the last part of the model's path, else it is the scorer's. Raises InputError
    where nothing of it is left.
    """
    flag, text = "--model_path", args.model_path
    if args.model_name is not None:
        flag, text = "--model_name", args.model_name
    elif args.model_path is None or args.scorer != "model":
        flag, text = "--scorer", args.scorer
    elif Path(text).is_dir():
        text = Path(text).resolve().name
    else:
        text = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if not re.search(r"[A-Za-z0-9]", name):
        raise InputError(f"{flag} {text!r}: has no letter or digit to name results by; give another --model_name")
    return name


def result_folder(args: argparse.Namespace, name: str) -> Path:
    """OUTPUT_DIR/name. Raises InputError where that cannot be a folder."""
    folder = Path(args.output_dir) / name
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"--output_dir {args.output_dir}: {path} is a file, not a folder")
    return folder


def refuse_other_results(files: Sequence[Path], configuration: dict) -> None:
    """Raise InputError where one of the files is there and was made otherwise, or nobody knows how.

    The files belong together; their provenance lies beside the first.
    """
    provenance = run_info_path(files[0])
    for path in files:
        if path.exists() and not provenance.exists():
            raise InputError(f"{path}: is there already, without {provenance.name}; choose another output")
    if any(path.exists() for path in files):
        require_same_configuration(files[0], configuration)


def refuse_other_scorer(paths: Iterable[Path], identity: dict) -> None:
    """Raise InputError where one of these results was scored otherwise: one folder never mixes two models.

    Only what ``identity`` names is compared, so results on other data do not count.
    """
    for path in paths:
        refuse_other_results([path], _stored_configuration(path) | identity)


def _stored_configuration(path: Path) -> dict:
    try:
        return dict(json.loads(run_info_path(path).read_text(encoding="utf-8"))["configuration"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # refuse_other_results says what is wrong with it


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: the first column flush left, the others flush right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def rate_cell(rate: float | None, interval: Sequence[float] | None = None) -> str:
    """A rate with its interval, for a table: ``0.512 [0.48, 0.55]``."""
    if rate is None:
        return "-"
    return f"{rate:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
