"""What a run shows and writes while it trains: the progress line, metrics.jsonl and training.png.

``RunProgress`` counts what the run has seen; it is saved in every checkpoint, so that a resumed run goes on counting.
"""

import logging
import math
import resource
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from codes.common.append_only import AppendOnlyFile
from codes.common.cli import progress
from codes.common.records import write_jsonl
from codes.train.training_report import METRICS_FILE, draw_run

logger = logging.getLogger(__name__)

GIB = 2**30
# What a log line names, in this order; metrics.jsonl has everything.
SHOWN = ("loss", "accuracy", "margin", "grad_norm", "train_loss", "eval_loss", "eval_accuracy", "eval_margin")


class RunProgress(TrainerCallback, ExportableState):
    """Groups and tokens that all ranks have trained on since the run began, and the time their steps took.

    Tokens are those that are computed: a prompt that answers share counts once, padding not at all.
    """

    def __init__(self):
        # On the device, so that counting waits for nothing.
        self.seen = torch.zeros(2, dtype=torch.int64)
        self.world_size = 1
        self._logged = (0, 0)
        self._busy_seconds = 0.0
        self._step_began = 0.0

    def state(self) -> dict:
        groups, tokens = self.seen.tolist()
        return {
            "args": {},
            "attributes": {"groups_seen": groups, "tokens_seen": tokens, "world_size": self.world_size},
        }

    def on_train_begin(self, args, state, control, **_):
        entry = state.stateful_callbacks.setdefault(type(self).__name__, {})
        before = entry.get("attributes", {})
        self._logged = (before.get("groups_seen", 0), before.get("tokens_seen", 0))
        self.seen = torch.tensor(self._logged, device=args.device)
        self.world_size = args.world_size

    def begin_step(self) -> None:
        self._step_began = time.perf_counter()

    def count(self, groups_and_tokens: torch.Tensor) -> None:
        """Add the groups and tokens of a step on all ranks: int64 [2]."""
        self.seen = self.seen + groups_and_tokens

    def end_step(self) -> None:
        self._busy_seconds += time.perf_counter() - self._step_began

    def log(self) -> dict[str, float]:
        """What was seen, and how fast since the last log; the time of evaluations and checkpoints is no part of it."""
        groups, tokens = self.seen.tolist()
        seconds = max(self._busy_seconds, 1e-9)
        rates = {
            "tokens_per_second": (tokens - self._logged[1]) / seconds,
            "groups_per_second": (groups - self._logged[0]) / seconds,
        }
        self._logged, self._busy_seconds = (groups, tokens), 0.0
        return {"groups_seen": groups, "tokens_seen": tokens, **rates}


def computed_tokens(inputs: dict) -> int:
    """The tokens of a batch that are no padding, as ``RewardModel.forward`` takes it."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())


def peak_memory_gib() -> float:
    """The most memory that this process has held so far: of its GPU, or of the machine where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts in KiB


class TrainingLog(TrainerCallback):
    """Of the first rank: one JSON object a log in metrics.jsonl, the progress line, and training.png.

    The line is a bar on a terminal; where standard error is none, every log is a line of its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / METRICS_FILE
        self.bar = progress(desc="training", unit="step")
        self._began_at = (0, 0.0)
        self._drawn_at, self._drawing_seconds = time.monotonic(), 1.0

    def on_train_begin(self, args, state, control, **_):
        if state.log_history:
            # A killed run logged steps that the resumed one takes again, and may have left a torn line; the
            # checkpoint knows what was logged by then.
            write_jsonl(self.path, map(as_record, state.log_history))
        self._began_at = (state.global_step, time.monotonic())
        self.bar.reset(total=state.max_steps)
        self.bar.initial = self.bar.n = state.global_step

    def on_step_end(self, args, state, control, **_):
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **_):
        with AppendOnlyFile(self.path) as file:
            file.append(as_record({**logs, "step": state.global_step}))
        if "loss" in logs:
            self.bar.set_postfix_str(_speed(logs, shown=("loss",)))
        if self.bar.disable or "loss" not in logs:
            left = f"  {self._time_left(state)} left" if "loss" in logs else ""
            self.bar.clear()
            logger.info("step %d/%d: %s%s", state.global_step, state.max_steps, _speed(logs, shown=SHOWN), left)

    def on_save(self, args, state, control, **_):
        # Drawing may take a hundredth of the run's time, no more.
        if time.monotonic() - self._drawn_at >= 100 * self._drawing_seconds:
            began = time.monotonic()
            draw_run(self.folder)
            self._drawn_at = time.monotonic()
            self._drawing_seconds = self._drawn_at - began

    def on_train_end(self, args, state, control, **_):
        self.bar.close()
        draw_run(self.folder)

    def _time_left(self, state) -> str:
        """At the pace of this process so far, evaluations and checkpoints included."""
        step, began = self._began_at
        steps = max(state.global_step - step, 1)
        return _clock((time.monotonic() - began) / steps * (state.max_steps - state.global_step))


def _speed(logs: dict, shown: tuple[str, ...]) -> str:
    parts = [f"{name} {logs[name]:.4g}" for name in shown if isinstance(logs.get(name), float)]
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:.0f} tokens/s, {logs['groups_per_second']:.3g} groups/s")
        parts.append(f"{logs['peak_memory_gib']:.2f} GiB")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def as_record(log: dict) -> dict:
    """The log with step and epoch first, and null for what is no finite number."""
    first = {name: log[name] for name in ("step", "epoch") if name in log}
    return {name: _finite_or_none(value) for name, value in (first | log).items()}


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
