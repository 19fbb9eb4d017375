"""Figures as files: which suffixes there are, what is never overwritten, and matplotlib without a screen."""

from pathlib import Path

from codes.common.records import InputError

FIGURE_STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def refuse_foreign_figure(path: Path) -> None:
    """Raise InputError where the path has no known suffix or would replace what is no figure of that kind."""
    suffix = path.suffix.lower()
    if suffix not in FIGURE_STARTS:
        raise InputError(f"--figure {path}: give it one of the suffixes {', '.join(FIGURE_STARTS)}")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(FIGURE_STARTS[suffix])):
        raise InputError(f"--figure {path}: is there already and is no {suffix[1:]} figure; not replaced")


def no_formula(name: str) -> str:
    """The name as Matplotlib has to be given it, to which dollars are the signs of a formula."""
    return name.replace("$", r"\$")


def pyplot():
    """matplotlib's pyplot, which takes a second to import, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure, path: Path) -> None:
    """Write the figure by its suffix and let go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
