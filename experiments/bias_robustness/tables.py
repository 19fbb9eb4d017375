"""The experiment's tables and figure, from the JSON that `run` left for each seed and arm.

    python -m experiments.bias_robustness.tables

Rewrites the tables between the two marks of README.md beside this file, and robustness.svg. Rates are over the test
rows of all seeds; 95% intervals come from a bootstrap of the questions, which recur over biases and seeds.
"""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from codes.common.cli import command_parser, random_seed, run_main
from codes.common.records import PAIRWISE_BIASES, InputError, replace_file
from codes.evaluate.metrics import clustered_rate_intervals
from codes.evaluate.report_table import as_markdown, percent
from experiments.bias_robustness.arms import ARMS, BASELINES

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
RATES = ("original", "biased", "bsr", "robust", "length_balanced", "better_shorter")
AIMS = {"bsr": 0.05, "robust": 0.60, "length_balanced_loss": 0.02, "left_out_reduction": 1 / 3}


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    if not args.results_dir.is_dir():
        raise InputError(f"{args.results_dir}: holds no results; `run` writes them")
    backbones = sorted(path.name for path in args.results_dir.iterdir() if path.is_dir())
    text, drawn = [], {}
    for backbone in backbones:
        runs = read_runs(args.results_dir / backbone)
        figures = {name: figures_of(parts, args.seed) for name, parts in runs.items()}
        text += [f"### {backbone}", "", *tables(runs, figures, args.seed), ""]
        drawn[backbone] = figures
    readme = args.readme.read_text(encoding="utf-8")
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InputError(f"{args.readme}: has no place for tables between {BEGIN} and {END}")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    with replace_file(args.readme) as file:
        file.write("\n".join([before + BEGIN, "", *text, END + after]))
    draw(drawn, args.readme.parent / "robustness.svg")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "experiments.bias_robustness.tables")
    parser.add_argument("--results_dir", type=Path, default=HERE / "results", help="what `run` wrote")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="the file that gets the tables")
    parser.add_argument("--seed", type=random_seed, default=42, help="of the bootstrap intervals")
    return parser.parse_args(argv)


def read_runs(folder: Path) -> dict[str, list[dict]]:
    """The results of each arm over the seeds, in the order of the arms."""
    found: dict[str, list[dict]] = {name: [] for name in ARMS}
    for path in sorted(folder.glob("seed-*/*.json")):
        if path.stem not in ARMS:
            raise InputError(f"{path}: is the result of no arm")
        found[path.stem].append(json.loads(path.read_text(encoding="utf-8")))
    return {name: parts for name, parts in found.items() if parts}


# --- Figures -----------------------------------------------------------------------------------------------------


def figures_of(runs: Sequence[Mapping], seed: int, biases: Sequence[str] | None = None) -> dict[str, dict]:
    """Each rate over the test rows of all runs: {"rate", "ci95", "seeds": the rate of each run}.

    ``biases``: only rows of these; all by default.
    """
    by_run = [row_sums(run, biases) for run in runs]
    sums = np.concatenate([rows for rows, _ in by_run])
    questions = [question for _, names in by_run for question in names]
    totals = sums.sum(0)
    rows, original, _, _, _, longer, _, shorter, _ = totals
    trials = (rows, rows, original, rows, longer + shorter, shorter)
    intervals = clustered_rate_intervals(sums, questions, rates_of_sums, trials, seed=seed)
    pooled = rates_of_sums(totals[None])[0]
    each = np.stack([rates_of_sums(rows.sum(0, keepdims=True))[0] for rows, _ in by_run])
    return {
        name: {"rate": float(pooled[i]), "ci95": intervals[i], "seeds": each[:, i].tolist()}
        for i, name in enumerate(RATES)
    }


