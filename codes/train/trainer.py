"""``RewardTrainer``: transformers' Trainer over groups of answers.

The loss of a step is the mean over all groups of the step, whatever the accumulation, the number of ranks and the
unevenness of the last batch; metrics are gathered from all ranks, each group once; what is saved is a stock folder.
"""

import json
import logging
import math
import os
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from codes.common.cli import RunFailed, Stopped, progress
from codes.common.records import write_json
from codes.train.batches import (
    BatchesOfGroups,
    BatchesOfTokens,
    BatchGroups,
    GroupBatchSampler,
    GroupCollator,
    GroupDataset,
)
from codes.train.checkpoints import newest_whole_checkpoint, repair_loaded_groups
from codes.train.head_losses import head_losses
from codes.train.hub_upload import hub_failures_named, push_checkpoint
from codes.train.scored_batches import (
    ScoredBatch,
    all_finite,
    finite_by_group,
    named_broken_groups,
    scored_groups,
)
from codes.train.stopping import (
    StoppingSettings,
    StopSignals,
    divergence,
    evaluation_is_due,
    evaluations_without_gain,
)
from codes.train.training_log import RunProgress, TrainingLog, computed_tokens, peak_memory_gib
from codes.train.training_metrics import ScoredGroup, mean_loss, reward_metrics

logger = logging.getLogger(__name__)

TEMPERATURE_FILE = "temperature.json"  # a learned temperature: stock classes know no place for it
REMEDY = "a lower --learning_rate, --warmup_steps or --bf16 in place of --fp16 may help"


