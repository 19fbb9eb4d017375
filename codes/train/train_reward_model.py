"""Train a reward model on groups of one chosen and any number of rejected answers, contrastively or pairwise.

    deepspeed --num_gpus 8 --module codes.train.train_reward_model --model_name_or_path Qwen/Qwen3-0.6B \\
        --train_data_path data/train/sample.jsonl --output_dir output/reward_model --training_mode contrast \\
        --deepspeed configs/ds_z2_config.json --bf16

Starts from a causal or masked language model, which gets a new head, or from an existing reward model. Batch sizes
count groups, and the loss is the mean over all groups of a step. The output folder is one that a stock
AutoModelForSequenceClassification loads, with metrics.jsonl and run_info.json beside the weights. Without a launcher
it trains in one process. Every flag of transformers' TrainingArguments is accepted besides the first ones below.
"""

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from filelock import Timeout
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, SchedulerType, set_seed
from transformers.training_args import OptimizerNames

from codes.common.cli import EXIT_DONE, EXIT_STOPPED, RunFailed, Stopped, run_main
from codes.common.conversation import first_line, fitting_max_length, template_hash
from codes.common.records import InputError, file_sha256, to_json
from codes.common.run_info import redact, require_same_configuration, write_run_info
from codes.train.adapters import quantization_options
from codes.train.batches import GroupDataset
from codes.train.checkpoints import make_universal, model_files, needs_universal
from codes.train.folder_lock import folder_lock
from codes.train.hub_upload import push_model
from codes.train.model_card import write_model_card
from codes.train.reward_model import RewardModel
from codes.train.reward_settings import RewardSettings, check_bias_types, check_objectives_are_rated
from codes.train.stopping import StoppingSettings
from codes.train.tokenized_data import check_small_file, tokenized_file
from codes.train.train_settings import (
    RewardTrainingArguments,
    data_seed,
    files_of_a_run,
    parse_settings,
)
from codes.train.trainer import RewardTrainer, saved_temperature
from codes.train.training_data import EncodingSettings, WeightedFile

logger = logging.getLogger(__name__)

SECONDS_FOR_RANK_0_TO_SPEAK = 10
# What torch.save names where a write fails: it raises a plain RuntimeError.
TORCH_FILE_WRITER = ("PytorchStreamWriter", "inline_container")


def train(arguments: list[str]) -> dict:
    """Train as the command line says and save the model. Returns the training metrics."""
    settings, stopping, training_arguments = parse_settings(arguments, __doc__)
    _quiet_libraries(training_arguments)
    with _only_run_in(training_arguments):
        return _train(settings, stopping, training_arguments)


def _train(settings: RewardSettings, stopping: StoppingSettings, training_arguments: RewardTrainingArguments) -> dict:
    checkpoint = training_arguments.resume_from_checkpoint
    _require_free_output(settings, training_arguments, resumes=checkpoint is not None)
    for path in (*(file.path for file in settings.train_files), *(settings.eval_data_path or [])):
        check_small_file(path)
    set_seed(training_arguments.seed)  # for the new head: the same on every rank
    model = _load_model(settings, training_arguments)
    max_length = fitting_max_length(settings.max_length, model.tokenizer, model.config)
    configuration = _configuration(settings, training_arguments, model.tokenizer, max_length)
    if checkpoint is not None:
        for folder in (Path(checkpoint).parent, training_arguments.output_dir):
            require_same_configuration(folder, configuration)
    train_data, eval_data = _tokenized(settings, training_arguments, model, max_length)

    trainer = RewardTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        objective=settings.objective(training_arguments.label_smoothing_factor, data_seed(training_arguments)),
        tokens_per_device_batch=settings.tokens_per_device_batch,
        temperature_learning_rate=settings.temperature_learning_rate,
        stopping=stopping,
    )
    provenance = _Provenance(settings, stopping, training_arguments, configuration, model, train_data, eval_data)
    if training_arguments.process_index == 0:
        _start_output(settings, training_arguments, resumes=checkpoint is not None)
        provenance.write(finished=False)
    try:
        with _writing_failures_named(training_arguments.output_dir):
            if checkpoint is not None:
                _prepare_for_these_ranks(Path(checkpoint), training_arguments)
            result = trainer.train(resume_from_checkpoint=checkpoint)
            step = _save_the_last_or_best(trainer)
    except Stopped as notice:
        if training_arguments.process_index == 0:
            provenance.write(finished=False, stopped=str(notice))
        raise
    if training_arguments.process_index == 0:
        provenance.write(
            finished=True,
            step_of_the_weights=step,
            train_metrics=result.metrics,
            learned_temperature=saved_temperature(training_arguments.output_dir),
        )
        write_model_card(Path(training_arguments.output_dir), step=step)
        logger.info("saved the reward model to %s", training_arguments.output_dir)
        if training_arguments.push_to_hub:
            push_model(trainer)
    return result.metrics


