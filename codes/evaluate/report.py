"""Compare evaluated models: one table of bias and Reward-Bench figures, and a chart of the bias sensitivity rates.

    python -m codes.evaluate.report results/pairwise results/contrast --figure results/comparison.png

Reads the summaries that ``eval_rm all`` and ``eval_reward_bench`` left in each folder. A figure that was not evaluated
is shown as "-". Rates are per cent; in brackets stands their 95% interval. Biases of one's own follow the built-in
ones. A file that is there is replaced only where it is a table or a figure already.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import command_parser, random_seed, run_main
from codes.common.records import EVALUATED_BIASES, REFINEMENT_BIAS, InputError, replace_file

SECTIONS = ("Chat", "Chat Hard", "Safety", "Reasoning")
ABSENT = "-"
ALL_BIASES_ROW = "BSR, all biases"  # which every table has
FIGURE_STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def read_results(folder: Path) -> dict:
    """{"name", "biases": summaries by bias, "overall", "reward_bench"} of one model's result folder."""
    name = folder.resolve().name
    biases = _read_summary(folder / f"all_biases_summary_{name}.json")
    reward_bench = _read_summary(folder / f"reward_bench_summary_{name}.json")
    if not biases and not reward_bench:
        raise InputError(f"{folder}: holds no all_biases_summary_{name}.json and no reward_bench_summary_{name}.json")
    return {
        "name": name,
        "biases": {bias: biases[bias] for bias in EVALUATED_BIASES if bias in biases}
        | (biases.get("other_biases") or {}),
        # Null where no pairwise bias was evaluated.
        "overall": biases.get("average_across_all_biases") or {},
        "reward_bench": reward_bench,
    }


def _read_summary(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    if not isinstance(summary, dict):
        raise InputError(f"{path}: is not a summary")
    return summary


def comparison_rows(results: list[dict]) -> list[list[str]]:
    """The table: a header, then a row a figure, a column a model."""
    rows = [["", *(result["name"] for result in results)]]
    biases = [bias for bias in _biases(results) if bias != REFINEMENT_BIAS]
    for label, rate, overall in (
        ("BSR", "bias_sensitivity_rate", "bias_sensitivity_rate"),
        ("original accuracy", "original_pair_accuracy", "average_original_pair_accuracy"),
        ("biased accuracy", "biased_pair_accuracy", "average_biased_pair_accuracy"),
    ):
        for bias in biases:
            rows.append([f"{label}, {bias}", *(_rate(r["biases"].get(bias, {}), rate) for r in results)])
        rows.append([f"{label}, all biases", *(_rate(r["overall"], overall) for r in results)])
    rows.append(["robust accuracy, all biases", *(_rate(r["overall"], "robust_accuracy") for r in results)])
    refinement = [r["biases"].get(REFINEMENT_BIAS, {}).get("average_improvement_rate_with_context") for r in results]
    rows.append(["score gain when shown as polished", *map(_percent, refinement)])
    benchmarks = [r["reward_bench"] for r in results]
    for section in SECTIONS:
        rows.append([f"Reward-Bench, {section}", *(_percent(b.get("sections", {}).get(section)) for b in benchmarks)])
    rows.append(["Reward-Bench, mean of sections", *(_percent(b.get("overall")) for b in benchmarks)])
    whole = "" if all(b.get("complete", True) for b in benchmarks) else " (not the whole set)"
    weighted = [_percent(b.get("weighted_average_accuracy")) for b in benchmarks]
    rows.append([f"Reward-Bench, weighted by rows{whole}", *weighted])
    return rows


def _biases(results: list[dict]) -> list[str]:
    """The biases that one of the models was evaluated on: the built-in ones, then the users' own."""
    found = dict.fromkeys(bias for result in results for bias in result["biases"])
    return [b for b in EVALUATED_BIASES if b in found] + sorted(b for b in found if b not in EVALUATED_BIASES)


def _rate(summary: dict, rate: str) -> str:
    interval = summary.get("ci95", {}).get(rate)
    text = _percent(summary.get(rate))
    return f"{text} [{_percent(interval[0])}, {_percent(interval[1])}]" if interval and text != ABSENT else text


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def as_markdown(rows: list[list[str]]) -> str:
    """An aligned Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def draw_figure(results: list[dict], path: Path) -> None:
    """The bias sensitivity rate by bias and model as points with 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [*(bias for bias in _biases(results) if bias != REFINEMENT_BIAS), "all"]
    figure, axes = plt.subplots(figsize=(1.1 * len(groups) + 2, 4.5), layout="constrained")
    spread = 0.7 / len(results)
    for number, result in enumerate(results):
        for place, group in enumerate(groups):
            summary = result["overall"] if group == "all" else result["biases"].get(group, {})
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
                label=result["name"] if group == "all" else None,
            )
    for border in range(1, len(groups)):
        axes.axvline(border - 0.5, color="0.9", linewidth=1, zorder=0)
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(-2, 102)
    axes.set_ylabel("bias sensitivity rate, % (lower is better)")
    axes.set_title("Pairs judged right that turn wrong once the worse answer carries the bias (95% intervals)", pad=28)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(len(results), 6))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, "codes.evaluate.report")
    parser.add_argument("folders", nargs="+", type=Path, help="result folders, one a model: results/<name>")
    parser.add_argument("--format", choices=("md", "csv"), default="md", help="how the table is written")
    parser.add_argument("-o", "--output_file", type=Path, help="file for the table; standard output without it")
    parser.add_argument(
        "--figure", type=Path, help="also draw the bias sensitivity rates into this .png, .svg or .pdf file"
    )
    parser.add_argument("--seed", type=random_seed, default=42, help="accepted as everywhere; nothing here is random")
    args = parser.parse_args(argv)
    _refuse_foreign_outputs(args.output_file, args.figure)
    results = [read_results(folder) for folder in args.folders]
    rows = comparison_rows(results)
    if args.figure is not None and not any(result["overall"] for result in results):
        raise InputError("--figure: none of the folders holds bias sensitivity rates of `eval_rm all`")
    if args.output_file is None:
        _write(rows, args.format, sys.stdout)
    else:
        with replace_file(args.output_file) as file:
            _write(rows, args.format, file)
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        draw_figure(results, args.figure)


def _refuse_foreign_outputs(table: Path | None, figure: Path | None) -> None:
    """Raise InputError where an output has no known suffix or would replace what is no report of ours."""
    if table is not None and table.exists():
        if not table.is_file():
            raise InputError(f"--output_file {table}: is no file")
        start = table.read_bytes()[:100_000].decode("utf-8", errors="replace")
        if not (start.startswith(("|  ", ",")) and ALL_BIASES_ROW in start):
            raise InputError(f"--output_file {table}: is there already and is no table of this command; not replaced")
    if figure is None:
        return
    if figure.suffix.lower() not in FIGURE_STARTS:
        raise InputError(f"--figure {figure}: give it one of the suffixes {', '.join(FIGURE_STARTS)}")
    if figure.exists() and not (
        figure.is_file() and figure.read_bytes().startswith(FIGURE_STARTS[figure.suffix.lower()])
    ):
        raise InputError(f"--figure {figure}: is there already and is no {figure.suffix[1:]} figure; not replaced")


def _write(rows: list[list[str]], form: str, file) -> None:
    if form == "csv":
        csv.writer(file, lineterminator="\n").writerows(rows)
    else:
        print(as_markdown(rows), file=file)


if __name__ == "__main__":
    run_main(main)