class RewardTrainer(Trainer):
    """Trains a ``RewardModel`` on a ``GroupDataset``; ``objective`` holds the arguments of ``head_losses``.

    A batch holds ``per_device_train_batch_size`` groups, or with ``tokens_per_device_batch`` as many as that allows.
    """

    # The losses are divided by the groups of the whole step here, so Trainer must not divide by accumulation steps.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        objective: dict,
        stopping: StoppingSettings,
        tokens_per_device_batch: int | None = None,
        temperature_learning_rate: float = 1e-3,
        **options,
    ):
        super().__init__(data_collator=GroupCollator(options["model"].layout), **options)
        self.model_accepts_loss_kwargs = True
        self.objective = objective
        self.tokens_per_device_batch = tokens_per_device_batch
        self.temperature_learning_rate = temperature_learning_rate
        self.stopping = stopping
        self.stop_signals = StopSignals()
        self.run_progress = RunProgress()
        self.recent_batches: list[ScoredBatch] = []  # since the last log
        self.step_batches: list[ScoredBatch] = []
        self.grad_norm: float | torch.Tensor = 0.0
        self.may_save = True
        self.uploads: list[Future] = []  # to the Hub, in the background
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(self.run_progress)
        if self.args.process_index == 0:
            self.add_callback(TrainingLog(Path(self.args.output_dir)))
        self.add_callback(_StepByStep(self))

    def train(self, *arguments, **options):
        """As Trainer's; SIGTERM and SIGUSR1 end it after the step with a checkpoint, and then ``Stopped`` is raised."""
        with self.stop_signals:
            return super().train(*arguments, **options)

    # --- Data: ranks deal the groups out themselves; accelerate would repeat groups to even the last batch out.

    def get_train_dataloader(self) -> DataLoader:
        self.train_sampler = self._sampler(self._train_batches())
        return self._group_dataloader(self.train_dataset, self.train_sampler)

    def _train_batches(self) -> BatchesOfGroups | BatchesOfTokens:
        arguments = self.args
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        order = self.train_dataset.order(None if arguments.train_sampling_strategy == "sequential" else seed)
        if self.tokens_per_device_batch is None:
            return BatchesOfGroups(order, self._train_batch_size, arguments.dataloader_drop_last)
        batches_per_step = arguments.world_size * arguments.gradient_accumulation_steps
        return BatchesOfTokens(
            order,
            self.train_dataset.sizes(self.model.layout),
            self.tokens_per_device_batch,
            epochs=math.ceil(arguments.num_train_epochs),
            batches=max(0, arguments.max_steps) * batches_per_step,
        )

    def get_eval_dataloader(self, eval_dataset: GroupDataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = BatchesOfGroups(dataset.order(seed=None), self.args.eval_batch_size)
        return self._group_dataloader(dataset, self._sampler(batches))

    def _sampler(self, batches: BatchesOfGroups | BatchesOfTokens) -> GroupBatchSampler:
        return GroupBatchSampler(batches, rank=self.args.process_index, world_size=self.args.world_size)

    def _group_dataloader(self, dataset: GroupDataset, sampler: GroupBatchSampler) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            # Its own generator: drawing from the global one would make a resumed run differ from an unbroken one.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device) -> tuple[list, torch.Tensor]:
        """The micro-batches of one optimizer step on this rank, and the groups of that step on all ranks."""
        self.run_progress.begin_step()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        real = [batch for batch in batches if batch["groups"].counted]
        groups = sum(batch["groups"].counted for batch in real)
        tokens = sum(computed_tokens(batch["inputs"]) for batch in real)
        on_all_ranks = self.accelerator.gather(torch.tensor([[groups, tokens]], device=device)).sum(0)
        self.run_progress.count(on_all_ranks)
        return batches, on_all_ranks[0]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """A learned temperature gets a learning rate of its own, and no weight decay: that would pull it towards 1."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.model.learned_temperature is not None and is_new:
            temperature = self.model.learned_temperature.log_temperature
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if parameter is not temperature]
            rate = {"lr": self.temperature_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group({"params": [temperature], **rate})
        # Adapters leave the group of norms and biases empty; DeepSpeed drops such groups, and nothing would match.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self.group_settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        return optimizer

    def repair_loaded_state(self) -> None:
        """After a universal checkpoint of DeepSpeed's was loaded."""
        if self.is_deepspeed_enabled and self.model_wrapped.load_universal_checkpoint():
            rates = self.lr_scheduler.get_last_lr()
            repair_loaded_groups(self.model_wrapped.optimizer.optimizer, self.group_settings, rates)

    # --- Loss and metrics

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the mean over the step's groups: ranks' gradients are averaged, parts added."""
        groups, losses, scores = self._group_losses(model, inputs, **self.objective)
        self.step_batches.append((groups, scores.detach(), losses.detach()))
        share = groups.counted / len(groups.indices)
        loss = losses.sum() * (share * self.args.world_size) / num_items_in_batch
        return (loss, scores) if return_outputs else loss

    def _group_losses(self, model, inputs: dict, **objective) -> tuple[BatchGroups, torch.Tensor, torch.Tensor]:
        """The groups, their losses [groups], and the answers' combined scores [answers]."""
        groups, heads = inputs["groups"], self.model.heads
        scores = model(**inputs["inputs"], per_head=True)
        if self.model.learned_temperature is not None:
            objective["temperature"] = self.model.temperature
        return groups, head_losses(scores, groups, heads, **objective), heads.combined(scores)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Score every group once over all ranks: the same figures at any world size."""
        started = time.time()
        model = self.model_wrapped
        model.eval()
        batches = []
        # Without the penalty that belongs to a whole forward: the loss must not depend on how groups are spread. And
        # without the draws of a bootstrap, which are the training groups'.
        objective = self.objective | {"length_penalty_coefficient": 0.0, "bootstrap_seed": None}
        with torch.no_grad():
            for inputs in self._shown(self.get_eval_dataloader(eval_dataset)):
                if self.is_in_train and self._on_any_rank(self.stop_signals.received is not None)[0]:
                    # The resumed run evaluates: it finds no evaluation of this step in its history.
                    self._save_checkpoint(self.model_wrapped, None)
                    self.raise_stopped()
                with self.compute_loss_context_manager():
                    groups, losses, scores = self._group_losses(model, self._prepare_inputs(inputs), **objective)
                batches.append((groups, scores, losses))
        scored, _ = self._gather(batches)
        if any(not math.isfinite(score) for group in scored for score in group.scores):
            raise RunFailed(f"the scores of the evaluation at step {self.state.global_step} are not finite; {REMEDY}")
        metrics = {"loss": mean_loss(scored), **reward_metrics(scored), "runtime": round(time.time() - started, 3)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _shown(self, batches: DataLoader):
        if self.args.process_index != 0:
            return batches
        bar = progress(batches, desc="evaluation", unit="batch")
        bar.leave = False
        return bar

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Training logs carry the metrics of the groups since the last one, over all ranks, and the speed."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        scored, memory = self._gather(self.recent_batches)
        self.recent_batches.clear()
        logs.update(reward_metrics(scored))
        logs.update(self.run_progress.log())
        logs["peak_memory_gib"] = memory
        if self.model.learned_temperature is not None:
            logs["temperature"] = self.model.temperature.item()
        super().log(logs, start_time)
        self._check_divergence()

    def _gather(self, batches: list[ScoredBatch]) -> tuple[list[ScoredGroup], float]:
        """The groups of all ranks' batches, and the most memory that one of the ranks held, in GiB."""
        own = [group for batch in batches for group in scored_groups(*batch)], peak_memory_gib()
        everyones = self._from_every_rank(own)
        return [group for groups, _ in everyones for group in groups], max(memory for _, memory in everyones)

    def _from_every_rank(self, own: object) -> list:
        everyones = [own]
        if self.args.world_size > 1:
            everyones = [None] * self.args.world_size
            dist.all_gather_object(everyones, own)
        return everyones

    def _on_any_rank(self, *own: bool | torch.Tensor) -> list[bool]:
        """Whether each of these holds on one rank at least: all ranks go the same way."""
        facts = torch.stack([torch.as_tensor(fact, device=self.args.device).to(torch.int32) for fact in own])
        if self.args.world_size > 1:
            dist.all_reduce(facts, op=dist.ReduceOp.MAX)
        return [bool(fact) for fact in facts.tolist()]

    # --- Ending before the last step

    def end_step(self) -> bool:
        """After an optimizer step: stop where a score or gradient is not finite. Returns whether a signal has come."""
        self.run_progress.end_step()
        batches, self.step_batches = self.step_batches, []
        received, broken = self._on_any_rank(self.stop_signals.received is not None, ~all_finite(batches))
        step = self.state.global_step
        if broken:
            groups = [group for rank in self._from_every_rank(finite_by_group(batches)) for group in rank]
            self._fail(f"{named_broken_groups(groups)} are not finite at step {step}; {REMEDY}")
        # Under fp16 the gradients of a step overflow now and then; the step is skipped and the loss scale lowered.
        if not self.args.fp16 and not math.isfinite(self.grad_norm):
            self._fail(f"the gradient norm of step {step} is {float(self.grad_norm)}; {REMEDY}")
        if self.args.logging_strategy != "no":
            self.recent_batches += batches
        return received

    def _get_grad_norm(self, model, grad_norm=None):
        self.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.grad_norm

    def _check_divergence(self) -> None:
        logs_beyond, reason = divergence(self.state.log_history, self.stopping)
        # No checkpoint of a run that goes astray takes the place of a good one.
        self.may_save = logs_beyond == 0
        if logs_beyond >= self.stopping.divergence_patience:
            self._fail(f"the run has diverged by step {self.state.global_step}: {reason}; {REMEDY}")

    def _fail(self, problem: str) -> None:
        good = newest_whole_checkpoint(self.args.output_dir)
        raise RunFailed(f"{problem}; " + (f"the last good checkpoint is {good}" if good else "there is no checkpoint"))

    def raise_stopped(self) -> None:
        notice = self.stop_signals.received or "a signal to another rank"
        last = newest_whole_checkpoint(self.args.output_dir)
        goes_on = f"--resume_from_checkpoint last continues from {last}" if last else "there is no checkpoint"
        raise Stopped(f"{notice}: stopped after step {self.state.global_step}; {goes_on}")

    def evaluate_if_due(self) -> None:
        if evaluation_is_due(self.args, self.state):
            self._determine_best_metric(self.evaluate(), None)

    def may_stop_early(self) -> bool:
        """Whether the evaluations since the best one are as many as --early_stopping_patience."""
        metric = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        waited = evaluations_without_gain(self.state.log_history, metric, bool(self.args.greater_is_better))
        if not 0 < self.stopping.early_stopping_patience <= waited:
            return False
        logger.info("early stopping: %s has not got better in %d evaluations", metric, waited)
        return True

    # --- Files: the model's own names, so that stock classes load them; no pickled arguments.

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(folder, state_dict)
        if self.model.learned_temperature is not None:
            name = "learned_temperature.log_temperature"
            logarithm = (self.model.state_dict() if state_dict is None else state_dict)[name].item()
            write_json(folder / TEMPERATURE_FILE, {"temperature": math.exp(logarithm), "log_temperature": logarithm})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.model.adapter is not None:
            self.model.load_adapter(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, self.model.model if model is None else model)
        if self.model.learned_temperature is not None:
            saved = saved_temperature(resume_from_checkpoint)
            if saved is None:
                raise RunFailed(f"{resume_from_checkpoint}: {TEMPERATURE_FILE} is missing")
            self.model.learned_temperature.log_temperature.data.fill_(saved["log_temperature"])

    def init_hf_repo(self, *arguments, **options) -> None:
        with hub_failures_named():
            super().init_hf_repo(*arguments, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        push_checkpoint(self, Path(checkpoint_folder))

    def _save_checkpoint(self, model, trial) -> None:
        if self.may_save:
            super()._save_checkpoint(model, trial)
        else:
            logger.warning("no checkpoint at step %d: the run may be diverging", self.state.global_step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        engine = self.model_wrapped
        if self.is_deepspeed_enabled and self.model.adapter is not None:
            # The frozen weights are the base model's: they would make every checkpoint as large as it.
            engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            vars(engine).pop("save_checkpoint", None)

    def _save_rng_state(self, output_dir: str) -> None:
        # The trainer's state is written next, by the first rank; it says that every rank's files are there.
        super()._save_rng_state(output_dir)
        if self.args.world_size > 1:
            dist.barrier()

    def _load_best_model(self) -> None:
        """Nothing: the best checkpoint's files are copied where training ends, whatever sharded the model."""


def saved_temperature(folder: str | os.PathLike) -> dict[str, float] | None:
    """A learned temperature and its logarithm, as a folder of the run holds them; None where it was not learned."""
    path = Path(folder) / TEMPERATURE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class _StepByStep(TrainerCallback):
    """Draw each epoch's own order; log at the last step and at every checkpoint; end the run where it must end."""

    def __init__(self, trainer: RewardTrainer):
        self.trainer = trainer
        self.stopping = False

    def on_train_begin(self, args, state, control, **_):
        self.trainer.repair_loaded_state()
        self.trainer.evaluate_if_due()

    def on_epoch_begin(self, args, state, control, **_):
        # In a resumed run the epoch is a fraction on: its whole part is the one whose order counts.
        self.trainer.train_sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args, state, control, **_):
        self.stopping = self.trainer.end_step()
        if self.stopping:
            control.should_save, control.should_evaluate = True, False
        # A resumed run takes up its logs where its checkpoint stands: what came before must be logged by then.
        ends = state.global_step >= state.max_steps
        control.should_log |= args.logging_strategy != "no" and (ends or control.should_save)

    def on_epoch_end(self, args, state, control, **_):
        control.should_log |= args.logging_strategy != "no" and control.should_save

    def on_evaluate(self, args, state, control, **_):
        control.should_training_stop |= self.trainer.may_stop_early()

    def on_save(self, args, state, control, **_):
        if self.stopping:
            self.trainer.raise_stopped()
