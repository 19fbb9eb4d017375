"""The command line of training: our flags beside transformers' TrainingArguments, checked before any work."""

import argparse
import json
import os
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from codes.common.cli import LARGEST_SEED, require_files
from codes.common.conversation import first_line
from codes.common.records import InputError
from codes.train.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from codes.train.checkpoints import accumulation_for, checkpoint_to_resume, needs_universal, written_under_deepspeed
from codes.train.reward_heads import ADAPTER_HEADS
from codes.train.reward_settings import RewardSettings, check_settings, require_number
from codes.train.stopping import StoppingSettings
from codes.train.trainer import TEMPERATURE_FILE
from codes.train.training_metrics import METRIC_NAMES
from codes.train.training_report import FIGURE_FILE, METRICS_FILE


@dataclass
class RewardTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with defaults for reward models."""

    learning_rate: float = field(default=1e-5, metadata={"help": "peak learning rate of AdamW"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the data"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "groups per device and forward"})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "groups per device and forward"})
    logging_steps: float = field(default=10, metadata={"help": "optimizer steps between two logs; below 1: a share"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept; older ones are removed"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "has no effect: groups have no columns"})
    metric_for_best_model: str | None = field(
        default="accuracy",
        metadata={
            "help": "what the best checkpoint is best in: accuracy is the share of groups whose chosen answer "
            "beats every rejected one"
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "torchrun without DeepSpeed: True where text leaves parts of the model unused"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint to continue; last: the newest whole one of --output_dir; auto: that, or a new run "
            "where there is none yet"
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "has no effect: a loss that is not finite ends the run"}
    )


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists every flag)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parse_settings(
    arguments: list[str], description: str
) -> tuple[RewardSettings, StoppingSettings, RewardTrainingArguments]:
    """Our settings and transformers', checked. Raises InputError for whatever cannot work; writes nothing.

    ``resume_from_checkpoint`` becomes the folder that it names, and the accumulation and the DeepSpeed configuration
    those with which this number of ranks can continue it. Joins the process group that the launcher describes, which
    TrainingArguments does when it is made.
    """
    parser = _Parser(
        (RewardSettings, StoppingSettings, RewardTrainingArguments),
        prog="python -m codes.train.train_reward_model",
        description=description.strip(),
        usage="%(prog)s --model_name_or_path M --train_data_path F [F ...] --output_dir D --training_mode MODE [flags]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    given = vars(parser.parse_args(arguments))
    named = {word.split("=")[0].lstrip("-").replace("-", "_") for word in arguments}
    settings = RewardSettings(**{item.name: given.pop(item.name) for item in fields(RewardSettings)})
    stopping = StoppingSettings(**{item.name: given.pop(item.name) for item in fields(StoppingSettings)})
    check_settings(settings)
    stopping.check()
    _check_training_arguments(given, settings)
    if settings.tokens_per_device_batch and {"per_device_train_batch_size", "dataloader_drop_last"} & named:
        raise InputError(
            "--tokens_per_device_batch: fills batches by their tokens, so neither --per_device_train_batch_size nor "
            "--dataloader_drop_last applies"
        )
    _follow_evaluation(given, settings, stopping, named)
    if str(given["resume_from_checkpoint"]).lower() == "auto" and not _holds_a_finished_run(given["output_dir"]):
        settings.overwrite_output_dir = True  # what ended before its first checkpoint left nothing to continue
    _follow_checkpoint(given)
    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        given["use_cpu"] = True
        if given["fp16"]:
            raise InputError("--fp16: needs a GPU; on the CPU train in float32, or with --bf16")
    # With several GPUs and no launcher, transformers would spread every forward over them, in threads.
    if "RANK" not in os.environ and (given["deepspeed"] or torch.cuda.device_count() > 1):
        os.environ.update(_single_process())
    elif "RANK" not in os.environ:
        given["ddp_backend"] = None  # there is no group of processes for it to connect
    try:
        training_arguments = RewardTrainingArguments(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training arguments: {first_line(error)}") from None
    _check_packages(training_arguments)
    return settings, stopping, training_arguments


def _follow_evaluation(given: dict, settings: RewardSettings, stopping: StoppingSettings, named: set[str]) -> None:
    """Defaults that follow from others: evaluation data is used, early stopping keeps the best model.

    ``named``: the flags of the command line, also as ``name=value``.
    """
    named = {word.partition("=")[0] for word in named}
    if settings.eval_data_path and "eval_strategy" not in named:
        given["eval_strategy"] = "epoch"
    given["load_best_model_at_end"] |= stopping.early_stopping_patience > 0
    if not given["load_best_model_at_end"]:
        return
    flag = "--early_stopping_patience" if stopping.early_stopping_patience else "--load_best_model_at_end"
    if not settings.eval_data_path:
        raise InputError(f"{flag}: needs --eval_data_path")
    metric = (given["metric_for_best_model"] or "loss").removeprefix("eval_")
    if metric not in METRIC_NAMES:
        raise InputError(f"--metric_for_best_model: {metric} is none of {', '.join(METRIC_NAMES)}")
    if "save_strategy" not in named:
        given["save_strategy"] = given["eval_strategy"]
        if "save_steps" not in named and given["eval_steps"] is not None:
            given["save_steps"] = given["eval_steps"]


def _holds_a_finished_run(output_dir: str) -> bool:
    try:
        info = json.loads((Path(output_dir) / "run_info.json").read_text(encoding="utf-8"))
        return info["finished"] is not False
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nothing that is known to be a torn run


def _follow_checkpoint(given: dict) -> None:
    checkpoint = checkpoint_to_resume(given["resume_from_checkpoint"], given["output_dir"])
    given["resume_from_checkpoint"] = checkpoint and str(checkpoint)
    if checkpoint is None:
        return
    if bool(given["deepspeed"]) != written_under_deepspeed(checkpoint):
        has, lacks = ("--deepspeed", "without") if given["deepspeed"] else ("no --deepspeed", "under")
        raise InputError(f"{checkpoint}: was written {lacks} DeepSpeed and cannot be continued with {has}")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    accumulation = given["gradient_accumulation_steps"]
    batch_size = given["per_device_train_batch_size"]
    given["gradient_accumulation_steps"] = accumulation_for(checkpoint, batch_size, world_size, accumulation)
    if needs_universal(checkpoint, world_size):
        config = json.loads(Path(given["deepspeed"]).read_text(encoding="utf-8"))
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
        given["deepspeed"] = config


def _check_packages(training_arguments: TrainingArguments) -> None:
    """Refuse what needs a package that is not installed now, not when the model and the data have been loaded."""
    try:
        # The only place where transformers says which package a name needs: the callback's constructor.
        for callback in get_reporting_integration_callbacks(training_arguments.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"--report_to: {first_line(error)}") from None
    if training_arguments.use_liger_kernel and not is_liger_kernel_available():
        raise InputError("--use_liger_kernel: needs the package liger-kernel, which is not installed")


def _single_process() -> dict[str, str]:
    """What a launcher would set for one process: DeepSpeed has a process group even then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _check_training_arguments(given: dict, settings: RewardSettings) -> None:
    if not given["output_dir"]:
        raise InputError("the following arguments are required: --output_dir (--help lists every flag)")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        require_number(f"--{name}", given[name], "at least 1", given[name] >= 1)
    require_number("--num_train_epochs", given["num_train_epochs"], "above 0", given["num_train_epochs"] > 0)
    require_number("--learning_rate", given["learning_rate"], "at least 0", given["learning_rate"] >= 0)
    for name in ("seed", "data_seed"):
        value = given[name]
        require_number(
            f"--{name}", value or 0, f"from 0 to {LARGEST_SEED}", value is None or 0 <= value <= LARGEST_SEED
        )
    steps = given["max_steps"]
    require_number("--max_steps", steps, "of at least 1, or -1 to go by --num_train_epochs", steps >= 1 or steps == -1)
    if given["train_sampling_strategy"] not in ("random", "sequential"):
        raise InputError("--train_sampling_strategy: groups are drawn random or sequential")
    smoothing = given["label_smoothing_factor"]
    require_number("--label_smoothing_factor", smoothing, "from 0 to below 0.5", 0 <= smoothing < 0.5)
    if given["fsdp"]:
        raise InputError("--fsdp: models are sharded by DeepSpeed here; use --deepspeed configs/ds_z3_config.json")
    if str(given["eval_strategy"]) != "no" and not settings.eval_data_path:
        raise InputError("--eval_strategy: needs --eval_data_path")
    if given["deepspeed"]:
        _check_deepspeed_config(given["deepspeed"], settings)


