"""Evaluate a reward model on Reward-Bench, or on one of its sections.

    python -m codes.evaluate.eval_reward_bench all --model_path output/my_reward_model
    python -m codes.evaluate.eval_reward_bench chat-hard --scorer length --data data/eval/reward_bench/sample.jsonl

Rows come from the Hub (allenai/reward-bench, split filtered) or from --data. Results go to OUTPUT_DIR/<name>:
reward_bench_evaluation_<name>.jsonl (rows with scores) and reward_bench_summary_<name>.json. Both cover every section
evaluated so far on the same data: a section that is evaluated by itself joins those that are there.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codes.common.cli import EXIT_DONE, command_parser, run_main
from codes.common.records import FieldError, InputError, check_reward_bench_row, content_hash, iter_jsonl
from codes.common.result_files import aligned_table, rate_cell
from codes.evaluate.benchmark import (
    Answers,
    AnswerScores,
    Benchmark,
    BenchmarkRow,
    length_scores,
    margins_of,
    read_benchmark,
)
from codes.evaluate.benchmark_run import ResultFiles, load_scorer_for, score_rows, write_results
from codes.evaluate.bias_summary import length_balanced_figures, question_name
from codes.evaluate.metrics import (
    REWARD_BENCH_ROWS,
    REWARD_BENCH_SECTIONS,
    require_known_subset,
    reward_bench_section,
)
from codes.evaluate.results import add_result_flags, warn_of_replaced_fields
from codes.evaluate.reward_bench_summary import reward_bench_summary
from codes.evaluate.scorers import add_scorer_flags, check_scorer_flags
from codes.evaluate.scoring import exit_status

ALL = "all"
RESULT_FIELDS = ("chosen_score", "rejected_score", "correct", "preference_probability")
SECTION_OF = {subset: section for section, subsets in REWARD_BENCH_SECTIONS.items() for subset in subsets}


def parse_reward_bench(row: dict) -> Answers:
    """prompt, chosen, rejected and subset; see ``codes.evaluate.benchmark.Benchmark``."""
    check_reward_bench_row(row)
    try:
        require_known_subset(row["subset"])
    except ValueError as error:
        raise FieldError("subset", str(error)) from None
    return Answers(row["prompt"], (row["chosen"],), (row["rejected"],), row["subset"])


def summarize_reward_bench(rows: Sequence[BenchmarkRow], scores: Sequence[AnswerScores], *, seed: int) -> dict:
    """The figures of these rows, see ``reward_bench_summary``, and the accuracy over all rows balanced by length."""
    subsets, questions = [row.subset for row in rows], [question_name(row.answers.question) for row in rows]
    margins = margins_of(scores)
    differences = np.array([len(row.answers.chosen[0]) - len(row.answers.rejected[0]) for row in rows])
    return {
        **reward_bench_summary(subsets, questions, margins, [0.0] * len(rows), seed=seed),
        "length_balanced": length_balanced_figures(margins > 0, differences, questions, seed),
    }


REWARD_BENCH = Benchmark(
    name="reward-bench",
    title="Reward-Bench",
    parse=parse_reward_bench,
    summarize=summarize_reward_bench,
    official_rows=REWARD_BENCH_ROWS,
    hub="allenai/reward-bench",
    splits=("filtered",),
    home="data/eval/reward_bench/load_reward_bench.py writes them on a node that has it",
    id_field="id",
)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    check_scorer_flags(args)
    files = ResultFiles.of(args, "reward_bench")
    every_row, origin = read_benchmark(REWARD_BENCH, args.data)
    sections = _asked_sections(every_row, args)
    warn_of_replaced_fields(every_row[0].where, every_row[0].row, RESULT_FIELDS)
    data = {"data_sha256": content_hash([row.row for row in every_row])}
    scorer, configuration = load_scorer_for(args, files, data)
    kept = _sections_there(files.rows) - sections
    rows = [row for row in every_row if SECTION_OF[row.subset] in sections | kept]
    scored = score_rows(args, scorer, rows, files.folder)
    if scored is None:
        return EXIT_DONE
    covered = [section for section in REWARD_BENCH_SECTIONS if section in sections | kept]
    summary = write_results(
        args,
        files,
        scorer,
        configuration,
        (
            {**row.row, "chosen_score": chosen, "rejected_score": rejected, "correct": chosen > rejected}
            for row, scores in zip(rows, scored.scores)
            for chosen, rejected in scores.compared[0]
        ),
        {"sections_evaluated": covered, **_figures(rows, scored.scores, args), **scored.checks},
        {**origin, **scored.truncation},
    )
    _print_results(summary, files.folder, kept)
    return exit_status(scorer)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.eval_reward_bench")
    sections = ", ".join(section.lower().replace(" ", "-") for section in REWARD_BENCH_SECTIONS)
    parser.add_argument("section", metavar="SECTION", help=f"one of {sections}, or all")
    parser.add_argument(
        "--data", metavar="FILE", help=f"JSONL of Reward-Bench rows; default: {REWARD_BENCH.hub} from the Hub"
    )
    add_result_flags(parser)
    add_scorer_flags(parser)
    args = parser.parse_args(argv)
    if args.section.strip().lower() == ALL:
        args.section = ALL
    else:
        try:
            args.section = reward_bench_section(args.section)
        except ValueError as error:
            raise InputError(f"SECTION {error}") from None
    return args


def _asked_sections(rows: Sequence[BenchmarkRow], args: argparse.Namespace) -> set[str]:
    """The sections to evaluate. Raises InputError where the rows have none of the one that was named."""
    present = {SECTION_OF[row.subset] for row in rows}
    if args.section == ALL:
        return present
    if args.section not in present:
        raise InputError(f"{args.data or REWARD_BENCH.hub}: field 'subset': has no row of section {args.section}")
    return {args.section}


def _sections_there(row_file: Path) -> set[str]:
    """The sections of earlier results on the same data. They stay in the results, from the scores that are stored."""
    if not row_file.exists():
        return set()
    return {SECTION_OF[row["subset"]] for _, row in iter_jsonl(row_file, parse_reward_bench)}


def _figures(rows: Sequence[BenchmarkRow], scores: Sequence[AnswerScores], args: argparse.Namespace) -> dict:
    """The scorer's figures, with those of 'the longer answer wins' beside them unless that is the scorer."""
    figures = summarize_reward_bench(rows, scores, seed=args.seed)
    if args.scorer != "length":
        figures["length_baseline"] = summarize_reward_bench(rows, length_scores(rows), seed=args.seed)
    return figures


