"""The candidates with their Pareto fronts, and what one objective costs in another, as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codes.common.figure_files import no_formula, pyplot, save_figure
from codes.evaluate.objective_choice import Constraint
from codes.evaluate.objective_scores import Candidates
from codes.evaluate.objective_summary import Decision

# Lines from answer to answer of a prompt's front can be told apart up to about so many prompts.
PROMPTS_WITH_LINES = 12
PROMPTS_WITH_RINGS = 60


def draw_objectives(
    result: Mapping, candidates: Candidates, decision: Decision, constraints: Sequence[Constraint], path: Path
) -> None:
    """Of two objectives the candidates beside the trade-off; of more, all pairs: candidates below, trade-offs above."""
    names = candidates.objectives
    if len(names) == 2:
        figure, axes = pyplot().subplots(1, 2, figsize=(10, 4.8), layout="constrained")
        _draw_candidates(axes[0], candidates, decision, constraints, 0, 1)
        _draw_trade_off(axes[1], result, result["trade_offs"][0])
        axes[0].set_title("candidates")
        axes[1].set_title("means over prompts as the weight moves")
    else:
        side = 2.6 * len(names)
        figure, axes = pyplot().subplots(len(names), len(names), figsize=(side, side), layout="constrained")
        for part in result["trade_offs"]:
            first, second = (names.index(name) for name in part["objectives"])
            _draw_candidates(axes[second, first], candidates, decision, constraints, first, second)
            _draw_trade_off(axes[first, second], result, part, (1, 0))
        for place, name in enumerate(names):
            axes[place, place].hist(candidates.scores[:, place], bins=30, color="0.75")
            axes[place, place].set_xlabel(no_formula(name))
            axes[place, place].set_ylabel("candidates")
        figure.suptitle("below: candidates\nabove: means over prompts as the weight moves")
    handles = {}
    for panel in axes.ravel():
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4 if len(names) == 2 else 3, frameon=False
    )
    save_figure(figure, path)


def _draw_candidates(
    panel, candidates: Candidates, decision: Decision, constraints: Sequence[Constraint], first: int, second: int
) -> None:
    """All candidates, those on their prompt's Pareto front (of all objectives), and the chosen ones."""
    x, y = candidates.scores[:, first], candidates.scores[:, second]
    on_front, chosen = decision.on_front, decision.chosen
    # Of many candidates the dots are small, so that those beneath are seen, and rings would hide them.
    size, few = float(np.clip(50 / np.sqrt(len(x)), 1.2, 5)), len(chosen) <= PROMPTS_WITH_RINGS
    dots = {"linestyle": "none", "marker": "o", "rasterized": len(x) > 2000}
    panel.plot(x[~on_front], y[~on_front], markersize=size, color="0.7", label="candidate", **dots)
    panel.plot(x[on_front], y[on_front], markersize=size, color="C0", label="on the Pareto front", **dots)
    ring = {"markersize": 2 * size, "fillstyle": "none"} if few else {"markersize": size}
    panel.plot(x[chosen], y[chosen], color="C3", label="chosen", **ring, **dots)
    for bound in constraints:
        draw = {first: panel.axvline, second: panel.axhline}.get(bound.place)
        if draw is not None:
            draw(bound.threshold, color="C3", linewidth=1, linestyle=":", label="constraint")
    if len(candidates.objectives) == 2 and len(candidates.rows) <= PROMPTS_WITH_LINES:
        for places in candidates.rows.values():
            front = places[on_front[places]]
            front = front[np.argsort(x[front])]
            panel.plot(x[front], y[front], color="C0", linewidth=0.8, alpha=0.6)
    panel.set_xlabel(no_formula(candidates.objectives[first]))
    panel.set_ylabel(no_formula(candidates.objectives[second]))


def _draw_trade_off(panel, result: Mapping, part: Mapping, columns: tuple[int, int] = (0, 1)) -> None:
    """The means of two objectives as the weight moves, and where ways to choose stand, with 95% intervals.

    columns: which of the two is drawn to the right, and which upwards.
    """
    names = part["objectives"]
    means = np.array([step["means"] for step in part["steps"]])
    panel.plot(
        means[:, columns[0]],
        means[:, columns[1]],
        marker=".",
        markersize=3,
        color="C0",
        label="by the two alone, weights 0 to 1",
    )
    choices = result["choices"]
    ways = {"any candidate": (choices["any_candidate"], "0.5", "s")}
    if result["constraints"]:
        ways["best by the weights"] = (choices["by_weights"], "C1", "o")
    ways["chosen on average"] = (choices["chosen"], "C3", "o")
    for label, (choice, color, marker) in ways.items():
        centre, spans = [], []
        for column in columns:
            value = choice["means"][names[column]]
            low, high = choice["ci95"]["means"][names[column]] or (value, value)
            centre.append(value)
            spans.append([[max(value - low, 0)], [max(high - value, 0)]])
        panel.errorbar(*centre, xerr=spans[0], yerr=spans[1], fmt=marker, color=color, linewidth=0.8, label=label)
    panel.set_xlabel(no_formula(names[columns[0]]))
    panel.set_ylabel(no_formula(names[columns[1]]))