def row_sums(run: Mapping, biases: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """What each test row adds to the sums behind the rates, [rows, 9], and its question."""
    columns, questions = [], []
    for bias, part in run["outcomes"].items():
        if biases is not None and bias not in biases:
            continue
        original, biased, longer, shorter = (
            np.array(list(part[name]), dtype=int) for name in ("original", "biased", "better_longer", "better_shorter")
        )
        shown = (original, biased, original * (1 - biased), original * biased)
        columns.append(
            np.stack([np.ones_like(original), *shown, longer, longer * original, shorter, shorter * original])
        )
        questions += part["questions"]
    return np.concatenate(columns, axis=1).T, questions


def rates_of_sums(sums: np.ndarray) -> np.ndarray:
    """[samples, 9] -> [samples, rates]; NaN where there is nothing to divide by."""
    rows, original, biased, flipped, robust, longer, longer_right, shorter, shorter_right = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        on_shorter = shorter_right / shorter
        balanced = (longer_right / longer + on_shorter) / 2
        return np.stack(
            [original / rows, biased / rows, flipped / original, robust / rows, balanced, on_shorter], axis=1
        )


# --- Tables ------------------------------------------------------------------------------------------------------


def tables(runs: Mapping[str, list[dict]], figures: Mapping[str, dict], seed: int) -> list[str]:
    """The main table, ablations, that of each bias, transfer, and whether the aims are reached; as lines."""
    lines = []
    if main_arms := [(ARMS[name].says, runs[name], figures[name]) for name in runs if ARMS[name].group == "main"]:
        lines += ["**Arms**", "", *_rates_table(main_arms), ""]
    if ablations := _ablations(runs, figures, seed):
        lines += ["**Ablations**", "", *_rates_table(ablations), ""]
    lines += _bias_table(runs) + _transfer_table(runs) + _aims(runs, figures)
    return lines


Row = tuple[str, list[dict], Mapping]  # what the table calls it, its runs, their figures


def _ablations(runs: Mapping[str, list[dict]], figures: Mapping[str, dict], seed: int) -> list[Row]:
    """The ablations after the contrastive arm of the same seeds: each seed has test questions of its own."""
    by_seeds: dict[tuple[int, ...], list[Row]] = {}
    for name, parts in runs.items():
        if ARMS[name].group == "ablation":
            by_seeds.setdefault(_seeds(parts), []).append((ARMS[name].says, parts, figures[name]))
    rows = []
    for seeds, ablations in sorted(by_seeds.items(), key=lambda entry: (-len(entry[0]), entry[0])):
        same = _of_seeds(runs.get("contrast", []), seeds)
        if _seeds(same) == seeds:
            rows.append((ARMS["contrast"].says, same, figures_of(same, seed)))
        rows += ablations
    return rows


def _seeds(parts: Sequence[Mapping]) -> tuple[int, ...]:
    return tuple(part["settings"]["seed"] for part in parts)


def _of_seeds(parts: Sequence[dict], seeds: Collection[int]) -> list[dict]:
    return [part for part in parts if part["settings"]["seed"] in seeds]


def _rates_table(arms: Sequence[Row]) -> list[str]:
    header = ("arm", "seeds", "original", "biased", "BSR", "robust", "length-balanced", "better is shorter")
    header = (*header, "score ~ length", "development", "Reward-Bench rows", "tokens")
    rows = []
    for says, parts, rates in arms:
        correlations = [part["overall"]["length_correlation"]["score"]["spearman"] for part in parts]
        rows.append(
            [
                says,
                " ".join(map(str, _seeds(parts))),
                *(with_interval(rates[rate]) for rate in RATES),
                f"{np.mean(correlations):+.2f}",
                f"{100 * on_development(parts):.1f}",
                _mean_percent([part["reward_bench"].get("weighted_average_accuracy") for part in parts]),
                f"{np.mean([part['training']['tokens_seen'] for part in parts]) / 1000:.0f}k",
            ]
        )
    return _markdown(header, rows)


def _bias_table(runs: Mapping[str, list[dict]]) -> list[str]:
    biases = [bias for bias in PAIRWISE_BIASES if any(bias in part["outcomes"] for p in runs.values() for part in p)]
    rows = []
    for name, parts in runs.items():
        if ARMS[name].group == "main":
            rates = [figures_of(parts, 0, [bias])["bsr"]["rate"] for bias in biases]
            rows.append([ARMS[name].says, *(f"{100 * rate:.1f}" for rate in rates)])
    return ["**BSR by bias (%)**", "", *_markdown(("arm", *biases), rows), ""] if rows else []


def _transfer_table(runs: Mapping[str, list[dict]]) -> list[str]:
    """BSR on the bias that was left out, beside that of training without and with all biases."""
    rows = []
    for name, parts in runs.items():
        if (bias := ARMS[name].left_out) is None:
            continue
        compared = [other for other in ("bt-original", "contrast") if other in runs]
        like = {other: _of_seeds(runs[other], _seeds(parts)) or runs[other] for other in compared}
        cells = {other: figures_of(same, 0, [bias])["bsr"] for other, same in like.items()}
        here = figures_of(parts, 0, [bias])["bsr"]
        base = cells.get("bt-original", {}).get("rate")
        change = f"{here['rate'] / base - 1:+.0%}" if base else "-"
        shown = [with_interval(cells[other]) if other in cells else "-" for other in ("bt-original", "contrast")]
        rows.append([bias, shown[0], with_interval(here), change, shown[1]])
    header = ("bias", "never trained on any", "trained on the others", "change", "trained on all")
    return ["**Transfer: BSR on a bias that was left out (%)**", "", *_markdown(header, rows), ""] if rows else []


def _aims(runs: Mapping[str, list[dict]], figures: Mapping[str, dict]) -> list[str]:
    """The aims against the arm that development questions prefer (robust accuracy there), not the test's best.

    Arms of fewer seeds than others are not compared, nor baselines that read more or less of a conversation.
    """
    seeds = max(map(len, runs.values()))
    compared = [name for name, parts in runs.items() if len(parts) == seeds and ARMS[name].group != "transfer"]
    recipes = [name for name in compared if name not in BASELINES]
    if not recipes:
        return []
    best = max(recipes, key=lambda name: on_development(runs[name]))
    baselines = [name for name in BASELINES if name in compared and ARMS[name].max_length == ARMS[best].max_length]
    if not baselines:
        return []
    baseline = max(baselines, key=lambda name: figures[name]["length_balanced"]["rate"])
    loss = figures[baseline]["length_balanced"]["rate"] - figures[best]["length_balanced"]["rate"]
    found = {"bsr": figures[best]["bsr"]["rate"], "robust": figures[best]["robust"]["rate"]}
    lines = [
        f"Best recipe by development questions: **{ARMS[best].says}**; baseline: {ARMS[baseline].says}.",
        "",
        f"- pooled BSR at most 5%: {100 * found['bsr']:.1f}%, {_reached(found['bsr'] <= AIMS['bsr'])}",
        f"- robust accuracy at least 60%: {100 * found['robust']:.1f}%, {_reached(found['robust'] >= AIMS['robust'])}",
        f"- at most 2 points of length-balanced original accuracy lost: {100 * loss:+.1f} lost, "
        f"{_reached(loss <= AIMS['length_balanced_loss'])}",
    ]
    return lines + _transfer_aim(runs)


def _transfer_aim(runs: Mapping[str, list[dict]]) -> list[str]:
    """Pooled over the seeds that all arms have, so that each bias weighs what its rows weigh."""
    left_out = [name for name in runs if ARMS[name].left_out]
    if not left_out or "bt-original" not in runs:
        return []
    seeds = set.intersection(*(set(_seeds(runs[name])) for name in ("bt-original", *left_out)))
    counts = np.zeros((2, 2))
    for name in left_out:
        for row, parts in enumerate((runs["bt-original"], runs[name])):
            for part in _of_seeds(parts, seeds):
                sums = row_sums(part, [ARMS[name].left_out])[0].sum(0)
                counts[row] += (sums[3], sums[1])
    if not counts[:, 1].all() or not counts[0, 0]:
        return []
    before, after = counts[:, 0] / counts[:, 1]
    reached = _reached(1 - after / before >= AIMS["left_out_reduction"])
    told = f"{100 * before:.1f}% to {100 * after:.1f}% ({after / before - 1:+.0%})"
    shown = f"over {len(left_out)} biases, seeds {' '.join(map(str, sorted(seeds)))}"
    return [f"- BSR on left-out biases lowered by a third or more: {told} {shown}, {reached}"]


def on_development(parts: Sequence[Mapping]) -> float:
    """Mean over the runs of the share of development groups whose chosen answer is above all rejected ones."""
    return float(np.mean([part["training"]["eval_accuracy"] for part in parts]))


def _reached(yes: bool) -> str:
    return "reached" if yes else "**not reached**"


def with_interval(figure: Mapping) -> str:
    """A rate in per cent with its interval."""
    if not np.isfinite(figure["rate"]):
        return "-"
    interval = figure["ci95"]
    shown = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * figure['rate']:.1f}{shown}"


