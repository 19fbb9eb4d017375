"""Fetch llm-blender/Unified-Feedback once and write it as train records, for nodes without internet.

    python data/train-unified-feedback/load_data.py
    python data/train-unified-feedback/load_data.py --from DIR --limit 50000

The rows come from the Hugging Face Hub (configuration 'all'), or from a file or folder that holds them (--from). Each
pair of rated conversations becomes one record; equal ratings are left out and counted. This is
`python -m codes.construct.import_data` with its settings filled in.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from codes.common.cli import command_parser, positive_int, random_seed, run_main  # noqa: E402
from codes.construct import import_data  # noqa: E402

SOURCE = "llm-blender/Unified-Feedback"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, "")
    parser.prog = "python data/train-unified-feedback/load_data.py"
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", default=SOURCE, help="a file, a folder, or OWNER/NAME on the Hub"
    )
    parser.add_argument("--output_file", help="the train records (JSONL); default: train.jsonl beside this script")
    parser.add_argument("--split", default="train", help="the split to take: train or val")
    parser.add_argument(
        "--config", default="all", help="the configuration to take: 'all', or one source such as Nectar"
    )
    parser.add_argument("--revision", help="the commit, tag or branch on the Hub")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="write the first N records at most")
    parser.add_argument("--seed", type=random_seed, default=42, help="has no effect here; taken as by every command")
    arguments = parser.parse_args(argv)
    arguments.output_file = arguments.output_file or str(Path(__file__).with_name("train.jsonl"))
    given = {flag: getattr(arguments, flag) for flag in ("output_file", "split", "config", "revision", "limit")}
    flags = [text for flag, value in given.items() if value is not None for text in (f"--{flag}", str(value))]
    return import_data.main([arguments.source, "--format", "unified-feedback", *flags])


if __name__ == "__main__":
    run_main(main)
