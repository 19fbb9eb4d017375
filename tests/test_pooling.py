"""Pooling other than the last token: known values, packed or padded, and folders that no stock class misreads."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer

from codes.common.conversation import pad_batch
from codes.common.prefix_sharing import Spans
from codes.common.records import InputError
from codes.train.export import export
from codes.train.pooling import pool, pool_packed
from codes.train.reward_model import RewardModel
from codes.train.train_reward_model import train
from tests.training_runs import flags, write_groups

HIDDEN = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
GROUPS = [[[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 4, 3]], [[11, 12], [11, 13]]]


@pytest.mark.parametrize(("pooling", "first"), [("mean", 3.0), ("weighted", (1 + 2 * 2 + 3 * 6) / 6)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooled_states_have_known_values_on_either_padding_side(pooling, first, side):
    padding = torch.full((2, 2), 99.0)
    parts = (HIDDEN, padding) if side == "right" else (padding, HIDDEN)
    mask = torch.tensor([[1, 1, 1, 0, 0]]) if side == "right" else torch.tensor([[0, 0, 1, 1, 1]])
    pooled = pool(torch.cat(parts).unsqueeze(0), mask, pooling)
    torch.testing.assert_close(pooled, torch.tensor([[first, 10 * first]]))


@pytest.mark.parametrize("pooling", ["mean", "weighted"])
def test_packed_states_are_pooled_like_those_of_the_conversations_alone(pooling):
    hidden = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    # Prompt 0-1, answers 2, 3-4 and 5; then a conversation of its own, 6-8.
    groups, positions = (Spans(0, 2, (3, 5, 6)), Spans(6, 6, (9,))), torch.tensor([[0, 1, 2, 2, 3, 2, 0, 1, 2]])
    rows = [[0, 1, 2], [0, 1, 3, 4], [0, 1, 5], [6, 7, 8]]
    alone = [pool(hidden[:, row], torch.ones(1, len(row), dtype=torch.long), pooling) for row in rows]
    torch.testing.assert_close(pool_packed(hidden, positions, groups, pooling), torch.cat(alone))


@pytest.mark.parametrize("pooling", ["mean", "weighted"])
def test_a_pooled_model_is_saved_exported_and_trained_on_as_such_and_stock_classes_refuse_it(
    tiny_model, tmp_path, pooling, monkeypatch
):
    data = write_groups(tmp_path / "train.jsonl", 8)
    train([*flags(tiny_model, data, tmp_path / "out", save_strategy="no"), "--pooling", pooling])
    model = RewardModel.from_pretrained(str(tmp_path / "out")).eval()
    assert model.facts()["pooling"] == pooling
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == model.tokenizer.chat_template
    with pytest.raises(ValueError, match="PooledConfig"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    # And where our code was never imported.
    with monkeypatch.context() as elsewhere:
        elsewhere.delitem(CONFIG_MAPPING._extra_content, "contrastrm_pooled")
        with pytest.raises(ValueError, match="contrastrm_pooled"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        alone = torch.cat([model(**pad_batch([row], model.pad_id)) for group in GROUPS for row in group])
        torch.testing.assert_close(model(**model.layout(GROUPS)), alone, atol=1e-5, rtol=0)
        model.share_prefixes("on")
        torch.testing.assert_close(model(**model.layout(GROUPS)), alone, atol=1e-5, rtol=0)
        export(str(tmp_path / "out"), tmp_path / "exported")
        again = RewardModel.from_pretrained(str(tmp_path / "exported")).eval()
        torch.testing.assert_close(again(**again.layout(GROUPS)), alone, atol=1e-6, rtol=0)
    assert "refuse this folder" in (tmp_path / "out/README.md").read_text()
    train([*flags(tmp_path / "out", data, tmp_path / "more", save_strategy="no", lora_rank=2)])
    assert RewardModel.from_pretrained(str(tmp_path / "more")).facts()["pooling"] == pooling


def test_a_pooling_that_the_folder_names_wrongly_is_an_input_error(tiny_reward_model, tmp_path):
    model = RewardModel.from_pretrained(str(tiny_reward_model), pooling="mean")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for field, value in (("pooling", "max"), ("body_model_type", "../x"), ("body_model_type", None), ("pooling", [])):
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(InputError, match="unknown pooling"):
            RewardModel.from_pretrained(str(tmp_path))
