"""An inspection of training data as one self-contained HTML page, and as a figure."""

from collections.abc import Mapping
from pathlib import Path

from codes.common.figure_files import pyplot, save_figure
from codes.common.page import FIGURES_SCRIPT, FIGURES_STYLE, READING_SCRIPT, READING_STYLE, html_page, source_text

_HERE = Path(__file__)


def inspection_page(result: Mapping) -> str:
    """The page of what ``inspect_data`` found: suggestions first, then figures, then the texts side by side."""
    return html_page(
        "Data inspection · ContrastRM",
        body=source_text(_HERE.with_suffix(".html")),
        script=source_text(READING_SCRIPT, FIGURES_SCRIPT, _HERE.with_suffix(".js")),
        style=source_text(READING_STYLE, FIGURES_STYLE, _HERE.with_suffix(".css")),
        data=result,
    )


def draw_inspection(result: Mapping, path: Path) -> None:
    """What each rule gets right, with its interval, and the lengths of chosen and rejected answers."""
    figure, (rules, lengths) = pyplot().subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    shown = list(reversed(result["style"]["all"]["rules"].items()))
    for height, (_, rule) in enumerate(shown):
        color = "C3" if rule["is_shortcut"] else "C0"
        if (interval := rule["ci95"]["of_all_pairs"]) is not None:
            rules.plot([100 * bound for bound in interval], [height, height], color=color, linewidth=2, alpha=0.5)
        rules.plot(100 * rule["of_all_pairs"], height, "o", color=color)
    rules.axvline(50, color="0.6", linewidth=1, linestyle="--", zorder=0)
    rules.set_yticks(range(len(shown)), [name for name, _ in shown])
    rules.set_xlim(0, 100)
    rules.set_title('"more of it wins" (red: a shortcut)')
    rules.set_xlabel("% of all pairs, ties as coin flips; 95% intervals")
    histogram = result["style"]["histogram"]
    for name, color in (("chosen", "C0"), ("rejected", "C1")):
        lengths.stairs(histogram[name], histogram["edges"], color=color, linewidth=1.8, label=name)
    lengths.set_xscale("log")
    lengths.set_title("answers of the pairs by length")
    lengths.set_xlabel("characters")
    lengths.set_ylabel("answers")
    lengths.legend(frameon=False)
    save_figure(figure, path)
