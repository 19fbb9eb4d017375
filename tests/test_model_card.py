"""The model card: front matter that the Hub reads, and what a run was, without this machine's paths."""

import json

import pytest
from huggingface_hub import ModelCard

from codes.train.export import export
from codes.train.model_card import base_license, model_card, write_model_card
from codes.train.train_reward_model import train
from tests.training_runs import flags, write_groups

LICENSE = {"license": "apache-2.0"}


def info(**configuration) -> dict:
    return {
        "configuration": {"model_name_or_path": "/home/someone/models/base", "training_mode": "contrast"}
        | configuration,
        "model": {"architecture": "Qwen3ForSequenceClassification", "pooling": "last"},
        "train_data": {
            "files": [{"path": "/home/someone/secret/train.jsonl", "sha256": "a" * 64}],
            "counts": {"groups": 1234, "rejected_answers": 4321, "left_out_by_verification": {"FAILED": 7}},
        },
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("run")
    data = write_groups(folder / "train.jsonl", 16)
    train([*flags(tiny_model, data, folder / "out", eval_data_path=data, lora_rank=2, save_steps=1)])
    return folder / "out"


def test_the_card_tells_data_settings_metrics_and_licence_and_its_front_matter_is_read_back():
    logs = [
        {"step": 5, "loss": 0.7},
        {"step": 5, "eval_loss": 0.61234, "eval_accuracy": 0.75},
        {"step": 9, "loss": 0.2},
    ]
    text = model_card(info(model_name_or_path="org/base", revision="v1"), logs, LICENSE, is_adapter=False)
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "org/base", "transformers")
    assert data.pipeline_tag == "text-classification"
    for told in (
        "| `train.jsonl` | `" + "a" * 64,
        "1,234",
        "4,321",
        "`FAILED` | 7",
        '| training_mode | `"contrast"` |',
    ):
        assert told in text
    assert "at step 5:" in text
    assert "| accuracy | 0.75 |" in text
    assert "| loss | 0.6123 |" in text


def test_no_folder_of_this_machine_is_told():
    text = model_card(info(), [], LICENSE, is_adapter=False)
    assert "/home" not in text
    assert "someone" not in text
    assert "`base`" in text
    assert ModelCard(text).data.base_model is None


def test_markup_in_names_stays_text():
    hostile = info(model_name_or_path="/tmp/a` <script>|x", training_mode="x|y`\n# Heading")
    text = model_card(hostile, [], LICENSE, is_adapter=False)
    assert "`a <script> x`" in text
    assert "\n# Heading" not in text


def test_the_licence_of_the_base_is_what_its_card_says_and_unknown_otherwise(tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    assert base_license(str(tmp_path)) == {"license": "unknown"}
    card.write_text("---\nlicense: other\nlicense_name: llama-3\nlicense_link: https://example.org/l\n---\n# Base\n")
    assert base_license(str(tmp_path))["license_name"] == "llama-3"
    for nothing in ("---\nlicense: [1, 2]\n---\n", "---\nlicense: 'a`b'\n---\n", "---\n: : :\n---\n", "\x00"):
        card.write_text(nothing)
        assert base_license(str(tmp_path)) == {"license": "unknown"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_license("no-such-org/no-such-model") == {"license": "unknown"}


def test_training_and_export_write_cards_that_say_how_to_load_what_they_wrote(trained, tmp_path):
    adapter = ModelCard.load(trained / "README.md")
    assert adapter.data.library_name == "peft"
    assert "LoRA adapter" in adapter.text
    assert "On the evaluation data, at step 2:" in adapter.text
    assert "| lora rank | `2` |" in adapter.text
    export(str(trained / "checkpoint-1"), tmp_path / "merged")
    merged = ModelCard.load(tmp_path / "merged/README.md")
    assert merged.data.library_name == "transformers"
    assert "LoRA adapter" not in merged.text
    assert "at step 1:" in merged.text
    assert "at step 2:" not in merged.text


def test_a_card_of_someone_else_is_left_as_it_is(trained):
    ours = (trained / "README.md").read_text()
    (trained / "README.md").write_text("# My notes\n")
    write_model_card(trained)
    assert (trained / "README.md").read_text() == "# My notes\n"
    (trained / "README.md").write_text(ours.replace("Reward model", "Changed"))
    write_model_card(trained)
    assert (trained / "README.md").read_text() == ours


def test_a_pooled_model_says_that_stock_classes_refuse_it():
    pooled = info() | {"model": {"pooling": "weighted"}}
    text = model_card(json.loads(json.dumps(pooled)), [], LICENSE, is_adapter=False)
    assert "position-weighted mean" in text
    assert "AutoModelForSequenceClassification" not in text
