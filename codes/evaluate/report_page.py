"""The report as one self-contained HTML page: no network, no server, the data escaped."""

from collections.abc import Sequence
from pathlib import Path

from codes.common.page import FIGURES_SCRIPT, FIGURES_STYLE, READING_SCRIPT, READING_STYLE, html_page, source_text
from codes.evaluate.read_results import Results
from codes.evaluate.report_data import page_data

_HERE = Path(__file__)


def report_page(results: Sequence[Results], *, pairs: int, seed: int) -> str:
    """The page; ``pairs`` is the most flipped pairs of each model and bias that can be read on it."""
    return html_page(
        "Bias report · ContrastRM",
        body=source_text(_HERE.with_suffix(".html")),
        script=source_text(
            READING_SCRIPT, FIGURES_SCRIPT, _HERE.with_name("report_charts.js"), _HERE.with_suffix(".js")
        ),
        style=source_text(READING_STYLE, FIGURES_STYLE, _HERE.with_suffix(".css")),
        data=page_data(results, pairs=pairs, seed=seed),
    )
