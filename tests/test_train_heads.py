"""Training several heads end to end: ensembles, objectives, what is refused, and going on after a kill."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from codes.common.conversation import encode_group
from codes.common.records import InputError
from codes.train.export import export
from codes.train.head_losses import head_losses
from codes.train.reward_heads import ONE_HEAD, ensemble_heads
from codes.train.reward_model import RewardModel
from codes.train.reward_settings import RewardSettings
from codes.train.train_reward_model import train
from tests.test_head_losses import groups as three_groups
from tests.training_runs import (
    column,
    flags,
    leave_as_if_killed,
    logs,
    train_on_two_ranks,
    untimed_logs,
    weights,
    write_groups,
)

pytestmark = pytest.mark.usefixtures("small_runs")

OBJECTIVES = ["--objectives", "helpful", "safe"]
WORDS = ["certainly", "perhaps", "never", "forty-two", "add", "France", "water", "Seine", "return", "six"]


def write_rated_groups(path: Path, count: int) -> Path:
    """Groups of four answers that one objective orders the other way round than the other; some are not rated."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            answers = [f"{' '.join(draw.sample(WORDS, 3))} {i}." for _ in range(4)]
            helpful = draw.sample(range(1, 5), 4)
            safe = [5 - rating for rating in helpful]
            helpful[draw.randrange(4)] = None
            record = {"question": f"What is {i}?", "chosen": answers[0], "rejected": answers[1:]}
            file.write(json.dumps(record | {"rewards": {"helpful": helpful, "safe": safe}}) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "train.jsonl", 21)


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> Path:
    return write_rated_groups(tmp_path_factory.mktemp("data") / "rated.jsonl", 16)


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


# --- Ensembles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["contrast", "pairwise", "bradley_terry"])
def test_loss_and_gradient_of_heads_on_a_trunk_are_the_means_of_those_of_each_head_alone_on_it(tiny_model, mode):
    torch.manual_seed(0)
    whole = RewardModel.from_pretrained(str(tiny_model), new_head=True, heads=ensemble_heads(3))
    batch = whole.layout([[[5, 6, 7], [5, 6], [5, 9, 9, 2]], [[8, 7], [8]], [[4, 4], [4, 5], [4, 6], [4, 7]]])
    objective = {"training_mode": mode, "pairs": "all"}
    loss = head_losses(whole(**batch, per_head=True), three_groups(), whole.heads, **objective).mean()
    loss.backward()
    losses, gradients = [], []
    for head in range(3):
        alone = RewardModel.from_pretrained(str(tiny_model), new_head=True)
        with torch.no_grad():
            alone.model.score.weight.copy_(whole.model.score.weight[head : head + 1])
        losses.append(head_losses(alone(**batch, per_head=True), three_groups(), ONE_HEAD, **objective).mean())
        losses[-1].backward()
        gradients.append({name: parameter.grad for name, parameter in alone.model.base_model.named_parameters()})
        torch.testing.assert_close(whole.model.score.weight.grad[head] * 3, alone.model.score.weight.grad[0])
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-6, atol=1e-7)
    for name, parameter in whole.model.base_model.named_parameters():
        mean = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        torch.testing.assert_close(parameter.grad, mean, rtol=1e-4, atol=1e-7)


def test_an_ensemble_is_saved_with_its_rule_and_its_metrics_are_those_of_the_combined_score(tiny_model, data, tmp_path):
    more = {"heads": 3, "head_rule": "penalised", "head_penalty": 0.5, "per_device_train_batch_size": 21}
    train(flags(tiny_model, data, tmp_path / "out", num_train_epochs=1, learning_rate=0, **more))
    model = RewardModel.from_pretrained(str(tmp_path / "out")).eval()
    assert model.heads == ensemble_heads(3, "penalised", 0.5)
    records = [json.loads(line) for line in data.read_text().splitlines()]
    answers = [
        [answer.ids for answer in encode_group(model.tokenizer, r["question"], [r["chosen"], *r["rejected"]], 64)]
        for r in records
    ]
    with torch.no_grad():
        scores = model(**model.layout(answers))
    [log] = [log for log in logs(tmp_path / "out") if "loss" in log]
    assert log["reward_mean"] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert log["reward_std"] == pytest.approx(scores.std(correction=0).item(), rel=1e-3)
    card = (tmp_path / "out/README.md").read_text()
    assert "The score is\ntheir mean less 0.5 times their variance;" in card
    assert "logits[0].tolist()" in card
    info = json.loads((tmp_path / "out/run_info.json").read_text())
    assert info["model"]["heads"] == info["configuration"]["reward_heads"]


