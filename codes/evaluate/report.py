"""Put evaluated models side by side: a page to explore, a table, or a chart of the bias sensitivity rates.

    python -m codes.evaluate.report results/pairwise results/contrast -o report.html
    python -m codes.evaluate.report results/pairwise results/contrast --format latex --figure comparison.pdf

Reads what eval_rm, eval_reward_bench and eval_benchmark left in each folder. The page is one self-contained file: rates
by bias and model, margins, length, benchmarks, paired tests, and the flipped pairs themselves. A figure that was not
evaluated is shown as "-". Rates are per cent, with their 95% interval. An output that is there is replaced only where
it is of the same kind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import command_parser, positive_int, random_seed, run_main
from codes.common.figure_files import refuse_foreign_figure
from codes.common.page import refuse_no_page
from codes.common.records import InputError, replace_file
from codes.evaluate.read_results import Results, read_results
from codes.evaluate.report_figure import draw_figure
from codes.evaluate.report_page import report_page
from codes.evaluate.report_table import ALL_BIASES_ROW, LATEX_START, as_csv, as_latex, as_markdown, comparison_rows

TABLES = {"md": as_markdown, "csv": as_csv, "latex": as_latex}
FORMAT_OF_SUFFIX = {".html": "html", ".htm": "html", ".csv": "csv", ".tex": "latex"}


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    _refuse_foreign_outputs(args)
    results = [read_results(folder) for folder in args.folders]
    if args.figure is not None and not any(result.overall for result in results):
        raise InputError("--figure: none of the folders holds bias sensitivity rates of `eval_rm all`")
    text = _report(results, args)
    if args.output_file is None:
        sys.stdout.write(text)
    else:
        with replace_file(args.output_file) as file:
            file.write(text)
    if args.figure is not None:
        draw_figure(results, args.figure)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.report")
    parser.add_argument("folders", nargs="+", type=Path, help="result folders, one a model: results/<name>")
    parser.add_argument(
        "--format", choices=(*TABLES, "html"), help="default: by --output_file's suffix (.html, .csv, .tex), else md"
    )
    parser.add_argument("-o", "--output_file", type=Path, help="where to write; standard output without it")
    parser.add_argument(
        "--figure", type=Path, help="also draw the bias sensitivity rates into this .png, .svg or .pdf file"
    )
    parser.add_argument(
        "--pairs", type=positive_int, default=40, help="most flipped pairs of each model and bias on the page"
    )
    parser.add_argument("--seed", type=random_seed, default=42, help="of the intervals of differences on the page")
    args = parser.parse_args(argv)
    if args.format is None:
        suffix = args.output_file.suffix.lower() if args.output_file else ""
        args.format = FORMAT_OF_SUFFIX.get(suffix, "md")
    return args


def _report(results: Sequence[Results], args: argparse.Namespace) -> str:
    if args.format == "html":
        return report_page(results, pairs=args.pairs, seed=args.seed)
    return TABLES[args.format](comparison_rows(results))


def _refuse_foreign_outputs(args: argparse.Namespace) -> None:
    """Raise InputError where an output has no known suffix or would replace what is no report of ours."""
    output, figure = args.output_file, args.figure
    if output is not None and args.format == "html":
        refuse_no_page(output)
    elif output is not None and output.exists():
        if not output.is_file():
            raise InputError(f"--output_file {output}: is no file")
        start = output.read_bytes()[:100_000].decode("utf-8", errors="replace")
        if not (start.startswith(("|  ", ",", LATEX_START)) and ALL_BIASES_ROW in start):
            raise InputError(f"--output_file {output}: is there already and is no table of this command; not replaced")
    if figure is not None:
        refuse_foreign_figure(figure)


if __name__ == "__main__":
    run_main(main)
