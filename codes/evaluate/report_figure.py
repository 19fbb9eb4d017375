"""The bias sensitivity rates of several models as a chart for a paper or a slide."""

from collections.abc import Sequence
from pathlib import Path

from codes.common.figure_files import no_formula, pyplot, save_figure
from codes.common.records import REFINEMENT_BIAS
from codes.evaluate.read_results import Results, biases_of
from codes.evaluate.report_table import model_labels


def draw_figure(results: Sequence[Results], path: Path) -> None:
    """The bias sensitivity rate by bias and model as points with 95% intervals."""
    groups = [*(bias for bias in biases_of(results) if bias != REFINEMENT_BIAS), "all"]
    figure, axes = pyplot().subplots(figsize=(1.1 * len(groups) + 2, 4.5), layout="constrained")
    # Matplotlib leaves out of a legend what begins with an underscore.
    labels = [f" {no_formula(label)}" for label in model_labels(results)]
    spread = 0.7 / len(results)
    for number, result in enumerate(results):
        for place, group in enumerate(groups):
            summary = result.overall if group == "all" else result.biases.get(group, {})
            rate = summary.get("bias_sensitivity_rate")
            if rate is None:
                continue
            low, high = summary.get("ci95", {}).get("bias_sensitivity_rate") or (rate, rate)
            axes.errorbar(
                place + (number - (len(results) - 1) / 2) * spread,
                100 * rate,
                yerr=[[100 * max(rate - low, 0)], [100 * max(high - rate, 0)]],
                fmt="o",
                color=f"C{number}",
                capsize=2,
                label=labels[number] if group == "all" else None,
            )
    for border in range(1, len(groups)):
        axes.axvline(border - 0.5, color="0.9", linewidth=1, zorder=0)
    axes.set_xticks(range(len(groups)), map(no_formula, groups), rotation=30, ha="right")
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(-2, 102)
    axes.set_ylabel("bias sensitivity rate, % (lower is better)")
    axes.set_title("Pairs judged right that turn wrong once the worse answer carries the bias (95% intervals)", pad=28)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(len(results), 6))
    save_figure(figure, path)