def test_a_bootstrap_changes_what_heads_learn_but_not_what_an_evaluation_says(tiny_model, data, tmp_path):
    more = {"max_steps": 2, "heads": 3, "eval_data_path": data, "eval_strategy": "steps", "eval_steps": 1}
    train([*flags(tiny_model, data, tmp_path / "all", **more), "--eval_on_start"])
    train([*flags(tiny_model, data, tmp_path / "drawn", **more), "--eval_on_start", "--head_bootstrap"])
    losses = [column(tmp_path / name, "eval_loss") for name in ("all", "drawn")]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]
    info = json.loads((tmp_path / "drawn/run_info.json").read_text())
    assert info["configuration"]["bootstrap_seed"] == 42


def test_a_killed_run_of_an_ensemble_resumes_to_bitwise_the_same_weights_and_needs_the_same_heads(
    tiny_model, data, tmp_path
):
    more = {"heads": 3, "head_rule": "minimum", "save_steps": 1, "save_total_limit": 9}
    train([*flags(tiny_model, data, tmp_path / "whole", **more), "--head_bootstrap"])
    leave_as_if_killed(tmp_path / "whole", tmp_path / "out", 1)
    resumed = [*flags(tiny_model, data, tmp_path / "out", **more), "--resume_from_checkpoint", "last"]
    for changes, difference in (
        ([], "bootstrap_seed: 42 there, null now"),
        (["--head_bootstrap", "--head_rule", "mean"], "reward_heads: .*minimum.* there, .*mean.* now"),
        (["--head_bootstrap", "--heads", "2"], "reward_heads: .*head_3.* there, "),
    ):
        with pytest.raises(InputError, match=difference):
            train([*resumed, *changes])
    train([*resumed, "--head_bootstrap"])
    assert_same_weights(tmp_path / "out", tmp_path / "whole")
    assert untimed_logs(tmp_path / "out") == untimed_logs(tmp_path / "whole")


def test_training_goes_on_from_a_model_with_heads_only_with_the_same_ones(tiny_model, data, tmp_path):
    train(flags(tiny_model, data, tmp_path / "three", max_steps=1, heads=3))
    for other in ([], ["--heads", "2"], ["--objectives", "a", "b"]):
        with pytest.raises(
            InputError, match="has other heads than those asked for; its own are trained with --heads 3"
        ):
            train([*flags(tmp_path / "three", data, tmp_path / "out"), *other])
        assert not (tmp_path / "out").exists()
    train(flags(tmp_path / "three", data, tmp_path / "out", max_steps=1, heads=3, head_rule="minimum", learning_rate=0))
    assert_same_weights(tmp_path / "out", tmp_path / "three")
    assert RewardModel.from_pretrained(str(tmp_path / "out")).heads.rule == "minimum"


# --- Objectives --------------------------------------------------------------------------------------------------


def head_scores(model: RewardModel, record: dict) -> torch.Tensor:
    """[answers, heads]."""
    answers = encode_group(model.tokenizer, record["question"], [record["chosen"], *record["rejected"]], 64)
    with torch.no_grad():
        return model(**model.layout([[answer.ids for answer in answers]]), per_head=True)


def test_two_objectives_that_contradict_each_other_are_each_learned_by_a_head_of_its_own(tiny_model, rated, tmp_path):
    settings = {"num_train_epochs": 60, "learning_rate": "5e-3", "save_strategy": "no", "logging_steps": 30}
    more = ["--objective_weights", "safe=-0.5", "--preference_weight", "0"]
    train([*flags(tiny_model, rated, tmp_path / "out", **settings), *OBJECTIVES, *more])
    assert column(tmp_path / "out", "loss")[-1] < 0.1
    model = RewardModel.from_pretrained(str(tmp_path / "out")).eval()
    assert model.heads.weights == {"helpful": 1.0, "safe": -0.5}
    for line in rated.read_text().splitlines():
        record = json.loads(line)
        scores = head_scores(model, record)
        for place, name in enumerate(("helpful", "safe")):
            ratings = [(rating, i) for i, rating in enumerate(record["rewards"][name]) if rating is not None]
            in_order = scores[[i for _, i in sorted(ratings)], place]
            assert (in_order.diff() > 0).all(), (record, name)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert stock.config.id2label == {0: "helpful", 1: "safe"}
    counts = json.loads((tmp_path / "out/run_info.json").read_text())["train_data"]["counts"]
    assert counts["rated_pairs"] == {"helpful": 16 * 3, "safe": 16 * 6}
    assert counts["groups_without_rated_pair"] == 0


