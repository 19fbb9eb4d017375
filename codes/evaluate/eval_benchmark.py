"""Evaluate a reward model on RM-Bench, RewardBench 2, JudgeBench, LLMBar, EvalBiasBench or pairs of your own.

    python -m codes.evaluate.eval_benchmark rm-bench --model_path output/my_reward_model
    python -m codes.evaluate.eval_benchmark pairs --data my_pairs.jsonl --scorer length

Rows come from the Hub, or from --data: a file (JSONL, JSON, Parquet, CSV), a folder, or OWNER/NAME there. `pairs` takes
rows with prompt, chosen, rejected and optionally group. Results go to OUTPUT_DIR/<name>:
<benchmark>_evaluation_<name>.jsonl (rows with scores) and <benchmark>_summary_<name>.json.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import EXIT_DONE, command_parser, run_main
from codes.common.records import InputError, content_hash
from codes.common.result_files import aligned_table, rate_cell
from codes.evaluate.benchmark import AnswerScores, Benchmark, BenchmarkRow, length_scores, read_benchmark
from codes.evaluate.benchmark_run import ResultFiles, load_scorer_for, score_rows, write_results
from codes.evaluate.pair_benchmarks import EVALBIASBENCH, JUDGEBENCH, LLMBAR, pair_file
from codes.evaluate.results import add_result_flags, warn_of_replaced_fields
from codes.evaluate.rewardbench_2 import REWARDBENCH_2
from codes.evaluate.rm_bench import RM_BENCH
from codes.evaluate.scorers import add_scorer_flags, check_scorer_flags
from codes.evaluate.scoring import exit_status

PAIRS = "pairs"
BENCHMARKS = {set_.name: set_ for set_ in (RM_BENCH, REWARDBENCH_2, JUDGEBENCH, LLMBAR, EVALBIASBENCH)}
# What is left for it of a file's name beside the model's; see codes.evaluate.results.LONGEST_NAME.
LONGEST_PAIRS_NAME = 40
RESULT_FIELDS = ("chosen_scores", "rejected_scores", "comparisons", "correct", "preference_probability")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    check_scorer_flags(args)
    benchmark = BENCHMARKS.get(args.benchmark) or pair_file(args.group_field)
    files = ResultFiles.of(args, _stem(args))
    rows, origin = read_benchmark(benchmark, args.data, args.data_revision)
    warn_of_replaced_fields(rows[0].where, rows[0].row, RESULT_FIELDS)
    data = {"benchmark": files.stem, "data_sha256": content_hash([(row.row, row.subset) for row in rows])}
    scorer, configuration = load_scorer_for(args, files, data)
    scored = score_rows(args, scorer, rows, files.folder)
    if scored is None:
        return EXIT_DONE
    summary = write_results(
        args,
        files,
        scorer,
        configuration,
        (_result_row(benchmark, row, scores) for row, scores in zip(rows, scored.scores)),
        {**figures_of(benchmark, files.stem, rows, scored.scores, args), **scored.checks},
        {**origin, **scored.truncation},
    )
    _print_results(benchmark, summary, files.folder)
    return exit_status(scorer)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.eval_benchmark")
    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"one of {', '.join([*BENCHMARKS, PAIRS])}")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="file or folder with the rows, or OWNER/NAME; default: the set on the Hub",
    )
    parser.add_argument("--data_revision", help="commit, branch or tag of the data on the Hub")
    parser.add_argument("--group_field", default="group", help="the field that names a row's group (pairs)")
    parser.add_argument("--pairs_name", help="name of the pairs in result files; default: the data file's, cleaned")
    add_result_flags(parser)
    add_scorer_flags(parser)
    args = parser.parse_args(argv)
    args.benchmark = args.benchmark.strip().lower()
    if args.benchmark not in (*BENCHMARKS, PAIRS):
        raise InputError(f"BENCHMARK {args.benchmark!r}: is not one of {', '.join([*BENCHMARKS, PAIRS])}")
    if args.benchmark != PAIRS and args.pairs_name is not None:
        raise InputError(f"--pairs_name: is for pairs, not for {args.benchmark}")
    return args


def _stem(args: argparse.Namespace) -> str:
    """What the result files of a benchmark begin with; files of pairs add their own name, so that sets do not mix."""
    if args.benchmark != PAIRS:
        return args.benchmark.replace("-", "_")
    given = args.pairs_name if args.pairs_name is not None else Path(args.data or "").stem
    cleaned = re.sub(r"[^A-Za-z0-9.-]", "-", given)[:LONGEST_PAIRS_NAME]
    if args.data and not re.search(r"[A-Za-z0-9]", cleaned):
        raise InputError(f"--pairs_name {given!r}: has no letter or digit to name results by")
    return f"{PAIRS}_{cleaned}"


def figures_of(
    benchmark: Benchmark,
    stem: str,
    rows: Sequence[BenchmarkRow],
    scores: Sequence[AnswerScores],
    args: argparse.Namespace,
) -> dict:
    """The summary's figures, with those of 'the longer answer wins' and 'the shorter answer wins' beside them."""
    figures = {
        "benchmark": stem,
        "title": benchmark.title,
        **benchmark.completeness(rows),
        "total_records_evaluated": len(rows),
        **benchmark.summarize(rows, scores, seed=args.seed),
    }
    if args.scorer != "length":
        figures["length_baseline"] = benchmark.summarize(rows, length_scores(rows), seed=args.seed)
    shorter = benchmark.summarize(rows, length_scores(rows, sign=-1), seed=args.seed)
    return {**figures, "shorter_answer_baseline": {name: shorter[name] for name in ("overall", "sections")}}


def _result_row(benchmark: Benchmark, row: BenchmarkRow, scores: AnswerScores) -> dict:
    """The row as it was, with the subset it counts in and what came out."""
    return {
        "subset": row.subset,
        **row.row,
        **scores.fields(),
        "correct": benchmark.correct(scores),
    }


def _print_results(benchmark: Benchmark, summary: dict, folder: Path) -> None:
    baseline = summary.get("length_baseline", summary)
    table = []
    for name, figures in summary["subsets"].items():
        if figures["rows"]:
            published = str(figures["official_rows"] or "-")
            rates = rate_cell(figures["accuracy"], figures["ci95"]), rate_cell(baseline["subsets"][name]["accuracy"])
            table.append((name, str(figures["rows"]), published, str(figures["ties"]), *rates))
    for name, score in summary["sections"].items():
        if name not in summary["subsets"] or score != summary["subsets"][name]["accuracy"]:
            cells = rate_cell(score, summary["ci95"]["sections"][name]), rate_cell(baseline["sections"][name])
            table.append((f"= {name}", "", "", "", *cells))
    averages = [name for name in ("easy", "normal", "hard", "micro_accuracy", "macro_accuracy") if name in summary]
    for name in [*averages, "overall"]:
        if name != "overall" or "micro_accuracy" not in summary:  # which for pairs is one of the two
            label = f"overall ({summary['overall_is']})" if name == "overall" else name.replace("_", " ")
            cells = rate_cell(summary[name], summary["ci95"][name]), rate_cell(baseline[name])
            table.append((label, "", "", "", *cells))
    print(f"{summary['eval_model']}: {benchmark.title}, with 95% interval")
    print(aligned_table(("subset or section", "rows", "published", "ties", "accuracy", "length alone"), table))
    if summary["complete"] is False:
        print(f"not the whole of {benchmark.title}: these figures do not compare with published ones")
    print(f"results: {folder}")


if __name__ == "__main__":
    run_main(main)
