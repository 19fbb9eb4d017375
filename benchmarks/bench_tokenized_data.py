"""What do many groups cost: to tokenize once, to open again, and to hold?

    python -m benchmarks.bench_tokenized_data --data_dir ../shared/data/contrastrm-eval --groups 100000

Groups are made from those of the bias-pair files, each answer cut to 60 words and numbered, so that no two are alike.
Printed are seconds, CPU seconds over all processes, and how much memory the process that trains takes, for the first
start, which tokenizes, and for a second one.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from codes.common.cli import command_parser, positive_int, run_main
from codes.common.conversation import load_tokenizer
from codes.common.records import read_jsonl, write_jsonl
from codes.train.tiny_model import make_tiny_model, record_texts
from codes.train.tokenized_data import tokenized_file
from codes.train.training_data import EncodingSettings

WORDS = 60
MAX_LENGTH = 512


def write_groups(data_dir: Path, folder: Path, count: int) -> None:
    """``count`` groups, numbered, so that neither questions nor answers repeat."""
    command = ["codes.construct.import_data", str(data_dir), "--output_file", str(folder / "groups.jsonl")]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    records = read_jsonl(folder / "groups.jsonl")

    def cut(text: object) -> str:
        return " ".join(str(text).split()[:WORDS])

    made = (
        {
            "question": f"{number}: {cut(record['question'])}",
            "chosen": cut(record["chosen"]),
            "rejected": [f"{cut(answer)} {place}" for place, answer in enumerate(record["rejected"])],
        }
        for number, record in enumerate(islice(cycle(records), count))
    )
    write_jsonl(folder / "train.jsonl", made)


def start(folder: Path) -> None:
    """What training does first, in a process of its own; the first to do it tokenizes."""
    tokenizer = load_tokenizer(str(folder / "model"))
    before, began = resident_mib(), (time.perf_counter(), cpu_seconds())
    data = tokenized_file(str(folder / "train.jsonl"), tokenizer, EncodingSettings(MAX_LENGTH), folder / "cache")
    seconds, cpu = time.perf_counter() - began[0], cpu_seconds() - began[1]
    memory = resident_mib() - before
    print(
        f"{len(data)} groups, {data.counts.tokens} tokens: {seconds:.1f} s, {cpu:.1f} CPU seconds, "
        f"{memory:.0f} MiB more in memory"
    )


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = command_parser(__doc__, "benchmarks.bench_tokenized_data")
    parser.add_argument("--data_dir", type=Path, default=Path("data/eval"), help="folder of <bias>_bias.jsonl files")
    parser.add_argument("--groups", type=positive_int, default=20_000)
    parser.add_argument("--start_in", type=Path, help=argparse.SUPPRESS)  # what this script tells the two it starts
    args = parser.parse_args()
    if args.start_in is not None:
        start(args.start_in)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_groups(args.data_dir, folder, args.groups)
        make_tiny_model(folder / "model", record_texts([folder / "groups.jsonl"]), vocab_size=8192)
        for name in ("first start", "second start"):
            print(name, end=": ", flush=True)
            command = [sys.executable, "-m", "benchmarks.bench_tokenized_data", "--start_in", str(folder)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    run_main(main)