def test_the_preference_is_learned_beside_the_ratings_unless_its_weight_is_0(tiny_model, rated, tmp_path):
    accuracies = {}
    for weight in (None, 0):
        settings = {"num_train_epochs": 25, "learning_rate": "5e-3", "save_strategy": "no", "preference_weight": weight}
        train([*flags(tiny_model, rated, tmp_path / f"out-{weight}", "pairwise", pairs="all", **settings), *OBJECTIVES])
        accuracies[weight] = column(tmp_path / f"out-{weight}", "accuracy")[-1]
    assert accuracies[None] > 0.9 > accuracies[0] + 0.2


def test_one_objective_alone_is_a_model_of_one_label_with_its_name(tiny_model, rated, tmp_path):
    train([*flags(tiny_model, rated, tmp_path / "out", max_steps=1), "--objectives", "safe"])
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert stock.config.id2label == {0: "safe"}
    model = RewardModel.from_pretrained(str(tmp_path / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**model.layout([[[5, 6, 7]]])), stock(torch.tensor([[5, 6, 7]])).logits[0])


def test_every_rejected_answer_is_rated_even_where_the_preference_looks_at_the_first_alone():
    settings = RewardSettings("m", ["d"], "pairwise", objectives=["a"])
    assert settings.prefers_over_the_first_only
    assert not settings.encoding(64, 0).first_rejected_only
    assert settings.encoding(64, 0).objectives == ("a",)


def test_an_adapter_with_objectives_is_trained_resumed_and_merged(tiny_model, rated, tmp_path):
    more = {"lora_rank": 2, "save_steps": 1, "objective_weights": "safe=2"}
    train([*flags(tiny_model, rated, tmp_path / "whole", **more), *OBJECTIVES])
    leave_as_if_killed(tmp_path / "whole", tmp_path / "out", 1)
    train([*flags(tiny_model, rated, tmp_path / "out", **more), *OBJECTIVES, "--resume_from_checkpoint", "last"])
    assert column(tmp_path / "out", "loss") == column(tmp_path / "whole", "loss")
    export(str(tmp_path / "out"), tmp_path / "kept", merge=False)
    export(str(tmp_path / "out"), tmp_path / "merged")
    record = json.loads(rated.read_text().splitlines()[0])
    scores = [head_scores(RewardModel.from_pretrained(str(tmp_path / name)).eval(), record) for name in ("out", "kept")]
    merged = RewardModel.from_pretrained(str(tmp_path / "merged")).eval()
    assert torch.equal(*scores)
    torch.testing.assert_close(head_scores(merged, record), scores[0], atol=1e-6, rtol=1e-5)
    assert merged.heads.weights == {"helpful": 1.0, "safe": 2.0}
    card = (tmp_path / "out/README.md").read_text()
    assert "num_labels=2" in card
    assert "the reward heads `helpful`, `safe`" in card
    assert "1 x `helpful` + 2 x `safe`" in card
    export(str(tmp_path / "out"), tmp_path / "one", merge_heads=True)
    assert "reward heads" not in (tmp_path / "one/README.md").read_text()
    one = RewardModel.from_pretrained(str(tmp_path / "one")).eval()
    torch.testing.assert_close(head_scores(one, record)[:, 0], scores[0] @ torch.tensor([1.0, 2.0]))


