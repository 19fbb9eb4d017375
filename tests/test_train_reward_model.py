"""Training end to end: one process as the reference, and real DeepSpeed ranks that must agree with it."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from codes.common.cli import RunFailed
from codes.common.records import InputError
from codes.train.folder_lock import folder_lock
from codes.train.train_reward_model import train
from tests.conftest import ROOT
from tests.training_runs import (
    column,
    flags,
    leave_as_if_killed,
    logs,
    run_in_a_process,
    run_on_two_ranks,
    train_on_two_ranks,
    untimed_logs,
    weights,
    write_groups,
)

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    # 21 groups in steps of 8: the last step has 5, and its second micro-step one group for two ranks.
    return write_groups(tmp_path_factory.mktemp("data") / "train.jsonl", 21)


# --- One process -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, tiny_model, data) -> Path:
    """The reference: two epochs of steps of 8 groups in one process, evaluated and checkpointed at every step."""
    output = tmp_path_factory.mktemp("runs") / "one"
    train(
        [
            *flags(tiny_model, data, output, num_train_epochs=2, eval_data_path=data, save_steps=1),
            "--save_total_limit",
            "9",
        ]
    )
    return output


def test_the_folder_that_training_saves_loads_with_the_stock_class_and_no_key_is_missing(one_process):
    model, loading = AutoModelForSequenceClassification.from_pretrained(one_process, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == 1
    assert model.config.pad_token_id is not None
    assert not list(one_process.rglob("training_args.bin"))


def test_metrics_and_provenance_are_written(one_process, data):
    train_logs = [log for log in logs(one_process) if "loss" in log]
    assert [log["step"] for log in train_logs] == [1, 2, 3, 4, 5, 6]
    names = {"accuracy", "pair_accuracy", "margin", "reward_mean", "reward_std", "length_correlation", "grad_norm"}
    assert all(names <= log.keys() for log in train_logs)
    info = json.loads((one_process / "run_info.json").read_text(encoding="utf-8"))
    assert info["finished"] is True
    assert info["train_data"]["counts"]["groups"] == 21
    assert info["train_data"]["counts"]["rejected_answers"] == 42
    assert len(info["train_data"]["files"][0]["sha256"]) == 64
    assert info["configuration"]["training_mode"] == "contrast"
    assert info["training_arguments"]["per_device_train_batch_size"] == 8


def test_the_last_step_is_logged_even_between_two_logs(tiny_model, data, tmp_path):
    train(flags(tiny_model, data, tmp_path / "out", logging_steps=2))
    assert [log["step"] for log in logs(tmp_path / "out") if "loss" in log] == [2, 3]


def test_accumulation_gives_the_same_steps_as_the_whole_batch(one_process, tiny_model, data, tmp_path):
    settings = flags(tiny_model, data, tmp_path / "out", num_train_epochs=2, per_device_train_batch_size=2)
    train([*settings, "--gradient_accumulation_steps", "4"])
    for name in ("loss", "grad_norm", "accuracy", "reward_std"):
        assert np.allclose(column(tmp_path / "out", name), column(one_process, name), rtol=1e-4), name


def test_a_step_of_unequal_batches_of_tokens_is_that_of_the_whole_batch(tiny_model, data, tmp_path):
    """All 21 groups in one step: as one batch, and as batches of 2 to 5 groups."""
    settings = flags(tiny_model, data, tmp_path / "one", per_device_train_batch_size=21)
    train([*settings, "--train_sampling_strategy", "sequential"])
    settings = flags(tiny_model, data, tmp_path / "many", gradient_accumulation_steps=99, **BY_TOKENS)
    train([*settings, "--train_sampling_strategy", "sequential"])
    assert len(column(tmp_path / "many", "loss")) == 1
    for name in ("loss", "grad_norm", "accuracy", "reward_std"):
        assert column(tmp_path / "many", name) == pytest.approx(column(tmp_path / "one", name), rel=1e-4), name


def test_files_are_mixed_by_weight_and_a_second_start_tokenizes_nothing(tiny_model, data, tmp_path, monkeypatch):
    more = write_groups(tmp_path / "more.jsonl", 30)
    settings = flags(tiny_model, data, tmp_path / "out", num_train_epochs=2)
    settings[settings.index(str(data))] += ":2"
    settings.insert(settings.index(f"{data}:2") + 1, f"{more}:0.1")
    train(settings)
    info = json.loads((tmp_path / "out/run_info.json").read_text(encoding="utf-8"))
    assert [file["groups_per_epoch"] for file in info["train_data"]["files"]] == [42, 3]
    assert info["train_data"]["counts"]["groups"] == 51
    assert len(column(tmp_path / "out", "loss")) == 2 * 6
    monkeypatch.setattr("codes.train.tokenized_data.encode_record", None)
    train([*settings, "--overwrite_output_dir"])


def test_activation_checkpointing_changes_nothing(one_process, tiny_model, data, tmp_path):
    train([*flags(tiny_model, data, tmp_path / "out", max_steps=1), "--gradient_checkpointing"])
    assert column(tmp_path / "out", "grad_norm") == pytest.approx(column(one_process, "grad_norm")[:1], rel=1e-5)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_prefix_sharing_gives_the_same_steps_as_independent_rows(one_process, tiny_model, data, tmp_path, mode):
    train([*flags(tiny_model, data, tmp_path / "out", num_train_epochs=2), "--prefix_sharing", mode])
    for name in ("loss", "grad_norm", "accuracy", "reward_std"):
        assert np.allclose(column(tmp_path / "out", name), column(one_process, name), rtol=1e-4), name


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_was_killed_and_resumed_ends_in_bitwise_the_same_weights(
    one_process, tiny_model, data, tmp_path, step
):
    output = tmp_path / "out"
    leave_as_if_killed(one_process, output, step)
    train(
        [
            *flags(tiny_model, data, output, num_train_epochs=2, eval_data_path=data, save_steps=1),
            "--save_total_limit",
            "9",
            "--resume_from_checkpoint",
            "last",
        ]
    )
    assert weights(output).keys() == weights(one_process).keys()
    assert all(torch.equal(tensor, weights(one_process)[name]) for name, tensor in weights(output).items())
    # Also the evaluation at the end of the epoch, which comes after the checkpoint of its last step.
    assert untimed_logs(output) == untimed_logs(one_process)


def test_a_resumed_run_must_have_the_configuration_of_the_one_it_continues(one_process, tiny_model, data, tmp_path):
    leave_as_if_killed(one_process, tmp_path / "out", 2)
    resumed = [*flags(tiny_model, data, tmp_path / "out", num_train_epochs=2), "--resume_from_checkpoint", "last"]
    for flag, value, difference in (
        ("--temperature", "0.7", r"temperature: 0\.5 there, 0\.7 now"),
        ("--data_seed", "7", "data_seed: 42 there, 7 now"),
        ("--learning_rate", "1e-4", r"learning_rate: 0\.001 there, 0\.0001 now"),
        ("--lr_scheduler_type", "cosine", 'lr_scheduler_type: "linear" there, "cosine" now'),
        ("--weight_decay", "0.1", r"weight_decay: 0\.0 there, 0\.1 now"),
        ("--max_steps", "9", "max_steps: -1 there, 9 now"),
        ("--warmup_steps", "2", r"warmup_steps: 0\.? there, 2\.0 now"),
        ("--max_grad_norm", "0.5", r"max_grad_norm: 1\.0 there, 0\.5 now"),
        ("--optim", "adafactor", 'optim: "adamw_torch.*" there, "adafactor" now'),
        ("--adam_beta2", "0.95", r"adam: \[0\.9, 0\.999, 1e-08\] there"),
    ):
        with pytest.raises(InputError, match=difference):
            train([*resumed, flag, value])


def test_a_checkpoint_of_another_folder_must_have_the_configuration_of_its_own_run(
    one_process, tiny_model, data, tmp_path
):
    settings = flags(tiny_model, data, tmp_path / "out", num_train_epochs=2, learning_rate="1e-4")
    with pytest.raises(InputError, match=r"one: made with another configuration \(learning_rate"):
        train([*settings, "--resume_from_checkpoint", str(one_process / "checkpoint-2")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("room", [0.5, 1.5])  # of the weights, then of the optimizer's state, twice their size
def test_a_disk_that_takes_no_more_is_a_failed_run_named_in_one_line(tiny_model, data, tmp_path, room):
    settings = flags(tiny_model, data, tmp_path / "out", max_steps=1)
    size = int((tiny_model / "model.safetensors").stat().st_size * room)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(RunFailed, match=r"out: .*could not be written"):
            train(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_one_process_needs_no_backend(tiny_model, data, tmp_path):
    train([*flags(tiny_model, data, tmp_path / "out", max_steps=1), "--ddp_backend", "gloo"])
    assert len(column(tmp_path / "out", "loss")) == 1


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is_unless_told_otherwise(tiny_model, data, tmp_path):
    output = tmp_path / "out"
    settings = flags(tiny_model, data, output, max_steps=1)
    train(settings)
    before = (output / "run_info.json").read_bytes()
    with pytest.raises(InputError, match=r"holds a run .*--overwrite_output_dir"):
        train(settings)
    assert (output / "run_info.json").read_bytes() == before
    train([*settings, "--overwrite_output_dir"])
    assert len(column(output, "loss")) == 1


def test_a_folder_that_another_run_is_writing_to_is_refused_whatever_is_asked_of_it(tiny_model, data, tmp_path):
    settings = flags(tiny_model, data, tmp_path / "out", max_steps=1)
    with folder_lock(tmp_path / "out"):
        for more in ([], ["--resume_from_checkpoint", "auto"], ["--overwrite_output_dir"]):
            with pytest.raises(InputError, match="another training is writing to"):
                train([*settings, *more])
    assert not (tmp_path / "out").exists()
    train(settings)
    with folder_lock(tmp_path / "out", wait_seconds=0):
        pass  # free again


def test_an_existing_reward_model_keeps_its_head(tiny_reward_model, data, tmp_path):
    train(flags(tiny_reward_model, data, tmp_path / "out", "pairwise", max_steps=1, learning_rate=0))
    before, after = weights(tiny_reward_model), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("mode", ["contrast", "pairwise", "bradley_terry"])
def test_training_overfits_thirty_two_groups_and_rewards_do_not_drift(tiny_model, tmp_path, mode):
    groups = write_groups(tmp_path / "groups.jsonl", 32)
    train(
        [
            *flags(
                tiny_model, groups, tmp_path / "out", mode, num_train_epochs=8, learning_rate="3e-3", logging_steps=4
            ),
            "--pairs",
            "all",
            "--center_rewards_coefficient",
            "0.01",
            "--save_strategy",
            "no",
        ]
    )
    last = [log for log in logs(tmp_path / "out") if "loss" in log][-1]
    assert last["accuracy"] == 1.0
    assert last["margin"] > 0.5
    assert abs(last["reward_mean"]) < 20
    assert last["reward_std"] < 20


def test_a_learned_temperature_is_trained_logged_and_saved_beside_a_stock_folder_and_resumes_bitwise(
    tiny_model, data, tmp_path
):
    output, resumed = tmp_path / "out", tmp_path / "resumed"
    learned = ["--learned_temperature", "--temperature_learning_rate", "0.05", "--weight_decay", "0.1"]
    train([*flags(tiny_model, data, output, save_steps=1, save_total_limit=9), *learned])
    temperatures = column(output, "temperature")
    assert len(set(temperatures)) == 3
    assert temperatures[0] == pytest.approx(0.5)
    assert abs(temperatures[1] - 0.5 * np.exp([-0.05, 0.05])).min() < 1e-3  # one step of Adam
    saved = json.loads((output / "temperature.json").read_text())
    info = json.loads((output / "run_info.json").read_text())
    assert saved == info["learned_temperature"]
    assert saved["temperature"] == pytest.approx(temperatures[-1], rel=0.05)
    _, loading = AutoModelForSequenceClassification.from_pretrained(output, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    leave_as_if_killed(output, resumed, 1)
    settings = flags(tiny_model, data, resumed, save_steps=1, save_total_limit=9)
    train([*settings, *learned, "--resume_from_checkpoint", "last"])
    assert json.loads((resumed / "temperature.json").read_text()) == saved
    assert all(torch.equal(tensor, weights(output)[name]) for name, tensor in weights(resumed).items())


def test_weights_smoothing_penalties_and_in_batch_negatives_train_together(tiny_model, tmp_path):
    groups = write_groups(tmp_path / "groups.jsonl", 8)
    records = [json.loads(line) for line in groups.read_text().splitlines()]
    for record in records:
        record["bias_type"] = ["original", "length", "beauty"][: len(record["rejected"])]
    groups.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {
        "bias_weights": "length=2,other_prompt=0.5",
        "original_weight": 0.4,
        "label_smoothing_factor": 0.05,
        "length_penalty_coefficient": 0.1,
        "in_batch_negatives": 2,
    }
    train(flags(tiny_model, groups, tmp_path / "out", num_train_epochs=12, learning_rate="3e-3", **options))
    losses = column(tmp_path / "out", "loss")
    assert losses[-1] < 0.6 * losses[0]
    configuration = json.loads((tmp_path / "out/run_info.json").read_text())["configuration"]
    assert configuration["bias_weights"] == {"length": 2, "other_prompt": 0.5}
    assert (configuration["label_smoothing"], configuration["in_batch_negatives"]) == (0.05, 2)


def test_scores_that_are_not_finite_stop_the_run_with_a_remedy(tiny_reward_model, data, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_reward_model, broken)
    tensors = weights(broken)
    tensors["score.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    message = r"8 of 8 groups \(numbers .*\) are not finite at step 1; .*--learning_rate.*no checkpoint"
    with pytest.raises(RunFailed, match=message):
        train(flags(broken, data, tmp_path / "out"))


# --- Two DeepSpeed ranks -----------------------------------------------------------------------------------------


BY_TOKENS = {"per_device_train_batch_size": None, "tokens_per_device_batch": 200}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
Z2 = {"deepspeed": "configs/ds_z2_config.json", "save_steps": 2, "save_total_limit": 9}
DECAYED = {"pairs": "all", "weight_decay": 1.0}
Z3 = {**DECAYED, "deepspeed": "configs/ds_z3_config.json", "save_steps": 1, "save_total_limit": 9}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_model, tiny_reward_model, data) -> Path:
    """The folder of the runs that two ranks make, and of those that continue them, each process started once."""
    folder = tmp_path_factory.mktemp("two_ranks")

    def zero_2(name: str) -> list[str]:
        evaluated = {"num_train_epochs": 2, "per_device_eval_batch_size": 2, "eval_data_path": data}
        return flags(tiny_model, data, folder / name, **evaluated, **ACCUMULATED, **Z2)

    def zero_3(name: str, **more: object) -> list[str]:
        return flags(tiny_reward_model, data, folder / name, "pairwise", **Z3 | more)

    def by_tokens(stage: int) -> list[str]:
        config = {"deepspeed": f"configs/ds_z{stage}_config.json"}
        output = folder / f"tokens_zero_{stage}"
        return flags(tiny_reward_model, data, output, "pairwise", **DECAYED, **BY_TOKENS, **config)

    done = train_on_two_ranks(
        *(zero_2("zero_2"), zero_3("zero_3", **ACCUMULATED), zero_3("one_forward", per_device_train_batch_size=4)),
        *(by_tokens(stage) for stage in (2, 3)),
        zero_3("zero_2_one_forward", per_device_train_batch_size=4, deepspeed="configs/ds_z2_config.json"),
        zero_3("zero_2_offload", **ACCUMULATED, deepspeed="configs/ds_z2_offload_config.json"),
        zero_3("zero_3_offload", **ACCUMULATED, deepspeed="configs/ds_z3_offload_config.json"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = ["--resume_from_checkpoint", "last"]
    leave_as_if_killed(folder / "zero_2", folder / "zero_2_resumed", 2)
    leave_as_if_killed(folder / "zero_3", folder / "zero_3_resumed", 1)
    done = train_on_two_ranks(
        [*zero_2("zero_2_resumed"), *resumed], [*zero_3("zero_3_resumed", **ACCUMULATED), *resumed]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.timeout(900)  # the first launch on a machine compiles an operator
def test_zero_2_on_two_ranks_with_accumulation_trains_and_evaluates_as_one_process(two_ranks, one_process):
    output = two_ranks / "zero_2"
    for name in ("loss", "grad_norm", "accuracy", "margin", "reward_std", "length_correlation"):
        assert np.allclose(column(output, name), column(one_process, name), rtol=1e-4, atol=1e-6), name
    assert column(output, "groups_seen") == column(one_process, "groups_seen")
    assert column(output, "eval_accuracy") == column(one_process, "eval_accuracy")
    for name in ("eval_loss", "eval_margin", "eval_reward_mean", "eval_length_correlation"):
        assert np.allclose(column(output, name), column(one_process, name), rtol=1e-4, atol=1e-6), name


@pytest.fixture(scope="module")
def pairwise_one_process(tmp_path_factory, tiny_reward_model, data) -> Path:
    output = tmp_path_factory.mktemp("pairwise") / "one"
    train(flags(tiny_reward_model, data, output, "pairwise", **DECAYED))
    return output


@pytest.mark.parametrize("run", ["zero_3", "one_forward", "zero_2_one_forward", "zero_2_offload", "zero_3_offload"])
def test_two_ranks_with_an_uneven_last_batch_train_as_one_process_with_and_without_accumulation_or_offload(
    two_ranks, pairwise_one_process, run
):
    for name in ("loss", "grad_norm", "accuracy"):
        assert np.allclose(column(two_ranks / run, name), column(pairwise_one_process, name), rtol=1e-4), name
    one, two = weights(pairwise_one_process), weights(two_ranks / run)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    # Adam divides by the gradient's size, so what is rounding in a gradient near zero shows in the weight: 1e-3 a step.
    assert all(torch.allclose(tensor, two[name], atol=1e-4) for name, tensor in one.items())
    _, loading = AutoModelForSequenceClassification.from_pretrained(two_ranks / run, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


@pytest.mark.parametrize("stage", [2, 3])
def test_batches_of_tokens_on_two_ranks_make_the_steps_of_one_process(
    two_ranks, tiny_reward_model, data, tmp_path, stage
):
    settings = flags(tiny_reward_model, data, tmp_path / "one", "pairwise", **DECAYED, **BY_TOKENS)
    train([*settings, "--gradient_accumulation_steps", "2"])
    assert len(column(tmp_path / "one", "loss")) > 2
    for name in ("loss", "grad_norm", "accuracy", "groups_seen"):
        expected = column(tmp_path / "one", name)
        assert column(two_ranks / f"tokens_zero_{stage}", name) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("run", ["zero_2", "zero_3"])
def test_two_ranks_that_were_killed_and_resumed_end_in_bitwise_the_same_weights(two_ranks, run):
    whole, resumed = weights(two_ranks / run), weights(two_ranks / f"{run}_resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert untimed_logs(two_ranks / f"{run}_resumed") == untimed_logs(two_ranks / run)


@pytest.mark.timeout(600)
def test_one_rank_continues_what_two_left_under_zero_3(two_ranks, pairwise_one_process, tiny_reward_model, data):
    output = two_ranks / "continued"
    leave_as_if_killed(two_ranks / "one_forward", output, 1)
    settings = flags(tiny_reward_model, data, output, "pairwise", per_device_train_batch_size=4, **Z3)
    done = run_in_a_process(*settings, "--resume_from_checkpoint", "last")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("loss", "grad_norm", "accuracy"):
        assert np.allclose(column(output, name), column(pairwise_one_process, name), rtol=1e-4), name
    one, continued = weights(pairwise_one_process), weights(output)
    assert all(torch.allclose(tensor, continued[name], atol=1e-4) for name, tensor in one.items())


@pytest.mark.timeout(600)  # the first launch on a machine compiles an operator
def test_bad_data_ends_both_ranks_with_exit_status_2_and_one_line(tiny_model, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Q", "chosen": "A", "rejected": ["B"]}\n{"question": "Q", "rejected": ["B"]}\n')
    done = run_on_two_ranks(*flags(tiny_model, bad, tmp_path / "out"), "--deepspeed", "configs/ds_z2_config.json")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == [f"error: {bad}:2: field 'chosen': is missing"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# --- What is refused before any work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temprature", "1"], "unrecognized arguments: --temprature 1"),
        (["--temperature", "0"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--margin", "-1"], "--margin"),
        (["--max_length", "0"], "--max_length"),
        (["--training_mode", "dpo"], "invalid choice: 'dpo'"),
        (["--train_data_path", "absent.jsonl"], "absent.jsonl"),
        (["--eval_strategy", "steps"], "--eval_data_path"),
        (["--keep_unverified", "--verified_only"], "contradict"),
        (["--tokens_per_device_batch", "100"], "--per_device_train_batch_size"),
        (["--tokens_per_device_batch", "0"], "--tokens_per_device_batch"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size"),
        (["--resume_from_checkpoint", "last"], "holds no whole checkpoint"),
        (["--label_smoothing_factor", "0.5"], "--label_smoothing_factor"),
        (["--length_penalty_coefficient", "-1"], "--length_penalty_coefficient"),
        (["--in_batch_negatives", "-1"], "--in_batch_negatives"),
        (["--in_batch_negatives", "21"], "more than the data's 21 questions"),
        (["--original_weight", "1.5"], "--original_weight"),
        (["--original_weight", "0.5"], "no biased rejected answers"),
        (["--bias_weights", "length"], "NAME=WEIGHT"),
        (["--bias_weights", "length=-1"], "--bias_weights: length"),
        (["--bias_weights", "length=nan"], "--bias_weights: length"),
        (["--bias_weights", "length=1,length=2"], "twice"),
        (["--bias_weights", "length=2"], "no rejected answer of type 'length'"),
        (["--training_mode", "pairwise", "--bias_weights", "original=2"], "add --pairs all"),
        (["--training_mode", "bradley_terry", "--in_batch_negatives", "1"], "add --pairs all"),
        (["--training_mode", "pairwise", "--learned_temperature"], "--learned_temperature"),
        (["--temperature_learning_rate", "0"], "--temperature_learning_rate"),
        (["--temperature_learning_rate", "0.1"], "add --learned_temperature"),
        (["--train_sampling_strategy", "group_by_length"], "--train_sampling_strategy"),
        (["--deepspeed", "absent.json"], "absent.json"),
        (["--save_strategy", "sometimes"], "sometimes"),
        (["--max_steps", "0"], "--max_steps"),
        (["--seed", "-1"], "--seed"),
        (["--data_seed", "4294967296"], "--data_seed"),
        (["--report_to", "swanlab"], "--report_to"),
        (["--report_to", "nothing"], "--report_to"),
        (["--use_liger_kernel"], "liger-kernel"),
        (["--dataloader_drop_last", "True", "--per_device_train_batch_size", "22"], "an epoch has 21 groups"),
    ],
)
def test_a_flag_that_cannot_work_is_an_input_error_and_nothing_is_written(tiny_model, data, tmp_path, more, message):
    with pytest.raises(InputError) as error:
        train([*flags(tiny_model, data, tmp_path / "out"), *more])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_half_precision_on_the_cpu_is_refused_because_it_would_have_no_effect(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(InputError, match="--fp16: needs a GPU"):
        train([*flags(tiny_model, data, tmp_path / "out"), "--fp16"])


def test_an_output_that_is_a_file_is_refused_and_left_as_it_is(tiny_model, data):
    before = data.read_bytes()
    with pytest.raises(InputError, match=r"--output_dir: .* is no folder"):
        train(flags(tiny_model, data, data))
    assert data.read_bytes() == before


@pytest.mark.parametrize("stage", [3, "3"])
def test_zero_3_that_would_save_no_weights_is_refused(tiny_model, data, tmp_path, stage):
    config = json.loads((ROOT / "configs/ds_z3_config.json").read_text())
    config["zero_optimization"]["stage"] = stage
    del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    (tmp_path / "z3.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="stage3_gather_16bit_weights_on_model_save"):
        train([*flags(tiny_model, data, tmp_path / "out"), "--deepspeed", str(tmp_path / "z3.json")])


def test_all_four_deepspeed_configurations_leave_sizes_and_precision_to_the_flags():
    for name in ("ds_z2_config", "ds_z3_config", "ds_z2_offload_config", "ds_z3_offload_config"):
        config = json.loads((ROOT / f"configs/{name}.json").read_text())
        assert config["train_micro_batch_size_per_gpu"] == config["gradient_clipping"] == "auto"
        assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
        assert ("offload_optimizer" in config["zero_optimization"]) == ("offload" in name)
