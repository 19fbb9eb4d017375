"""The reward model: scores that depend on nothing but the conversation, and folders that stock classes read alike."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BloomConfig, BloomForSequenceClassification

from codes.common.conversation import encode_group, load_tokenizer, pad_batch
from codes.common.records import InputError
from codes.train.adapters import LoraSettings
from codes.train.export import export
from codes.train.reward_model import PAD_TOKEN, RewardModel, last_attended, padded_on_the_right
from tests.conftest import DECODERS, ENCODERS

QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "I think the answer is probably Paris, because the Seine runs through it.", "42", "def add(a, b):"]


def load_scaled(folder: str) -> RewardModel:
    """A reward model whose fresh head and body are scaled up, so that wrong scores cannot hide in rounding."""
    torch.manual_seed(2)
    model = RewardModel.from_pretrained(folder, new_head=True)
    model.ensure_own_pad_token()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if len(parameter) > 1 else 40)
    return model.eval()


def rows_of(model: RewardModel, max_length: int = 200) -> list[list[int]]:
    return [answer.ids for answer in encode_group(model.tokenizer, QUESTION, ANSWERS, max_length)]


def scores(model: RewardModel, rows: list[list[int]], left: bool = False) -> torch.Tensor:
    batch = pad_batch(rows, model.pad_id)
    if left:
        width = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in rows])
        batch["attention_mask"] = batch["attention_mask"].flip(-1)
    with torch.no_grad():
        return model(**batch)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_a_score_depends_neither_on_the_batch_size_nor_on_the_padding_side(folders, architecture):
    model = load_scaled(folders(architecture))
    rows = rows_of(model)
    alone = torch.cat([scores(model, [row]) for row in rows])
    assert alone.dtype == torch.float32
    assert alone.std() > 1e-2
    for size in (2, 3, 4):
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        for left in (False, True):
            together = torch.cat([scores(model, chunk, left) for chunk in chunks])
            assert torch.allclose(together, alone, atol=1e-4), (size, left)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_the_saved_folder_gives_the_stock_class_the_same_scores_and_no_missing_keys(folders, architecture, tmp_path):
    model = load_scaled(folders(architecture))
    model.save_pretrained(tmp_path / "saved")
    stock, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert stock.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.chat_template == model.tokenizer.chat_template
    messages = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    texts = tokenizer.apply_chat_template(messages, tokenize=False)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    assert [row[mask.bool()].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask)] == rows_of(model)
    with torch.no_grad():
        served = stock.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
    assert torch.allclose(served, scores(model, rows_of(model)), atol=1e-5)
    again = RewardModel.from_pretrained(str(tmp_path / "saved")).eval()
    assert torch.equal(scores(again, rows_of(again)), scores(model, rows_of(model)))


def test_a_decoder_whose_pad_is_eos_is_read_at_the_answers_last_token(folders):
    """A model of others, as evaluation meets it: rows end in the token that also fills them up."""
    model = RewardModel.from_pretrained(folders("Llama", pad_token="<|im_end|>"), new_head=True).eval()
    assert model.facts()["pad_token_is_eos"] is True
    rows = [[5, 6, 7, model.pad_id], [8, model.pad_id]]
    alone = torch.cat([scores(model, [row]) for row in rows])
    assert torch.allclose(scores(model, rows), alone, atol=1e-5)
    assert torch.allclose(scores(model, rows, left=True), alone, atol=1e-5)
    hidden = model.model.model(torch.tensor([rows[0]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    assert torch.allclose(model.model.score(hidden.last_hidden_state[0, -1]), alone[0], atol=1e-5)


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_a_model_without_a_pad_token_of_its_own_gets_one(folders, pad):
    model = RewardModel.from_pretrained(folders("Qwen3", pad_token=pad), new_head=True)
    before = model.model.get_input_embeddings().weight.clone()
    model.ensure_own_pad_token()
    assert model.tokenizer.pad_token == PAD_TOKEN
    assert model.pad_id == model.config.pad_token_id == len(before)
    assert model.pad_id != model.tokenizer.eos_token_id
    assert torch.equal(model.model.get_input_embeddings().weight[: len(before)], before)
    assert model.facts()["pad_token_is_eos"] is False


def test_a_pad_token_of_its_own_is_kept(tiny_model):
    model = RewardModel.from_pretrained(str(tiny_model), new_head=True)
    pad_id = model.tokenizer.pad_token_id
    model.ensure_own_pad_token()
    assert model.pad_id == pad_id


@pytest.mark.parametrize("architecture", ["Qwen3", "Bert"])
def test_the_head_is_computed_in_float32_when_the_body_is_in_bfloat16(folders, architecture):
    model = load_scaled(folders(architecture)).to(torch.bfloat16)
    rows = rows_of(model)
    score = scores(model, rows)
    assert score.dtype == torch.float32
    assert not torch.equal(score, score.to(torch.bfloat16).float())
    with torch.autocast("cpu", torch.bfloat16):
        score = scores(model.float(), rows)
    assert score.dtype == torch.float32
    assert not torch.equal(score, score.to(torch.bfloat16).float())


@pytest.mark.parametrize("architecture", ["Bert", "ModernBert", "GPT2"])
def test_without_dropout_a_model_in_training_scores_as_in_evaluation(folders, architecture, tmp_path):
    path = tmp_path / "with dropout"
    shutil.copytree(folders(architecture), path)
    config = json.loads((path / "config.json").read_text())
    rates = {name: 0.5 for name in config if "drop" in name and isinstance(config[name], float)}
    (path / "config.json").write_text(json.dumps(config | rates))
    model = load_scaled(str(path))
    rows = rows_of(model)
    expected = scores(model, rows)
    model.train()
    assert not torch.allclose(scores(model, rows), expected, atol=1e-3)
    model.disable_dropout()
    torch.testing.assert_close(scores(model, rows), expected)


def test_dropout_that_layers_compute_by_a_rate_of_their_own_is_switched_off(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "n_layer": 2, "n_head": 4, "num_labels": 1}
    torch.manual_seed(1)
    bloom = BloomForSequenceClassification(BloomConfig(**sizes, hidden_dropout=0.5, initializer_range=0.5))
    model = RewardModel(bloom, tokenizer).train()
    row = rows_of(model)[:1]
    assert not torch.allclose(scores(model, row), scores(model, row), atol=1e-3)
    model.disable_dropout()
    torch.testing.assert_close(scores(model, row), scores(model.eval(), row))
    assert bloom.config.hidden_dropout == 0.5


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("mode", ["on", "auto"])
def test_shared_prefixes_do_not_change_scores_or_the_saved_folder(folders, architecture, mode, tmp_path):
    model = load_scaled(folders(architecture))
    groups = [rows_of(model), [encode_group(model.tokenizer, "Hello?", ["Yes."], 200)[0].ids]]
    with torch.no_grad():
        alone = model(**model.layout(groups))
        model.share_prefixes(mode)
        assert model.facts()["prefix_sharing"]
        inputs = model.layout(groups)
        assert inputs["input_ids"].shape == (1, inputs["position_ids"].shape[1])
        torch.testing.assert_close(model(**inputs), alone, atol=1e-4, rtol=0)
        model.save_pretrained(tmp_path)
        again = RewardModel.from_pretrained(str(tmp_path)).eval()
        assert again.facts()["attention_implementation"] == model.facts()["attention_implementation"]
        torch.testing.assert_close(again(**again.layout(groups)), alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_asked_to_share_prefixes_scores_independent_rows_and_says_so_once(folders, architecture, caplog):
    model = load_scaled(folders(architecture))
    groups = [rows_of(model)]
    with torch.no_grad():
        alone = model(**model.layout(groups))
        model.share_prefixes("on")
        assert torch.equal(model(**model.layout(groups)), alone)
    assert [record.message for record in caplog.records if "prefixes are not shared" in record.message] == [
        f"prefixes are not shared in {architecture}ForSequenceClassification: it is no decoder read at its last token"
    ]


def test_a_decoder_that_misreads_the_packed_layout_is_found_out_by_trying(folders, monkeypatch, caplog):
    model = load_scaled(folders("Llama"))
    body = type(model.model.base_model)
    forward = body.forward

    def without_positions(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(body, "forward", without_positions)
    model.share_prefixes("on")
    assert "packed scores differ" in caplog.text
    assert not model.facts()["prefix_sharing"]


def test_a_sharing_error_that_is_no_number_is_an_obstacle(folders, caplog):
    model = RewardModel.from_pretrained(folders("Llama"), new_head=True)
    with torch.no_grad():
        model.model.get_input_embeddings().weight.fill_(float("nan"))
    model.share_prefixes("on")
    assert "packed scores differ" in caplog.text
    assert not model.facts()["prefix_sharing"]


def adapted(folder: str) -> RewardModel:
    """A scaled model with an adapter that is not the nil one it starts as."""
    model = load_scaled(folder)
    base = Path(folder).parent / f"{Path(folder).name}-scaled"
    if not base.exists():
        model.save_pretrained(base)
    model = RewardModel.from_pretrained(str(base)).eval()
    model.add_adapter(LoraSettings(rank=4), base=str(base))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            elif parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.5)
    return model


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_a_model_with_an_adapter_scores_alike_when_saved_reloaded_and_merged(folders, architecture, tmp_path):
    model = adapted(folders(architecture))
    rows = rows_of(model)
    expected = scores(model, rows)
    assert not torch.allclose(expected, scores(load_scaled(folders(architecture)).eval(), rows), atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(scores(model, rows), expected, atol=0, rtol=0)
    loaded = RewardModel.from_pretrained(str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(scores(loaded, rows), expected, atol=1e-5, rtol=1e-5)
    export(str(tmp_path / "adapter"), tmp_path / "merged")
    stock, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        alone = torch.cat([stock.eval()(torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "changes"), [("Bert", {}), ("Qwen3", {"pad_token": None})])
def test_an_adapter_of_a_language_model_carries_all_that_starts_fresh(folders, architecture, changes, tmp_path):
    folder = folders(architecture, **changes)
    model = RewardModel.from_pretrained(folder, new_head=True).eval()
    model.ensure_own_pad_token()
    assert any("pooler" in layer for layer in model.fresh_layers) == (architecture == "Bert")
    model.add_adapter(LoraSettings(rank=2), base=folder)
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(9)  # another draw for whatever would start fresh again
    again = RewardModel.from_pretrained(str(tmp_path / "adapter")).eval()
    rows = rows_of(model)
    torch.testing.assert_close(scores(again, rows), scores(model, rows), atol=1e-6, rtol=1e-5)
    assert again.pad_id == model.pad_id != again.tokenizer.eos_token_id
    export(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = RewardModel.from_pretrained(str(tmp_path / "merged")).eval()
    torch.testing.assert_close(scores(merged, rows), scores(model, rows), atol=1e-6, rtol=1e-5)


def test_an_encoder_whose_stock_class_can_pool_the_mean_does_and_others_are_refused(folders, tmp_path):
    modern = RewardModel.from_pretrained(folders("ModernBert"), new_head=True, pooling="mean").eval()
    modern.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert stock.config.classifier_pooling == "mean"
    row = rows_of(modern)[0]
    with torch.no_grad():
        torch.testing.assert_close(stock(torch.tensor([row])).logits[0], scores(modern, [row]), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match=r"--pooling mean: .* is an encoder"):
        RewardModel.from_pretrained(folders("Bert"), new_head=True, pooling="mean")


def test_last_attended_and_right_padding_follow_the_mask_on_either_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert last_attended(mask).tolist() == [1, 3, 3]
    ids, moved = padded_on_the_right(torch.arange(12).reshape(3, 4), mask)
    assert ids[:, :2].tolist() == [[0, 1], [6, 7], [8, 9]]
    assert moved.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_language_model_is_refused_where_a_reward_model_is_needed(tiny_model):
    with pytest.raises(InputError, match="has no reward head"):
        RewardModel.from_pretrained(str(tiny_model))


def broken_copy(source, target, **config_changes):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | config_changes))
    return str(target)


def test_folders_that_are_no_usable_reward_model_are_input_errors(tiny_model, tiny_reward_model, tmp_path):
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    with pytest.raises(InputError, match="has 2 labels"):
        RewardModel.from_pretrained(broken_copy(tiny_reward_model, tmp_path / "two", **labels))
    for kept in ("Qwen3ForTokenClassification", "Qwen3ForRewardModel"):
        other = broken_copy(tiny_model, tmp_path / kept, architectures=[kept])
        with pytest.raises(InputError, match=f"{kept} has a head that would be lost"):
            RewardModel.from_pretrained(other, new_head=True)
    headless = broken_copy(
        tiny_model,
        tmp_path / "headless",
        architectures=["Qwen3ForSequenceClassification"],
        id2label={"0": "reward"},
        label2id={"reward": 0},
    )
    with pytest.raises(InputError, match=r"weights are missing, score\.weight"):
        RewardModel.from_pretrained(headless, new_head=True)
    bodiless = broken_copy(tiny_model, tmp_path / "bodiless", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(InputError, match="weights are missing"):
        RewardModel.from_pretrained(bodiless, new_head=True)
    torn = tmp_path / "torn"
    shutil.copytree(tiny_reward_model, torn)
    (torn / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="cannot be loaded"):
        RewardModel.from_pretrained(str(torn))
    (torn / "config.json").write_text("[]")
    with pytest.raises(InputError, match="torn"):
        RewardModel.from_pretrained(str(torn))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tokenizer"):
        RewardModel.from_pretrained(str(tmp_path / "empty"))


@pytest.mark.parametrize("max_length", [1, 2, 3, 8])
def test_very_short_conversations_have_finite_scores(tiny_reward_model, max_length):
    model = RewardModel.from_pretrained(str(tiny_reward_model)).eval()
    rows = rows_of(model, max_length)
    assert all(len(row) == max_length for row in rows)
    assert torch.isfinite(scores(model, rows)).all()


def test_a_tokenizer_of_the_saved_model_reloads_to_the_same_template(tiny_reward_model):
    first = load_tokenizer(str(tiny_reward_model))
    assert first.chat_template == AutoTokenizer.from_pretrained(tiny_reward_model).chat_template