@pytest.mark.timeout(600)
def test_two_ranks_under_zero_2_and_3_take_the_steps_that_one_process_takes(tiny_model, rated, data, tmp_path):
    """Objectives under ZeRO-2 from a language model, an ensemble under ZeRO-3 from a model that has its heads."""
    train(flags(tiny_model, data, tmp_path / "three", max_steps=1, heads=3))

    def runs(size: int, *stages: str) -> list[list[str]]:
        steady = {"adam_epsilon": 0.01, "num_train_epochs": 2, "per_device_train_batch_size": size}
        return [
            [*flags(tiny_model, rated, tmp_path / f"objectives-{size}", deepspeed=stages[0], **steady), *OBJECTIVES],
            flags(tmp_path / "three", data, tmp_path / f"heads-{size}", heads=3, deepspeed=stages[1], **steady),
        ]

    for alone in runs(6, None, None):
        train(alone)
    done = train_on_two_ranks(*runs(3, "configs/ds_z2_config.json", "configs/ds_z3_config.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    for run in ("objectives", "heads"):
        one, two = tmp_path / f"{run}-6", tmp_path / f"{run}-3"
        for name in ("loss", "margin", "reward_mean", "accuracy"):
            assert column(two, name) == pytest.approx(column(one, name), rel=1e-3, abs=1e-6), (run, name)
        assert RewardModel.from_pretrained(str(two)).heads == RewardModel.from_pretrained(str(one)).heads
        assert all(torch.allclose(tensor, weights(one)[name], atol=1e-5) for name, tensor in weights(two).items())


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads", "0"], "--heads: 0 is not a number of at least 1"),
        (["--heads", "2", *OBJECTIVES], "--heads: with --objectives there is a head for each of them"),
        (["--head_rule", "minimum"], "--head_rule: belongs to an ensemble of heads; add --heads"),
        (["--head_bootstrap"], "--head_bootstrap: belongs to an ensemble"),
        ([*OBJECTIVES, "--head_rule", "mean"], "--head_rule: belongs to an ensemble"),
        (["--heads", "2", "--head_penalty", "1"], "--head_penalty: only --head_rule penalised has one"),
        (["--heads", "2", "--head_rule", "penalised", "--head_penalty", "-1"], "--head_penalty: -1.0 is not a number"),
        (["--heads", "2", "--head_rule", "penalised", "--head_penalty", "nan"], "--head_penalty: nan is not a number"),
        (["--objective_weights", "helpful=1"], "--objective_weights: belongs to several objectives"),
        (["--preference_weight", "1"], "--preference_weight: belongs to several objectives"),
        ([*OBJECTIVES, "helpful"], "--objectives: 'helpful' is named twice"),
        (["--objectives", "a=b"], "--objectives: 'a=b' is no name"),
        (["--objectives", ""], "--objectives: '' is no name"),
        ([*OBJECTIVES, "--objective_weights", "kind=1"], "--objective_weights: 'kind' is none of the objectives"),
        ([*OBJECTIVES, "--objective_weights", "helpful"], "'helpful' is not of the form NAME=WEIGHT"),
        ([*OBJECTIVES, "--objective_weights", "helpful=inf"], "--objective_weights: helpful: inf is not a number"),
        ([*OBJECTIVES, "--objective_weights", "helpful=1e39"], "helpful: 1e+39 is not a number that float32 holds"),
        ([*OBJECTIVES, "--objective_weights", "safe=1,safe=2"], "'safe=2' is named twice"),
        ([*OBJECTIVES, "--objective_weights", "safe=0,helpful=0"], "--objective_weights: all are 0"),
        ([*OBJECTIVES, "--preference_weight", "-1"], "--preference_weight: -1.0 is not a number of at least 0"),
        (
            [*OBJECTIVES, "--preference_weight", "0", "--learned_temperature"],
            "--learned_temperature: has no effect with --preference_weight 0",
        ),
        (
            [*OBJECTIVES, "--preference_weight", "0", "--in_batch_negatives", "1"],
            "--in_batch_negatives: has no effect with --preference_weight 0",
        ),
        (
            [*OBJECTIVES, "--training_mode", "pairwise", "--in_batch_negatives", "1"],
            "--in_batch_negatives: has no effect on the first rejected answer alone",
        ),
        (
            ["--objectives", "helpful", "kind"],
            "--objectives: the data rates no two answers of a group differently by 'kind'",
        ),
    ],
)
def test_flags_that_cannot_work_are_refused_before_any_work(tiny_model, rated, tmp_path, more, message):
    with pytest.raises(InputError) as error:
        train([*flags(tiny_model, rated, tmp_path / "out"), *more])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_rewards_are_named_by_file_line_and_field_and_nothing_is_written(tiny_model, rated, tmp_path):
    bad = tmp_path / "bad.jsonl"
    lines = rated.read_text().splitlines()
    record = json.loads(lines[1])
    record["rewards"]["safe"][2] = "3"
    bad.write_text("\n".join([lines[0], json.dumps(record)]) + "\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:2: field 'rewards\.safe\[2\]': expected a finite number"):
        train([*flags(tiny_model, bad, tmp_path / "out"), *OBJECTIVES])
    assert not (tmp_path / "out").exists()
