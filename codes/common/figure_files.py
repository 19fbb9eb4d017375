"""Figures as files: which suffixes there are, what is never overwritten, and matplotlib without a screen."""

from pathlib import Path

from codes.common.cli import printable
from codes.common.records import InputError, replace_file

FIGURE_STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def refuse_foreign_figure(path: Path) -> None:
    """Raise InputError where the path has no known suffix or would replace what is no figure of that kind."""
    suffix = path.suffix.lower()
    if suffix not in FIGURE_STARTS:
        raise InputError(f"--figure {path}: give it one of the suffixes {', '.join(FIGURE_STARTS)}")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(FIGURE_STARTS[suffix])):
        raise InputError(f"--figure {path}: is there already and is no {suffix[1:]} figure; not replaced")


def no_formula(name: str) -> str:
    """The name as Matplotlib has to be given it, to which dollars are the signs of a formula.

    It complains of what no font has, and to a terminal in the very characters; so they are written as escapes.
    """
    return printable(name).replace("$", r"\$")


def pyplot():
    """matplotlib's pyplot, which takes a second to import, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure, path: Path) -> None:
    """Write the figure by its suffix, whole or not at all, and let go of it."""
    with replace_file(path, binary=True) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:].lower())
    pyplot().close(figure)