def _print_results(summary: dict, folder: Path, kept: set[str]) -> None:
    baseline = summary.get("length_baseline", summary)
    table = [
        (
            name,
            str(figures["rows"]),
            str(figures["official_rows"]),
            rate_cell(figures["accuracy"], figures["ci95"]),
            rate_cell(baseline["subsets"][name]["accuracy"]),
        )
        for name, figures in summary["subsets"].items()
        if figures["rows"]
    ]
    for section, score in summary["sections"].items():
        interval = summary["ci95"]["sections"][section]
        table.append((section, "", "", rate_cell(score, interval), rate_cell(baseline["sections"][section])))
    for label, figure in (("overall", "overall"), ("average over rows", "weighted_average_accuracy")):
        table.append((label, "", "", rate_cell(summary[figure], summary["ci95"][figure]), rate_cell(baseline[figure])))
    print(f"{summary['eval_model']}: accuracy on Reward-Bench with 95% interval")
    print(aligned_table(("subset or section", "rows", "official", "accuracy", "length alone"), table))
    if kept:
        print(f"evaluated before on the same data, and kept: {', '.join(sorted(kept))}")
    if not summary["complete"]:
        print("not the whole of Reward-Bench: these figures do not compare with published ones")
    print(f"results: {folder}")


if __name__ == "__main__":
    run_main(main)
