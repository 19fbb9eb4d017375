"""How runs end and go on: signals, kills, divergence, early stopping, other numbers of ranks."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from codes.common.cli import EXIT_STOPPED, RunFailed, Stopped
from codes.common.records import InputError
from codes.train.train_reward_model import train
from codes.train.trainer import RewardTrainer
from codes.train.training_report import draw_run
from tests.training_runs import (
    COMMAND,
    column,
    flags,
    logs,
    started,
    untimed_logs,
    wait_for_log,
    weights,
    write_groups,
)

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "train.jsonl", 21)


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


# --- Signals and kills -------------------------------------------------------------------------------------------


def test_a_run_killed_and_then_told_to_stop_ends_in_bitwise_the_weights_of_an_uninterrupted_one(
    tiny_model, data, tmp_path
):
    """kill -9, then SIGTERM to the process that continues it (this one), then to its end."""
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    more = {"max_steps": 40, "save_steps": 2, "logging_steps": 3}
    train(flags(tiny_model, data, whole, **more))
    arguments = flags(tiny_model, data, interrupted, **more)
    with started([*COMMAND, *arguments]) as process:
        wait_for_log(interrupted, 4, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    killed_at = max(column(interrupted, "step"))
    assert 4 <= killed_at < 30
    resumed = [*arguments, "--resume_from_checkpoint", "last"]
    with told_to_stop_after(interrupted, killed_at + 4), pytest.raises(Stopped, match="SIGTERM: stopped after step"):
        train(resumed)
    info = json.loads((interrupted / "run_info.json").read_text(encoding="utf-8"))
    assert info["finished"] is False
    assert info["stopped"].startswith("SIGTERM")
    assert not (interrupted / "model.safetensors").exists()
    train(resumed)
    assert same_weights(interrupted, whole)
    assert column(interrupted, "groups_seen")[-1] == column(whole, "groups_seen")[-1] == 13 * 21 + 8
    steps = [log["step"] for log in logs(interrupted) if "loss" in log]
    assert steps == sorted(set(steps))
    assert set(column(whole, "step")) <= set(steps)


@contextmanager
def told_to_stop_after(output: Path, step: int) -> Iterator[None]:
    """SIGTERM to this process once the run has logged the step."""

    def tell() -> None:
        wait_for_log(output, step)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    yield
    thread.join()


def test_every_checkpoint_stands_at_a_log_and_the_run_is_drawn_at_its_end(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("codes.train.training_log.draw_run", draw_run)
    train(flags(tiny_model, data, tmp_path / "out", max_steps=6, logging_steps=4, save_steps=3))
    training = [log for log in logs(tmp_path / "out") if "loss" in log]
    assert [log["step"] for log in training] == [3, 4, 6]
    assert [log["groups_seen"] for log in training] == [21, 29, 42]
    assert all(log["tokens_seen"] > 0 and log["peak_memory_gib"] > 0 for log in training)
    assert all(log["tokens_per_second"] > log["groups_per_second"] > 0 for log in training)
    assert (tmp_path / "out/training.png").stat().st_size > 10_000


def test_an_evaluation_that_a_signal_cut_short_is_made_when_the_run_goes_on(tiny_model, data, tmp_path, monkeypatch):
    output, whole = tmp_path / "out", tmp_path / "whole"
    more = {"max_steps": 6, "eval_data_path": data, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 100}
    train(flags(tiny_model, data, whole, **more))
    evaluation_batches = RewardTrainer.get_eval_dataloader

    def told_to_stop(trainer, *arguments):
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluation_batches(trainer, *arguments)

    monkeypatch.setattr(RewardTrainer, "get_eval_dataloader", told_to_stop)
    with pytest.raises(Stopped, match=r"after step 4; .*checkpoint-4"):
        train(flags(tiny_model, data, output, **more))
    monkeypatch.setattr(RewardTrainer, "get_eval_dataloader", evaluation_batches)
    assert [log["step"] for log in logs(output) if "eval_loss" in log] == [2]
    train([*flags(tiny_model, data, output, **more), "--resume_from_checkpoint", "last"])
    assert untimed_logs(output) == untimed_logs(whole)
    assert same_weights(output, whole)


def test_a_checkpoint_of_deepspeed_is_not_continued_without_it(tiny_model, data, tmp_path):
    train(flags(tiny_model, data, tmp_path / "out", max_steps=1))
    checkpoint = tmp_path / "out/checkpoint-1"
    (checkpoint / "global_step1").mkdir()
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).rename(checkpoint / "global_step1" / f"{name[:3]}_optim_states.pt")
    (checkpoint / "latest").write_text("global_step1")
    with pytest.raises(InputError, match="was written under DeepSpeed and cannot be continued with no --deepspeed"):
        train([*flags(tiny_model, data, tmp_path / "out", max_steps=1), "--resume_from_checkpoint", "last"])


@pytest.mark.parametrize(
    "unusual",
    [
        ["--logging_strategy", "no"],
        ["--eval_on_start", "--eval_strategy", "epoch"],
        ["--save_strategy", "best", "--load_best_model_at_end"],
        ["--save_only_model"],
        ["--logging_steps", "0.4", "--save_steps", "0.5", "--eval_strategy", "steps", "--eval_steps", "0.5"],
    ],
)
def test_unusual_rhythms_of_logs_evaluations_and_checkpoints_work(tiny_model, data, tmp_path, unusual):
    output = tmp_path / "out"
    train([*flags(tiny_model, data, output, max_steps=4, eval_data_path=data), *unusual])
    assert (output / "model.safetensors").exists()
    assert len(column(output, "eval_loss")) >= 1


def test_auto_starts_a_run_starts_a_torn_one_again_continues_one_and_refuses_to_remove_a_finished_one(
    tiny_model, data, tmp_path
):
    output = tmp_path / "out"
    arguments = [*flags(tiny_model, data, output, max_steps=3), "--resume_from_checkpoint", "auto"]
    train([*arguments, "--save_steps", "2"])
    assert column(output, "groups_seen")[-1] == 21
    (output / "checkpoint-3/optimizer.pt").unlink()
    train([*arguments, "--save_steps", "2"])
    assert column(output, "step") == [1, 2, 3, 3]
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="holds a run"):
        train(arguments)
    info = json.loads((output / "run_info.json").read_text(encoding="utf-8"))
    (output / "run_info.json").write_text(json.dumps({**info, "finished": False}))
    train([*arguments, "--save_strategy", "no"])
    assert column(output, "step") == [1, 2, 3, 3]


# --- Not finite, and diverging -----------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_stops_the_run_before_a_checkpoint_holds_it(
    tiny_model, data, tmp_path, monkeypatch
):
    real = RewardTrainer._get_grad_norm

    def overflows_at_the_third_step(trainer, *arguments, **options):
        real(trainer, *arguments, **options)
        trainer.grad_norm = torch.tensor(float("inf")) if trainer.state.global_step == 2 else trainer.grad_norm
        return trainer.grad_norm

    monkeypatch.setattr(RewardTrainer, "_get_grad_norm", overflows_at_the_third_step)
    with pytest.raises(RunFailed, match=r"gradient norm of step 3 is inf.*the last good checkpoint is .*checkpoint-2"):
        train(flags(tiny_model, data, tmp_path / "out", max_steps=6, save_steps=1))
    assert not (tmp_path / "out/checkpoint-3").exists()


def test_a_loss_that_is_not_finite_names_its_groups(tiny_model, data, tmp_path):
    # Scores of some tenths over the smallest number there is.
    with pytest.raises(RunFailed, match=r"loss of 8 of 8 groups \(numbers \d.*\) are not finite at step 1"):
        train(flags(tiny_model, data, tmp_path / "out", max_steps=2, temperature=1e-45))


def test_a_run_that_diverges_stops_and_keeps_the_checkpoints_from_before(tiny_model, data, tmp_path):
    """The learning rate rises from nothing to far too much, so the loss does, too."""
    settings = flags(tiny_model, data, tmp_path / "out", num_train_epochs=9, learning_rate=3, save_steps=1)
    with pytest.raises(RunFailed, match=r"diverged by step \d+: the (loss|mean reward) .*last good checkpoint is"):
        train([*settings, "--warmup_steps", "27", "--divergence_loss_ratio", "2", "--max_reward_drift", "1"])
    last = logs(tmp_path / "out")[-1]["step"]
    assert (tmp_path / f"out/checkpoint-{last - 3}").exists()
    assert not [step for step in range(last - 2, last + 1) if (tmp_path / f"out/checkpoint-{step}").exists()]


# --- The best model ----------------------------------------------------------------------------------------------


def reversed_groups(data: Path, path: Path) -> Path:
    """The data with the rejected answer as the chosen one: what is learned makes it worse."""
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    wrong = [{**record, "chosen": record["rejected"][0], "rejected": [record["chosen"]]} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in wrong), encoding="utf-8")
    return path


def test_early_stopping_ends_the_run_and_the_best_model_is_saved_and_kept_beside_the_last(tiny_model, data, tmp_path):
    output = tmp_path / "out"
    wrong = reversed_groups(data, tmp_path / "wrong.jsonl")
    settings = flags(tiny_model, data, output, num_train_epochs=9, eval_data_path=wrong, learning_rate="3e-3")
    train([*settings, "--early_stopping_patience", "3", "--save_total_limit", "2"])
    accuracies = column(output, "eval_accuracy")
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 4 < 9
    kept = {path.name for path in output.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{3 * (best + 1)}", f"checkpoint-{3 * len(accuracies)}"}
    assert same_weights(output, output / f"checkpoint-{3 * (best + 1)}")
    assert not same_weights(output, output / f"checkpoint-{3 * len(accuracies)}")
    assert not list(output.glob("*.pt*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--early_stopping_patience", "2"], "--early_stopping_patience: needs --eval_data_path"),
        (["--load_best_model_at_end"], "--load_best_model_at_end: needs --eval_data_path"),
        (["--early_stopping_patience", "-1"], "--early_stopping_patience: -1"),
        (["--divergence_patience", "0"], "--divergence_patience: 0"),
    ],
)
def test_limits_that_cannot_work_are_refused_before_any_work(tiny_model, data, tmp_path, more, message):
    with pytest.raises(InputError) as error:
        train([*flags(tiny_model, data, tmp_path / "out"), *more])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_is_not_logged_is_refused_before_any_work(tiny_model, data, tmp_path):
    settings = flags(tiny_model, data, tmp_path / "out", eval_data_path=data, metric_for_best_model="f1")
    with pytest.raises(InputError, match=r"--metric_for_best_model: f1 is none of loss, accuracy"):
        train([*settings, "--load_best_model_at_end"])


# --- Other numbers of ranks --------------------------------------------------------------------------------------

# Without so large an epsilon Adam would turn rounding in a gradient near zero into a whole step.
STEADY = {"adam_epsilon": 0.01, "learning_rate": 0.01, "logging_steps": 1}


def script_settings(model: Path, data: Path, output: Path, **more: object) -> dict[str, object]:
    settings = {"MODEL_PATH": model, "DATA_PATH": data, "OUTPUT_PATH": output, "PYTHON": sys.executable}
    return settings | {"NUM_GPUS": 2} | more


def script_flags(**more: object) -> list[str]:
    """Steps of 8 groups on two ranks without accumulation, as the runs of ``flags`` take them on one."""
    settings = {"max_length": 64, "per_device_train_batch_size": 4, **more}
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def assert_same_steps(output: Path, reference: Path) -> None:
    """Step by step the same groups, whoever scored them: each of an epoch once."""
    for name in ("step", "groups_seen", "tokens_seen", "accuracy", "learning_rate"):
        assert column(output, name) == column(reference, name), name
    for name in ("loss", "margin", "reward_mean", "reward_std", "length_correlation", "grad_norm"):
        assert column(output, name) == pytest.approx(column(reference, name), rel=1e-3, abs=1e-6), name
    one, other = weights(output), weights(reference)
    assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in one.items())


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, tiny_model) -> tuple[Path, Path]:
    """330 groups, and one process that sees each once, in 42 steps of 8."""
    folder = tmp_path_factory.mktemp("epoch")
    data = write_groups(folder / "train.jsonl", 330)
    train(flags(tiny_model, data, folder / "whole", save_strategy="no", **STEADY))
    assert column(folder / "whole", "groups_seen")[-1] == 330
    return data, folder / "whole"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("launcher", "config"),
    [("torchrun", "none"), ("deepspeed", "configs/ds_z2_config.json")],
)
def test_one_process_continues_what_two_ranks_left_at_a_signal_and_sees_each_group_once(
    tiny_model, one_epoch, tmp_path, launcher, config
):
    data, whole = one_epoch
    output = tmp_path / "out"
    settings = script_settings(tiny_model, data, output, LAUNCHER=launcher, DS_CONFIG=config)
    with started(["bash", "run_training.sh", *script_flags(save_strategy="no", **STEADY)], **settings) as process:
        wait_for_log(output, 2, process)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, said[-3000:]
    assert len([line for line in said.splitlines() if "stopped after step" in line]) == 1
    stopped_at = max(column(output, "step"))
    assert 2 <= stopped_at < 42
    assert [path.name for path in output.glob("checkpoint-*")] == [f"checkpoint-{stopped_at}"]

    arguments = flags(tiny_model, data, output, per_device_train_batch_size=4, save_strategy="no", **STEADY)
    if config == "none":
        train([*arguments, "--resume_from_checkpoint", "last"])
    else:
        command = [*COMMAND, *arguments, "--deepspeed", config, "--resume_from_checkpoint", "last"]
        with started(command) as process:
            _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said[-3000:]
        assert "keeps its 8 groups a step" in said
    assert_same_steps(output, whole)
