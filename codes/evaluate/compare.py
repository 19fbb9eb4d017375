"""Tell whether a model is better than another, or good enough: differences with paired tests, and an exit status.

    python -m codes.evaluate.compare results/before results/after
    python -m codes.evaluate.compare results/before results/after --fail_if "bsr > 0.1" --fail_if "delta.bsr.low > 0"

Both folders must hold results on the same rows. Differences are AFTER minus BEFORE, with 95% bootstrap intervals
clustered by question; p is an exact McNemar test's on the same rows, Holm-corrected over the biases (or sections).
--fail_if names figures of AFTER (bsr, length.bsr, reward_bench.overall), differences (delta.bsr), and bounds of their
intervals (delta.bsr.low, bsr.high); comparisons are joined by `and`. Exit status: 0, or 1 where a condition holds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from codes.common.cli import RunFailed, command_parser, random_seed, run_main
from codes.common.records import REFINEMENT_BIAS, write_json
from codes.common.result_files import aligned_table, refuse_other_format
from codes.evaluate.bias_summary import RATES
from codes.evaluate.comparison import FORMAT, SHORT_NAMES, by_name, compare, section_name
from codes.evaluate.conditions import parse_condition
from codes.evaluate.read_results import BENCHMARK_AVERAGES, POSITION_FIGURES, Results, figure_at, read_results


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    conditions = [parse_condition(text) for text in args.fail_if]
    refuse_other_format(args.output_file, FORMAT)
    before, after = read_results(args.before), read_results(args.after)
    comparison = compare(before, after, seed=args.seed)
    figures = named_figures(after, comparison)
    verdicts = [{"condition": condition.text, "holds": condition.holds(figures)} for condition in conditions]
    for condition, verdict in zip(conditions, verdicts):
        verdict["figures"] = {name: figures[name] for name in condition.names}
    if args.output_file is not None:
        write_json(args.output_file, {**comparison, "conditions": verdicts})
    print_comparison(comparison)
    if failed := [verdict for verdict in verdicts if verdict["holds"]]:
        told = "; ".join(f"{v['condition']} ({_values(v['figures'])})" for v in failed)
        raise RunFailed(f"--fail_if holds: {told}")


def _values(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.4f}" for name, value in figures.items())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.compare")
    parser.add_argument("before", metavar="BEFORE", type=Path, help="result folder of the model to compare with")
    parser.add_argument("after", metavar="AFTER", type=Path, help="result folder of the model in question")
    parser.add_argument(
        "--fail_if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with 1 where it holds; repeatable",
    )
    parser.add_argument("-o", "--output_file", type=Path, help="write the comparison as JSON")
    parser.add_argument("--seed", type=random_seed, default=42, help="of the bootstrap intervals")
    return parser.parse_args(argv)


# --- Names for conditions ----------------------------------------------------------------------------------------


def named_figures(after: Results, comparison: Mapping) -> dict[str, float | None]:
    """Every figure that a condition may name: those of ``after``'s own summaries, and ``delta.`` the differences."""
    found: dict[str, float | None] = {}

    def add(name: str, value: float | None, interval: Sequence[float] | None) -> None:
        low, high = interval or (None, None)
        found.update({name: value, f"{name}.low": low, f"{name}.high": high})

    if after.overall:
        _add_summary(add, "", after.overall, "average_")
        add("average_bsr", *_rate(after.overall, "average_bias_sensitivity_rate"))
        if baseline := after.overall.get("length_baseline"):
            add("length_baseline.bsr", *_rate(baseline, "bias_sensitivity_rate"))
    for bias in after.pairwise:
        _add_summary(add, f"{bias}.", after.biases[bias], "")
    if refinement := after.biases.get(REFINEMENT_BIAS):
        add(f"{REFINEMENT_BIAS}.improvement", *_rate(refinement, "average_improvement_rate_with_context"))
    for bias, summary in after.judge.items():
        for name in (name for name in (*SHORT_NAMES, *POSITION_FIGURES) if name in summary):
            add(f"{bias}.{SHORT_NAMES.get(name, name)}", *_rate(summary, name))
    for stem, summary in {"reward_bench": after.reward_bench, **after.benchmarks}.items():
        for section in summary.get("sections") or {}:
            add(f"{stem}.{section_name(section)}", *figure_at(summary, ("sections", section)))
        for name in (name for name in BENCHMARK_AVERAGES if name in summary):
            add(f"{stem}.{name}", *figure_at(summary, (name,)))
    for name, part in by_name(comparison).items():
        add(f"delta.{name}", part["difference"], part["ci95"])
    return found


def _add_summary(add, prefix: str, summary: Mapping, average: str) -> None:
    for rate, short in SHORT_NAMES.items():
        field = f"{average}{rate}" if f"{average}{rate}" in summary and rate != "bias_sensitivity_rate" else rate
        add(prefix + short, *_rate(summary, field))
    shift = summary.get("margin_shift") or {}
    add(f"{prefix}margin_shift", *_rate(shift, "standardized"))


def _rate(summary: Mapping, name: str) -> tuple[float | None, Sequence[float] | None]:
    return summary.get(name), (summary.get("ci95") or {}).get(name)


# --- What is printed ---------------------------------------------------------------------------------------------


def print_comparison(comparison: Mapping) -> None:
    first, second = comparison["first"], comparison["second"]
    print(f"{first} -> {second}: difference with 95% interval; p: exact McNemar on the same rows, Holm-corrected")
    rows = [(name, *comparison_cells(part)) for name, part in by_name(comparison).items()]
    rows.sort(key=lambda row: _place(row[0]))
    print(aligned_table(("figure", first, second, "difference", "p"), rows))
    for name, key in ((first, "only_first"), (second, "only_second")):
        if comparison[key]:
            print(f"only in {name}, not compared: {', '.join(comparison[key])}")


def _place(name: str) -> int:
    """Biases' figures stand by rate, then what is no rate."""
    short = name.rsplit(".", 1)[-1]
    order = [SHORT_NAMES[rate] for rate in RATES]
    return order.index(short) if short in order else len(order)


def comparison_cells(part: Mapping) -> tuple[str, str, str, str]:
    """First, second, difference with interval, and p, as text."""
    first, second = ("-" if part[key] is None else f"{part[key]:.3f}" for key in ("first", "second"))
    if part["difference"] is None:
        return first, second, "-", "-"
    interval = f" [{part['ci95'][0]:+.3f}, {part['ci95'][1]:+.3f}]" if part["ci95"] else ""
    p_value = part.get("mcnemar_p_holm")
    return first, second, f"{part['difference']:+.3f}{interval}", "-" if p_value is None else f"{p_value:.2g}"


if __name__ == "__main__":
    run_main(main)
