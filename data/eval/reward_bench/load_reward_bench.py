"""Fetch the Reward-Bench evaluation set once and write it as JSONL, for nodes without internet.

    python data/eval/reward_bench/load_reward_bench.py
    python data/eval/reward_bench/load_reward_bench.py --from DIR
    python -m codes.evaluate.eval_reward_bench all --scorer length --data data/eval/reward_bench/filtered.jsonl

The rows are the split 'filtered' of allenai/reward-bench on the Hugging Face Hub, or of a file or folder that holds it
(--from). All 2,985 rows must be there, with the official number in each of the 23 subsets.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT))

from codes.common.cli import EXIT_DONE, command_parser, progress, random_seed, run_main  # noqa: E402
from codes.common.records import FieldError, InputError, check_reward_bench_row, content_hash, write_jsonl  # noqa: E402
from codes.common.run_info import write_run_info  # noqa: E402
from codes.common.sources import find_source  # noqa: E402
from codes.construct.import_data import require_replaceable  # noqa: E402
from codes.evaluate.metrics import REWARD_BENCH_ROWS  # noqa: E402

SOURCE = "allenai/reward-bench"
FIELDS = ("prompt", "chosen", "rejected", "subset", "id", "chosen_model", "rejected_model")


def load_rows(source: str, split: str, revision: str | None, expected: Mapping[str, int]) -> list[dict]:
    """The set's rows with the seven fields of a Reward-Bench row, checked against the expected rows of each subset."""
    rows = []
    for where, row in progress(find_source(source, split, revision=revision).rows(), desc="reading"):
        try:
            check_reward_bench_row(row)
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
        rows.append({field: row[field] for field in FIELDS if field in row})
    found = Counter(row["subset"] for row in rows)
    wrong = [name for name in sorted(found.keys() | expected.keys()) if found[name] != expected.get(name, 0)]
    if wrong:
        differences = ", ".join(f"{name} {found[name]} of {expected.get(name, 0)}" for name in wrong)
        raise InputError(
            f"{source}: {len(rows)} rows, expected {sum(expected.values())}; rows by subset: {differences}"
        )
    return rows


def main(argv: Sequence[str] | None = None, expected: Mapping[str, int] = REWARD_BENCH_ROWS) -> int:
    parser = command_parser(__doc__, "")
    parser.prog = "python data/eval/reward_bench/load_reward_bench.py"
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", default=SOURCE, help="a file, a folder, or OWNER/NAME on the Hub"
    )
    parser.add_argument("--output_file", help="the rows (JSONL); default: filtered.jsonl beside this script")
    parser.add_argument("--split", default="filtered", help="the split to take of the Hub or of a folder's files")
    parser.add_argument("--revision", help="the commit, tag or branch on the Hub")
    parser.add_argument("--seed", type=random_seed, default=42, help="has no effect here; taken as by every command")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output_file or Path(__file__).with_name("filtered.jsonl"))
    rows = load_rows(arguments.source, arguments.split, arguments.revision, expected)
    configuration = {"command": "load_reward_bench", "rows": content_hash(rows)}
    require_replaceable(output, configuration)
    # First, so that a run killed between the two finds its own file again.
    write_run_info(output, configuration, subsets=dict(Counter(row["subset"] for row in rows)))
    write_jsonl(output, rows)
    print(f"{len(rows)} rows in {len({row['subset'] for row in rows})} subsets written to {output}")
    return EXIT_DONE


if __name__ == "__main__":
    run_main(main)
