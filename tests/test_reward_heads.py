"""Several heads on one trunk: combined, saved, loaded by stock classes and by ours, adapted and exported."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from codes.common.records import InputError
from codes.common.score_rules import combined
from codes.train.adapters import LoraSettings
from codes.train.export import export
from codes.train.reward_heads import ONE_HEAD, RewardHeads, ensemble_heads, heads_in
from codes.train.reward_model import RewardModel
from tests.test_reward_model import broken_copy

OBJECTIVES = RewardHeads(("helpful", "safe"), "weighted", weights={"helpful": 1.0, "safe": -0.5})
EVERY_RULE = [OBJECTIVES, ensemble_heads(3), ensemble_heads(3, "minimum"), ensemble_heads(3, "penalised", 2.0)]
GROUPS = [[[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 4, 3]], [[11, 12], [11, 13]]]
ROWS = [row for group in GROUPS for row in group]


def rule_of(heads: RewardHeads) -> str:
    return heads.rule


def loaded(folder: str, heads: RewardHeads, **options) -> RewardModel:
    """A model with fresh heads, scaled up so that wrong scores cannot hide in rounding."""
    torch.manual_seed(2)
    model = RewardModel.from_pretrained(folder, new_head=True, heads=heads, **options)
    model.ensure_own_pad_token()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(40 if len(parameter) == len(heads.names) else 4)
    return model.eval()


@torch.no_grad()
def scores(model: RewardModel, **options) -> torch.Tensor:
    return model(**model.layout(GROUPS), **options)


@torch.no_grad()
def stock_logits(folder, **options) -> torch.Tensor:
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return torch.cat([stock(torch.tensor([row])).logits for row in ROWS])


# --- The rules ---------------------------------------------------------------------------------------------------


def test_objectives_are_summed_by_their_weights_and_ensembles_combined_by_their_rule():
    of_heads = torch.tensor([[1.0, 4.0], [2.0, -2.0]])
    assert OBJECTIVES.combined(of_heads).tolist() == [-1.0, 3.0]
    assert ensemble_heads(2, "minimum", 1.0).combined(of_heads).tolist() == [1.0, -2.0]
    assert ensemble_heads(2, "penalised", 2.0).combined(of_heads).tolist() == [2.5 - 2 * 2.25, 0 - 2 * 4.0]
    assert torch.equal(ONE_HEAD.combined(of_heads[:, :1]), of_heads[:, 0])


@pytest.mark.parametrize("heads", [*EVERY_RULE, RewardHeads(("one",), "weighted", weights={"one": 1.0})], ids=rule_of)
def test_what_a_configuration_says_of_heads_is_read_back(heads, tmp_path):
    config = PretrainedConfig()
    heads.describe_in(config)
    config.save_pretrained(tmp_path)
    assert heads_in(json.loads((tmp_path / "config.json").read_text()), "here") == heads
    assert heads_in(vars(PretrainedConfig.from_pretrained(tmp_path)), "here") == heads


def test_one_head_leaves_the_configuration_as_that_of_any_reward_model(tmp_path):
    config = PretrainedConfig(reward_heads={"rule": "mean"})
    ONE_HEAD.describe_in(config)
    config.save_pretrained(tmp_path)
    assert "reward_heads" not in json.loads((tmp_path / "config.json").read_text())
    assert heads_in(vars(config), "here") is None


LABELS = {"0": "helpful", "1": "safe"}


@pytest.mark.parametrize(
    ("field", "labels", "problem"),
    [
        ("mean", LABELS, "'mean' is no object"),
        ({}, LABELS, "unknown rule None; known are mean, minimum, penalised, weighted"),
        ({"rule": ["mean"]}, LABELS, "unknown rule"),
        ({"rule": "penalised", "penalty": -1}, LABELS, "the penalty -1 is not a number of at least 0"),
        ({"rule": "penalised", "penalty": True}, LABELS, "the penalty True"),
        ({"rule": "penalised", "penalty": float("inf")}, LABELS, "the penalty inf"),
        ({"rule": "weighted"}, LABELS, "the weights None are not a number for each of helpful, safe"),
        ({"rule": "weighted", "weights": {"helpful": 1}}, LABELS, "are not a number for each"),
        ({"rule": "weighted", "weights": {"helpful": 1, "safe": "2"}}, LABELS, "are not a number for each"),
        ({"rule": "mean"}, {"0": "a", "1": "a"}, "do not name a head each"),
        ({"rule": "mean"}, {"0": "a", "1": 3}, "do not name a head each"),
        ({"rule": "mean"}, {"0": "a", "1": "b\nc"}, "do not name a head each"),
        ({"rule": "penalised", "penalty": 10**400}, LABELS, "the penalty 1000"),
        ({"rule": "penalised", "penalty": 1e39}, LABELS, "the penalty 1e+39"),
        ({"rule": "weighted", "weights": {"helpful": 1, "safe": 1e39}}, LABELS, "are not a number for each"),
        ({"rule": "mean"}, {"0": "a", "x": "b"}, "invalid literal"),
        ({"rule": "mean"}, ["a"], "dictionary"),
        ({"rule": "mean"}, None, "do not name a head each"),
    ],
)
def test_a_field_of_another_shape_is_an_input_error_that_names_it(field, labels, problem):
    with pytest.raises(InputError, match="here: field 'reward_heads': ") as error:
        heads_in({"reward_heads": field, "id2label": labels}, "here")
    assert problem in str(error.value)


# --- Saved and loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Qwen3", "GPT2", "Bert", "ModernBert"])
@pytest.mark.parametrize("heads", EVERY_RULE, ids=rule_of)
def test_stock_classes_give_a_logit_a_head_and_combining_them_by_hand_gives_our_score(
    folders,
    architecture,
    heads,
    tmp_path,
):
    model = loaded(folders(architecture), heads)
    of_heads, score = scores(model, per_head=True), scores(model)
    assert of_heads.shape == (5, len(heads.names))
    assert score.dtype == of_heads.dtype == torch.float32
    assert of_heads.std(0).min() > 1e-2
    assert of_heads.std(1).min() > 1e-3  # heads start from different weights
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {str(place): name for place, name in enumerate(heads.names)}
    logits = stock_logits(tmp_path)
    torch.testing.assert_close(logits, of_heads, atol=1e-5, rtol=1e-5)
    by_hand = logits @ torch.tensor([1.0, -0.5]) if heads is OBJECTIVES else combined(logits, heads.rule, heads.penalty)
    torch.testing.assert_close(by_hand, score, atol=1e-5, rtol=1e-5)
    again = RewardModel.from_pretrained(str(tmp_path)).eval()
    assert again.heads == heads
    assert torch.equal(scores(again), score)


def test_scores_of_all_heads_are_the_same_packed_and_row_by_row(tiny_model):
    model = loaded(str(tiny_model), ensemble_heads(3, "penalised"))
    alone = scores(model, per_head=True)
    model.share_prefixes("on")
    assert model.facts()["prefix_sharing"]
    torch.testing.assert_close(scores(model, per_head=True), alone, atol=1e-4, rtol=0)


def test_heads_are_computed_in_float32_when_the_body_is_in_bfloat16(tiny_model):
    model = loaded(str(tiny_model), OBJECTIVES).to(torch.bfloat16)
    of_heads = scores(model, per_head=True)
    assert of_heads.dtype == scores(model).dtype == torch.float32
    assert not torch.equal(of_heads, of_heads.to(torch.bfloat16).float())


def test_pooled_heads_keep_their_names_and_rule(tiny_model, tmp_path):
    model = loaded(str(tiny_model), OBJECTIVES, pooling="mean")
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(str(tmp_path)).eval()
    assert (again.pooling, again.heads) == ("mean", OBJECTIVES)
    assert torch.equal(scores(again), scores(model))


def test_one_head_is_saved_without_a_word_about_heads_and_its_facts_are_as_ever(tiny_model, tmp_path):
    model = RewardModel.from_pretrained(str(tiny_model), new_head=True)
    model.save_pretrained(tmp_path)
    assert "reward_heads" not in (tmp_path / "config.json").read_text()
    assert "heads" not in model.facts()
    assert scores(model, per_head=True).shape == (5, 1)


def test_a_classifier_of_others_with_several_labels_is_still_refused(tiny_model, tmp_path):
    loaded(str(tiny_model), OBJECTIVES).save_pretrained(tmp_path / "ours")
    foreign = broken_copy(tmp_path / "ours", tmp_path / "foreign", reward_heads=None)
    with pytest.raises(InputError, match="has 2 labels; a reward model has exactly one"):
        RewardModel.from_pretrained(foreign)


def test_other_heads_than_a_model_has_are_refused_with_the_flag_for_its_own(tiny_model, tiny_reward_model, tmp_path):
    loaded(str(tiny_model), OBJECTIVES).save_pretrained(tmp_path / "objectives")
    loaded(str(tiny_model), ensemble_heads(3)).save_pretrained(tmp_path / "three")
    wanted = ensemble_heads(2)
    for folder, flag in (
        (tmp_path / "objectives", "--objectives helpful safe"),
        (tmp_path / "three", "--heads 3"),
        (tiny_reward_model, "--heads 1"),
    ):
        with pytest.raises(InputError, match=f"its own are trained with {flag}$"):
            RewardModel.from_pretrained(str(folder), new_head=True, heads=wanted)


def test_a_model_may_be_given_another_rule_for_its_heads(tiny_model, tmp_path):
    model = loaded(str(tiny_model), ensemble_heads(3))
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(str(tmp_path), heads=ensemble_heads(3, "minimum")).eval()
    assert torch.equal(scores(again), scores(model, per_head=True).amin(1))


# --- Adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Qwen3", "Bert"])
@pytest.mark.parametrize("heads", [OBJECTIVES, ensemble_heads(3, "minimum")], ids=rule_of)
def test_an_adapter_with_heads_scores_alike_when_saved_reloaded_and_merged(
    folders,
    architecture,
    heads,
    tmp_path,
):
    folder = folders(architecture)
    torch.manual_seed(3)
    model = RewardModel.from_pretrained(folder, new_head=True, heads=heads).eval()
    model.add_adapter(LoraSettings(rank=4), base=folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05 if "lora_B" in name else 0.5)
    model.save_pretrained(tmp_path / "adapter")
    again = RewardModel.from_pretrained(str(tmp_path / "adapter")).eval()
    assert again.heads == heads
    torch.testing.assert_close(scores(again, per_head=True), scores(model, per_head=True), atol=1e-5, rtol=1e-5)
    logits = stock_logits(tmp_path / "adapter", num_labels=len(heads.names))
    torch.testing.assert_close(logits, scores(model, per_head=True), atol=1e-5, rtol=1e-5)
    export(str(tmp_path / "adapter"), tmp_path / "merged")
    torch.testing.assert_close(stock_logits(tmp_path / "merged"), scores(model, per_head=True), atol=1e-5, rtol=1e-5)
    merged = RewardModel.from_pretrained(str(tmp_path / "merged")).eval()
    torch.testing.assert_close(scores(merged), scores(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="has other heads than those asked for"):
        RewardModel.from_pretrained(str(tmp_path / "adapter"), heads=ONE_HEAD)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1]", "is no JSON object"),
        ("{", "is no JSON object"),
        ('{"reward_heads": 3}', "field 'reward_heads': 3 is no"),
    ],
)
def test_a_broken_file_of_an_adapters_heads_is_named(tiny_model, tmp_path, content, problem):
    model = RewardModel.from_pretrained(str(tiny_model), new_head=True, heads=OBJECTIVES)
    model.add_adapter(LoraSettings(rank=2), base=str(tiny_model))
    model.save_pretrained(tmp_path)
    (tmp_path / "reward_heads.json").write_text(content)
    with pytest.raises(InputError, match=r"reward_heads\.json: ") as error:
        RewardModel.from_pretrained(str(tmp_path))
    assert problem in str(error.value)


# --- Made one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Qwen3", "Bert"])
@pytest.mark.parametrize("heads", [OBJECTIVES, ensemble_heads(3)], ids=rule_of)
def test_heads_that_are_added_up_can_be_exported_as_one_stock_head_of_the_same_scores(
    folders, architecture, heads, tmp_path
):
    model = loaded(folders(architecture), heads)
    model.save_pretrained(tmp_path / "several")
    export(str(tmp_path / "several"), tmp_path / "one", merge_heads=True)
    torch.testing.assert_close(stock_logits(tmp_path / "one")[:, 0], scores(model), atol=1e-5, rtol=1e-5)
    one = RewardModel.from_pretrained(str(tmp_path / "one")).eval()
    assert one.heads == ONE_HEAD
    torch.testing.assert_close(scores(one), scores(model), atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert "reward_heads" not in config
    assert "helpful" not in str(config)


@pytest.mark.parametrize("rule", ["minimum", "penalised"])
def test_a_rule_that_is_no_sum_cannot_be_made_one_head_and_nothing_is_written(tiny_model, tmp_path, rule):
    loaded(str(tiny_model), ensemble_heads(3, rule)).save_pretrained(tmp_path / "several")
    with pytest.raises(InputError, match=f"--merge_heads: the rule {rule} is no sum over heads"):
        export(str(tmp_path / "several"), tmp_path / "one", merge_heads=True)
    assert not (tmp_path / "one").exists()


def test_heads_are_merged_only_where_there_are_several_and_the_model_is_whole(tiny_reward_model, tmp_path):
    with pytest.raises(InputError, match=r"--merge_heads: .* has one head"):
        export(str(tiny_reward_model), tmp_path / "one", merge_heads=True)
    with pytest.raises(InputError, match="--merge_heads: needs a whole model"):
        export(str(tiny_reward_model), tmp_path / "one", merge=False, merge_heads=True)
    assert not (tmp_path / "one").exists()
