"""Result files of one JSON object: their version, when one is not replaced, and the tables that are printed of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import printable
from codes.common.records import InputError

# Stands in every summary object (codes/evaluate/schemas/*.json). Fields may be added under the same version; it rises
# when one goes or means something else.
SCHEMA_VERSION = 1


def refuse_other_format(path: Path | None, kind: str, flag: str = "--output_file") -> None:
    """Raise InputError where the output would replace what is no JSON file whose ``format`` is ``kind``."""
    if path is None or not path.exists():
        return
    try:
        # A device or a pipe may have no end.
        ours = path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("format") == kind
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{flag} {path}: is there already and is no {kind.split('-', 1)[1]}; not replaced")


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: the first column flush left, the others flush right."""
    header, *rows = ([printable(cell) for cell in row] for row in (header, *rows))
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