@contextmanager
def _only_run_in(training_arguments: RewardTrainingArguments) -> Iterator[None]:
    """Refuse a folder that another run on this machine is writing to; the first rank answers for all."""
    if training_arguments.process_index != 0:
        yield
        return
    try:
        held = folder_lock(training_arguments.output_dir, wait_seconds=0).acquire()
    except Timeout:
        raise InputError(
            f"--output_dir: another training is writing to {training_arguments.output_dir}; wait until it ends"
        ) from None
    with held:
        yield


def _quiet_libraries(training_arguments: RewardTrainingArguments) -> None:
    """Keep standard error readable: one rank speaks, libraries only warn, bars only on a terminal."""
    is_first = training_arguments.process_index == 0
    logging.getLogger().setLevel(logging.INFO if is_first else logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    transformers.logging.set_verbosity(transformers.logging.WARNING if is_first else transformers.logging.ERROR)
    if not sys.stderr.isatty() or not is_first:
        training_arguments.disable_tqdm = True
        transformers.logging.disable_progress_bar()


def _require_free_output(settings: RewardSettings, training_arguments: RewardTrainingArguments, resumes: bool) -> None:
    if os.path.exists(training_arguments.output_dir) and not os.path.isdir(training_arguments.output_dir):
        raise InputError(f"--output_dir: {training_arguments.output_dir} is no folder")
    found = files_of_a_run(training_arguments.output_dir)
    if found and not resumes and not settings.overwrite_output_dir:
        raise InputError(
            f"--output_dir: {training_arguments.output_dir} holds a run ({found[0].name}); continue it with "
            "--resume_from_checkpoint last, or remove it with --overwrite_output_dir"
        )


def _start_output(settings: RewardSettings, training_arguments: RewardTrainingArguments, resumes: bool) -> None:
    os.makedirs(training_arguments.output_dir, exist_ok=True)
    if settings.overwrite_output_dir and not resumes:
        for path in files_of_a_run(training_arguments.output_dir):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prepare_for_these_ranks(checkpoint: Path, training_arguments: RewardTrainingArguments) -> None:
    if needs_universal(checkpoint, training_arguments.world_size):
        if training_arguments.process_index == 0:
            make_universal(checkpoint)
        dist.barrier()


def _save_the_last_or_best(trainer: RewardTrainer) -> int:
    """The last model, or with --load_best_model_at_end the best checkpoint's, which needs no gathering; its step."""
    arguments, state = trainer.args, trainer.state
    if not (arguments.load_best_model_at_end and state.best_model_checkpoint):
        trainer.save_model(_internal_call=True)  # not to be uploaded before its card is written
        return state.global_step
    if arguments.process_index == 0:
        best = Path(state.best_model_checkpoint)
        logger.info("the best model is that of %s: %s %.4g", best, arguments.metric_for_best_model, state.best_metric)
        for path in model_files(best):
            shutil.copyfile(path, Path(arguments.output_dir) / path.name)
    return state.best_global_step


@contextmanager
def _writing_failures_named(output_dir: str) -> Iterator[None]:
    """A disk that is full, or any other reason why a checkpoint cannot be written, is a RunFailed."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{output_dir}: could not be written: {first_line(error)}") from None
    except RuntimeError as error:
        if not any(name in str(error) for name in TORCH_FILE_WRITER):
            raise
        raise RunFailed(f"{output_dir}: a checkpoint could not be written: {first_line(error)}") from None


def _tokenized(
    settings: RewardSettings, training_arguments: RewardTrainingArguments, model: RewardModel, max_length: int
) -> tuple[GroupDataset, GroupDataset | None]:
    """The training and the evaluation groups, tokenized by the first rank that gets here. Bad data leaves nothing."""
    output_is_new = not files_of_a_run(training_arguments.output_dir)
    cache_dir = settings.tokenized_cache or os.path.join(training_arguments.output_dir, "tokenized")
    encoding = settings.encoding(max_length, data_seed(training_arguments))

    def groups(files: list[WeightedFile], encoding: EncodingSettings) -> GroupDataset:
        tokenized = [tokenized_file(file.path, model.tokenizer, encoding, cache_dir) for file in files]
        return GroupDataset(tokenized, [file.weight for file in files])

    try:
        train_data = groups(settings.train_files, encoding)
        check_bias_types(settings, train_data.counts.rejected_by_bias_type)
        check_objectives_are_rated(settings, train_data.counts.rated_pairs)
        groups_an_epoch = len(train_data.order(seed=None))
        if training_arguments.dataloader_drop_last and groups_an_epoch < training_arguments.train_batch_size:
            raise InputError(
                f"--dataloader_drop_last: an epoch has {groups_an_epoch} groups, fewer than a batch, and none would "
                "be left to train on"
            )
        eval_files = [WeightedFile(path) for path in settings.eval_data_path or []]
        as_they_are = replace(encoding, first_rejected_only=False, in_batch_negatives=0, seed=0)
        return train_data, groups(eval_files, as_they_are) if eval_files else None
    except InputError:
        if output_is_new and settings.tokenized_cache is None:
            shutil.rmtree(cache_dir, ignore_errors=True)
            with suppress(OSError):
                os.rmdir(training_arguments.output_dir)
        raise


def _load_model(settings: RewardSettings, training_arguments: RewardTrainingArguments) -> RewardModel:
    if training_arguments.deepspeed:
        import deepspeed

        # On CPU ranks only torch's process group is there by now; ZeRO-3 shards the model while it loads and asks
        # DeepSpeed's for the world size.
        deepspeed.init_distributed(verbose=False)
    # Under DeepSpeed the engine casts the weights anyway; autocast, in one process, wants them in float32.
    dtype = torch.float32
    if training_arguments.deepspeed and training_arguments.bf16:
        dtype = torch.bfloat16
    elif training_arguments.deepspeed and training_arguments.fp16:
        dtype = torch.float16
    model = RewardModel.from_pretrained(
        settings.model_name_or_path,
        dtype=dtype,
        new_head=True,
        heads=settings.reward_heads,
        pooling=settings.pooling,
        chat_template=settings.chat_template,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        **(quantization_options(training_arguments.local_process_index) if settings.qlora else {}),
    )
    model.ensure_own_pad_token()
    if settings.disable_dropout:
        model.disable_dropout()
    if settings.lora is not None:
        model.add_adapter(settings.lora, base=settings.model_name_or_path, revision=settings.revision)
    if settings.learned_temperature:
        model.learn_temperature(settings.temperature)
    model.share_prefixes(settings.prefix_sharing, settings.sharing_kernel)
    return model


def _configuration(
    settings: RewardSettings,
    training_arguments: RewardTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict:
    """What a resumed run must share with the one it continues."""
    arguments = training_arguments
    batches = arguments.gradient_accumulation_steps * arguments.world_size
    budget, heads = settings.tokens_per_device_batch, settings.reward_heads
    step = {"groups_per_step": arguments.train_batch_size * batches}
    if budget is not None:
        step = {"tokens_per_device_batch": budget, "batches_per_step": batches}
    return {
        "model_name_or_path": settings.model_name_or_path,
        "revision": settings.revision,
        **settings.objective(arguments.label_smoothing_factor, data_seed(arguments)),
        "reward_heads": None if heads.are_plain else heads.as_facts(),
        "learned_temperature": settings.learned_temperature,
        "temperature_learning_rate": settings.learned_temperature and settings.temperature_learning_rate,
        "in_batch_negatives": settings.in_batch_negatives,
        "pooling": settings.pooling,
        "disable_dropout": settings.disable_dropout,
        "lora": settings.lora and asdict(settings.lora),
        "max_length": max_length,
        "chat_template": template_hash(tokenizer),
        "train_data_sha256": [file_sha256(file.path) for file in settings.train_files],
        "train_data_weights": [file.weight for file in settings.train_files],
        "keep_unverified": settings.keep_unverified,
        "verified_only": settings.verified_only,
        **step,
        "seed": arguments.seed,
        "data_seed": data_seed(arguments),
        "train_sampling_strategy": arguments.train_sampling_strategy,
        "dataloader_drop_last": arguments.dataloader_drop_last,
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": str(SchedulerType(arguments.lr_scheduler_type).value),
        "num_train_epochs": arguments.num_train_epochs,
        "max_steps": arguments.max_steps,
        "lr_scheduler_kwargs": arguments.lr_scheduler_kwargs or {},
        "warmup_steps": arguments.warmup_steps,
        "optim": str(OptimizerNames(arguments.optim).value),
        "optim_args": arguments.optim_args,
        "adam": [arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon],
        "max_grad_norm": arguments.max_grad_norm,
        "weight_decay": arguments.weight_decay,
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
    }


class _Provenance:
    """run_info.json of the output folder, written when training starts and again when it has finished."""

    def __init__(
        self,
        settings: RewardSettings,
        stopping: StoppingSettings,
        training_arguments: RewardTrainingArguments,
        configuration: dict,
        model: RewardModel,
        train_data: GroupDataset,
        eval_data: GroupDataset | None,
    ):
        self.output_dir = training_arguments.output_dir
        self.configuration = configuration
        self.facts = {
            "train_data": _files_and_counts(settings.train_files, train_data),
            "eval_data": eval_data and _files_and_counts(map(WeightedFile, settings.eval_data_path), eval_data),
            "model": model.facts(),
            "world_size": training_arguments.world_size,
            "settings": _plain(asdict(settings)),
            "stopping": asdict(stopping),
            "training_arguments": _plain(training_arguments.to_sanitized_dict()),
        }
        if training_arguments.process_index == 0:
            for name in ("train_data", "eval_data"):
                if self.facts[name]:
                    logger.info("%s: %s", name.replace("_", " "), to_json(self.facts[name]["counts"]))

    def write(self, **outcome: object) -> None:
        write_run_info(self.output_dir, self.configuration, **self.facts, **outcome)


def _files_and_counts(files: Iterable[WeightedFile], data: GroupDataset) -> dict:
    """What was read, and the counts of what was used, dropped and cut in all files together."""
    described = [
        {"path": file.path, "weight": file.weight, "sha256": file_sha256(file.path), "groups_per_epoch": groups}
        for file, groups in zip(files, data.order(seed=None).counts)
    ]
    return {"files": described, "counts": data.counts.as_dict()}


def _plain(arguments: dict) -> dict:
    """JSON values as they are, anything else as text; no credentials."""
    plain = (bool, int, float, type(None))
    return {name: value if isinstance(value, plain) else redact(str(value)) for name, value in arguments.items()}


def main() -> int:
    rank = int(os.environ.get("RANK", 0))
    if rank != 0:
        logging.getLogger().setLevel(logging.ERROR)
    status = EXIT_DONE
    try:
        train(sys.argv[1:])
    except Stopped as notice:
        if not dist.is_initialized():
            raise
        status = EXIT_STOPPED
        if rank == 0:
            print(f"error: {notice}", file=sys.stderr)
    except (InputError, RunFailed, OSError):
        # The launcher ends every rank when one fails: leave rank 0 the time to say why, once.
        if rank != 0:
            time.sleep(SECONDS_FOR_RANK_0_TO_SPEAK)
        raise
    if dist.is_initialized():
        # The launcher ends the others when one leaves with another status than 0: none leaves before all have written.
        dist.barrier()
        if torch.cuda.is_available():
            dist.destroy_process_group()
            return status
        sys.stdout.flush()
        sys.stderr.flush()
        # ZeRO-3 on CPU ranks may abort while the interpreter shuts down; everything is written by now.
        os._exit(status)
    return status


if __name__ == "__main__":
    run_main(main)
