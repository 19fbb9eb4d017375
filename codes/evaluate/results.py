"""Result folders: how they are named, and when they are refused."""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from codes.common.records import InputError
from codes.common.run_info import redact, require_same_configuration, run_info_path

logger = logging.getLogger(__name__)

# A file's name may have 255 bytes, and the longest of ours adds 95 to the model's.
LONGEST_NAME = 160

# The scorers whose --model_path says what gives the scores.
WITH_MODEL_PATH = ("model", "dpo", "ensemble")


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where results go."""
    parser.add_argument("--output_dir", default="results", help="results go to OUTPUT_DIR/MODEL_NAME")


def model_name(args: argparse.Namespace) -> str:
    """The name for folder and files: letters, digits, '.', '_' and '-' only, whatever was given.

    It comes from --model_name, else from the last part of the model's path, else it is the scorer's. Raises InputError
    where nothing of it is left or it is too long for a file's name.
    """
    flag, text = "--model_path", args.model_path
    if args.model_name is not None:
        flag, text = "--model_name", args.model_name
    elif args.model_path is None or args.scorer not in WITH_MODEL_PATH:
        flag, text = "--scorer", args.scorer
    elif args.scorer == "ensemble":
        text = Path(text).stem
    elif Path(text).is_dir():
        text = Path(text).resolve().name
    else:
        text = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if not re.search(r"[A-Za-z0-9]", name):
        raise InputError(f"{flag} {text!r}: has no letter or digit to name results by; give another --model_name")
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"{flag} {text[:40]!r}...: has {len(name)} characters, more than the {LONGEST_NAME} that result files have "
            "room for; give a shorter --model_name"
        )
    return name


def model_reference(args: argparse.Namespace) -> str | None:
    """The model for the provenance, without credentials; None where the scorer has none on this machine."""
    return redact(args.model_path) if args.scorer in WITH_MODEL_PATH else None


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


def refuse_other_scorer(folder: Path, identity: dict) -> None:
    """Raise InputError where a result in the folder, of whichever command, was scored otherwise.

    One folder never mixes two models. Only what a scorer's identity is made of is compared: results on other data
    do not count.
    """
    for provenance in sorted(folder.glob("*.run_info.json")):
        path = provenance.with_name(provenance.name.removesuffix(".run_info.json"))
        if path.exists():
            require_same_configuration(path, stored_configuration(path) | identity)


def stored_configuration(path: Path) -> dict:
    """What made the result; empty where nothing says so, which ``require_same_configuration`` refuses."""
    try:
        return dict(json.loads(run_info_path(path).read_text(encoding="utf-8"))["configuration"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def warn_of_replaced_fields(where: str, row: dict, fields: Sequence[str]) -> None:
    """Say which fields of the first row this evaluation writes anew.

    Results of ours may be evaluated again, so they are no error; a field of the user's own by such a name might be one.
    """
    if replaced := [field for field in fields if field in row]:
        logger.warning("%s: field '%s': is replaced in the results by this evaluation's own", where, replaced[0])