def _check_deepspeed_config(path: str, settings: RewardSettings) -> None:
    require_files([path], "--deepspeed")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        zero = config.get("zero_optimization", {})
        stage, gathers = zero.get("stage", 0), zero.get("stage3_gather_16bit_weights_on_model_save")
    except (ValueError, AttributeError) as error:
        raise InputError(f"--deepspeed {path}: is no DeepSpeed configuration: {first_line(error)}") from None
    if str(stage) == "3" and settings.qlora:
        raise InputError(f"--deepspeed {path}: ZeRO-3 cannot shard the 4-bit weights of --qlora; use ZeRO-2")
    if str(stage) == "3" and gathers is not True:
        raise InputError(
            f"--deepspeed {path}: field 'zero_optimization.stage3_gather_16bit_weights_on_model_save': must be true, "
            "or ZeRO-3 would save no weights"
        )


def data_seed(training_arguments: TrainingArguments) -> int:
    """The seed of the groups' order and of what is drawn for them: --data_seed, or --seed where it is not given."""
    return training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed


def files_of_a_run(output_dir: str | os.PathLike) -> list[Path]:
    """What a run left in a folder: checkpoints, weights, metrics and provenance."""
    folder = Path(output_dir)
    weights = ("model*.safetensors", "model.safetensors.index.json", ADAPTER_WEIGHTS, ADAPTER_CONFIG, ADAPTER_HEADS)
    names = ("checkpoint-*", *weights, TEMPERATURE_FILE, METRICS_FILE, FIGURE_FILE, "run_info.json")
    return sorted({path for name in names for path in folder.glob(name)})
