"""How much faster, and in how much memory, are groups trained here than with TRL's RewardTrainer?

    python -m benchmarks.bench_training --data_dir ../shared/data/contrastrm-eval

Both train the same randomly initialised decoder on the same groups, in as many optimizer steps of as many groups, with
the same optimizer and precision, each in a process of its own. TRL gets every group as its pairs (chosen, rejected),
tokenized beforehand, in its best batch size of 2, 4 and 8 pairs; ours gets whole groups, in its best of 1, 2 and 4. Two
sets: the real groups of a chosen and at least three rejected answers, and a long-prompt set built of the same texts (a
prompt of 1,024 tokens, 8 answers of 128). Printed are medians of several runs, as ratios: groups a second, peak memory,
and the share of the machine's matrix-multiplication rate that the FLOPs of the needed tokens reach. On a busy machine
read the figures by CPU time, with OMP_NUM_THREADS=1: they hardly depend on what else runs. With CUDA the model has
Qwen3-0.6B's shape and computes in bfloat16.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)

from codes.common.cli import RunFailed, command_parser, positive_int, run_main
from codes.common.conversation import load_tokenizer
from codes.common.prefix_sharing import common_prefix_length
from codes.common.records import InputError, read_jsonl, write_json, write_jsonl
from codes.train.batches import GroupDataset
from codes.train.reward_model import RewardModel
from codes.train.stopping import StoppingSettings
from codes.train.tiny_model import make_tiny_model, record_texts
from codes.train.tokenized_data import tokenized_file
from codes.train.train_settings import RewardTrainingArguments
from codes.train.trainer import RewardTrainer
from codes.train.training_data import EncodingSettings

LEAST_REJECTED = 3
LONG_PROMPT, LONG_ANSWERS, LONG_ANSWER = 1024, 8, 128  # tokens, answers, tokens
MAX_LENGTH = 2048
QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


# --- Data and model ----------------------------------------------------------------------------------------------


def real_groups(data_dir: Path, folder: Path) -> list[dict]:
    """The groups of the bias-pair files that have a chosen and at least three rejected answers."""
    command = ["codes.construct.import_data", str(data_dir), "--output_file", str(folder / "all.jsonl")]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    groups = [record for record in read_jsonl(folder / "all.jsonl") if len(record["rejected"]) >= LEAST_REJECTED]
    if not groups:
        raise InputError(f"--data_dir {data_dir}: no question has a chosen and {LEAST_REJECTED} rejected answers")
    return groups


def long_prompt_groups(groups: list[dict], tokenizer, count: int, draw: Random) -> list[dict]:
    """Groups of about 1,024 prompt tokens and 8 answers of about 128, cut from the given groups' answers."""
    texts = [answer for group in groups for answer in (group["chosen"], *group["rejected"])]
    draw.shuffle(texts)
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    needed = LONG_PROMPT + LONG_ANSWERS * LONG_ANSWER
    ids *= -(-count * needed // len(ids))

    def cut(start: int, length: int) -> str:
        return tokenizer.decode(ids[start : start + length])

    records = []
    for start in range(0, count * needed, needed):
        first = start + LONG_PROMPT
        answers = [cut(first + place * LONG_ANSWER, LONG_ANSWER) for place in range(LONG_ANSWERS)]
        records.append({"question": cut(start, LONG_PROMPT), "chosen": answers[0], "rejected": answers[1:]})
    return records


def make_model(folder: Path, data: Path, seed: int) -> None:
    """A random Qwen3: 6 layers of width 384, or with CUDA the shape of Qwen3-0.6B."""
    make_tiny_model(folder, record_texts([data]), seed=seed, vocab_size=8192, hidden_size=384, layers=6)
    if torch.cuda.is_available():
        config = Qwen3Config(**Qwen3Config.from_pretrained(folder).to_dict() | QWEN3_06B | {"layer_types": None})
        Qwen3ForCausalLM(config).save_pretrained(folder)


# --- One run, in a process of its own ----------------------------------------------------------------------------


class TrainingTime(TrainerCallback):
    """Wall and CPU seconds from the first forward to the end of the last optimizer step, and the number of steps."""

    def on_train_begin(self, args, state, control, **_):
        self.steps, self._started = 0, _clocks()

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        self.wall, self.cpu = (now - start for now, start in zip(_clocks(), self._started))


def _clocks() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def shared_arguments(folder: Path, batch: int, accumulation: int) -> dict:
    """What both trainers are told alike: one epoch, AdamW, float32 on CPU, nothing written or logged."""
    return {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "seed": 1,
    }


def our_trainer(folder: Path, data: GroupDataset, batch: int, groups_per_step: int, way: str) -> RewardTrainer:
    """``batch`` groups a forward; ``way``: auto or off, as --prefix_sharing, or flex."""
    model = RewardModel.from_pretrained(str(folder / "model"), new_head=True)
    model.ensure_own_pad_token()
    model.share_prefixes("auto", "flex") if way == "flex" else model.share_prefixes(way)
    return RewardTrainer(
        model=model,
        args=RewardTrainingArguments(**shared_arguments(folder, batch, groups_per_step // batch)),
        train_dataset=data,
        objective={"training_mode": "contrast", "temperature": 0.5},
        stopping=StoppingSettings(),
    )


def trl_trainer(folder: Path, data: GroupDataset, batch: int, groups_per_step: int) -> transformers.Trainer:
    """``batch`` pairs a forward, accumulated so that the epoch has as many optimizer steps as ours."""
    from datasets import Dataset
    from trl import RewardConfig
    from trl import RewardTrainer as TrlRewardTrainer

    groups = [data[index].answers for index in range(len(data))]
    pairs = [{"chosen_ids": group[0], "rejected_ids": other} for group in groups for other in group[1:]]
    steps = -(-len(groups) // groups_per_step)
    accumulation = -(-len(pairs) // (batch * steps))
    arguments = shared_arguments(folder, batch, accumulation)
    return TrlRewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=torch.float32),
        args=RewardConfig(**arguments, max_length=MAX_LENGTH, gradient_checkpointing=False),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )


def run_here(args: argparse.Namespace) -> dict:
    """Train one epoch as the flags say and measure it."""
    folder = args.folder
    transformers.logging.set_verbosity_error()
    tokenizer = load_tokenizer(str(folder / "model"))
    data = GroupDataset(
        [tokenized_file(str(folder / f"{args.data}.jsonl"), tokenizer, EncodingSettings(MAX_LENGTH), folder / "cache")]
    )
    if args.way == "trl":
        trainer = trl_trainer(folder, data, args.batch, args.groups_per_step)
    else:
        trainer = our_trainer(folder, data, args.batch, args.groups_per_step, args.way)
    times = TrainingTime()
    trainer.add_callback(times)
    flops = needed_flops(trainer.model, data)
    peak = matmul_rate(trainer.args.device, torch.bfloat16 if trainer.args.bf16 else torch.float32)
    before = memory_gib()
    trainer.train()
    return {
        "groups": len(data),
        "steps": times.steps,
        "groups_per_second": len(data) / times.wall,
        "groups_per_cpu_second": len(data) / times.cpu,
        "share_of_matmul_rate": flops / times.wall / peak[0],
        "share_by_cpu_time": flops / times.cpu / peak[1],
        "matmul_gflops": peak[0] / 1e9,
        "peak_memory_gib": memory_gib(),
        "memory_of_training_gib": memory_gib() - before,
    }


def memory_gib() -> float:
    """The most that this process has held so far: of the GPU, or where there is none of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def needed_flops(model: torch.nn.Module, data: GroupDataset) -> float:
    """Forward and backward of the tokens that are needed: every prompt once, attention to what is visible alone.

    Two FLOPs a weight and token and twice that backward (Kaplan et al. 2020, section 2.1); embeddings are looked up.
    """
    config = model.config
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = 0
    for index in range(len(data)):
        answers = data[index].answers
        prompt = common_prefix_length(answers)
        own = [len(answer) - prompt for answer in answers]
        attended = prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in own)
        flops += 2 * weights * (prompt + sum(own)) + 4 * heads * attended
    return 3 * flops


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> tuple[float, float]:
    """The most FLOPs a second that matrix products reached in a few tries: by the wall clock, and of CPU time."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        started = _clocks()
        left @ right
        seconds.append([now - start for now, start in zip(_clocks(), started)])
    wall, cpu = map(min, zip(*seconds))
    return 2 * size**3 / wall, 2 * size**3 / cpu


# --- The table ---------------------------------------------------------------------------------------------------


def measure(folder: Path, data: str, way: str, batch: int, groups_per_step: int) -> dict:
    """One run in a process of its own."""
    flags = {"folder": folder, "data": data, "way": way, "batch": batch, "groups_per_step": groups_per_step}
    command = [sys.executable, "-m", "benchmarks.bench_training", "--one_run"]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"{way} with batches of {batch} failed: {done.stderr.strip().splitlines()[-1:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {value:.3g}" for name, value in result.items())
    print(f"  {data:5} {way:4} batch {batch}: {shown}", file=sys.stderr, flush=True)
    return {"way": way, "batch": batch, **result}


def compare(folder: Path, data: str, repeats: int, groups_per_step: int, batches: dict[str, list[int]]) -> dict:
    """Each way in its best batch size, as medians of ``repeats`` runs taken in turn."""
    tried = {
        way: [measure(folder, data, way, size, groups_per_step) for size in sizes] for way, sizes in batches.items()
    }
    best = {way: max(runs, key=lambda run: run["groups_per_second"]) for way, runs in tried.items()}
    runs = {way: [run] for way, run in best.items()}
    for _ in range(repeats - 1):
        for way, first in best.items():
            runs[way].append(measure(folder, data, way, first["batch"], groups_per_step))
    numbers = [name for name, value in best["trl"].items() if isinstance(value, int | float)]
    return {way: {name: statistics.median(run[name] for run in runs[way]) for name in numbers} for way in runs}


def table(results: dict[str, dict]) -> str:
    """A Markdown table, a line a set and way; ratios are ours over TRL's."""
    columns = ("set", "trainer", "batch", "groups/s", "ratio", "groups/CPU s", "ratio", "peak memory, GiB")
    columns += ("of the matmul rate", "by CPU time")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for data, ways in results.items():
        trl = ways["trl"]
        for way, run in ways.items():
            unit = "pairs" if way == "trl" else "groups"
            names = {
                "trl": "TRL RewardTrainer",
                "auto": "ours",
                "off": "ours, no sharing",
                "flex": "ours, FlexAttention",
            }
            name = names[way]
            ratios = [run[rate] / trl[rate] for rate in ("groups_per_second", "groups_per_cpu_second")]
            lines.append(
                f"| {data} | {name} | {run['batch']:.0f} {unit} | {run['groups_per_second']:.2f} | {ratios[0]:.2f} "
                f"| {run['groups_per_cpu_second']:.2f} | {ratios[1]:.2f} | {run['peak_memory_gib']:.2f} "
                f"| {run['share_of_matmul_rate']:.0%} | {run['share_by_cpu_time']:.0%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = command_parser(__doc__, "benchmarks.bench_training")
    parser.add_argument("--data_dir", type=Path, default=Path("data/eval"), help="folder of <bias>_bias.jsonl files")
    parser.add_argument("--groups", type=positive_int, default=24, help="groups of the real set, drawn at random")
    parser.add_argument("--long_groups", type=positive_int, default=8, help="groups of the long-prompt set")
    parser.add_argument("--groups_per_step", type=positive_int, default=8, help="groups of an optimizer step")
    parser.add_argument("--repeats", type=positive_int, default=3, help="runs of each way; medians count")
    parser.add_argument("--our_batches", type=positive_int, nargs="+", default=[1, 2, 4], help="groups, tried in turn")
    parser.add_argument("--trl_batches", type=positive_int, nargs="+", default=[2, 4, 8], help="pairs, tried in turn")
    ways_help = "also ours: off, without sharing; flex, with FlexAttention (CUDA)"
    parser.add_argument("--ways", nargs="+", choices=("off", "flex"), default=[], help=ways_help)
    parser.add_argument("--seed", type=int, default=42, help="of the model's weights and of the groups drawn")
    parser.add_argument("--output_file", type=Path, help="JSON file to write all figures to")
    for name in ("one_run", "folder", "data", "way", "batch"):  # what this script tells the processes it starts
        kind = {"one_run": {"action": "store_true"}, "folder": {"type": Path}, "batch": {"type": int}}.get(name, {})
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **kind)
    args = parser.parse_args()
    if args.one_run:
        print(json.dumps(run_here(args)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder, draw = Path(made), Random(args.seed)
        groups = real_groups(args.data_dir, folder)
        write_jsonl(folder / "vocabulary.jsonl", groups)
        make_model(folder / "model", folder / "vocabulary.jsonl", args.seed)
        write_jsonl(folder / "real.jsonl", draw.sample(groups, min(args.groups, len(groups))))
        tokenizer = load_tokenizer(str(folder / "model"))
        write_jsonl(folder / "long.jsonl", long_prompt_groups(groups, tokenizer, args.long_groups, draw))
        batches = {"trl": args.trl_batches, "auto": args.our_batches, **dict.fromkeys(args.ways, args.our_batches)}
        results = {
            data: compare(folder, data, args.repeats, args.groups_per_step, batches) for data in ("real", "long")
        }
    rate = results["real"]["auto"]["matmul_gflops"]
    print(
        f"{args.groups_per_step} groups a step, {torch.get_num_threads()} threads, matrix products {rate:.0f} GFLOP/s"
    )
    print(table(results))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    run_main(main)