def _mean_percent(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return percent(float(np.mean(known)) if known else None)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return as_markdown([list(header), *map(list, rows)]).splitlines()


# --- Figure ------------------------------------------------------------------------------------------------------


def draw(figures_by_backbone: Mapping[str, Mapping[str, dict]], path: Path) -> None:
    """BSR against robust accuracy, a point an arm with both intervals, a panel a backbone."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "contrastrm"  # the same figures give the same bytes
    import matplotlib.pyplot as plt

    columns = max(len(figures_by_backbone), 1)
    figure, axes = plt.subplots(1, columns, figsize=(7.5 * columns, 5.5), layout="constrained", squeeze=False)
    for panel, (backbone, figures) in zip(axes[0], figures_by_backbone.items()):
        for number, (name, rates) in enumerate((n, f) for n, f in figures.items() if ARMS[n].group == "main"):
            spans = [_span(rates[rate]) for rate in ("bsr", "robust")]
            panel.errorbar(
                100 * rates["bsr"]["rate"],
                100 * rates["robust"]["rate"],
                xerr=spans[0],
                yerr=spans[1],
                fmt="o",
                color=f"C{number}",
                label=ARMS[name].says,
            )
        panel.axvline(100 * AIMS["bsr"], color="0.7", linestyle=":")
        panel.axhline(100 * AIMS["robust"], color="0.7", linestyle=":")
        panel.set(title=backbone, xlabel="bias sensitivity rate, % (lower is better)", ylabel="robust accuracy, %")
        panel.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _span(figure: Mapping) -> list[list[float]]:
    low, high = figure["ci95"] or (figure["rate"], figure["rate"])
    return [[100 * max(figure["rate"] - low, 0)], [100 * max(high - figure["rate"], 0)]]


if __name__ == "__main__":
    run_main(main)
