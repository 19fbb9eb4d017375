"""LoRA adapters: trained beside a frozen model, saved with the head, and alike however they are loaded or merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from codes.common.conversation import encode_group
from codes.common.records import InputError
from codes.evaluate.model_scorer import ModelScorer, weights_hash
from codes.evaluate.scorers import Conversation
from codes.train.adapters import LoraSettings, adapter_config
from codes.train.export import export
from codes.train.reward_model import RewardModel
from codes.train.train_reward_model import train
from tests.conftest import ROOT
from tests.test_reward_model import scores
from tests.training_runs import column, flags, leave_as_if_killed, run_on_two_ranks, write_groups


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "train.jsonl", 21)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, data) -> Path:
    """A run of six steps that trained an adapter, with a checkpoint of every step."""
    output = tmp_path_factory.mktemp("runs") / "lora"
    train([*flags(tiny_model, data, output, num_train_epochs=2, save_steps=1, save_total_limit=9, lora_rank=4)])
    return output


def test_the_adapter_that_training_saves_loads_with_peft_and_transformers_themselves(trained):
    model = RewardModel.from_pretrained(str(trained)).eval()
    row = encode_group(model.tokenizer, "What is 3 and 4?", ["The answer is 3."], 64)[0].ids
    expected = scores(model, [row])
    assert sorted(path.name for path in trained.glob("*.safetensors")) == ["adapter_model.safetensors"]
    for auto_class in (AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification):
        stock = auto_class.from_pretrained(trained, num_labels=1).eval()
        stock.config.pad_token_id = model.pad_id
        with torch.no_grad():
            torch.testing.assert_close(stock(torch.tensor([row])).logits[0], expected, atol=1e-5, rtol=0)


def test_only_the_adapter_and_the_head_were_trained(trained):
    names = load_file(trained / "adapter_model.safetensors")
    assert all("lora_" in name or ".score." in name for name in names)
    assert any(".score." in name for name in names)
    info = json.loads((trained / "run_info.json").read_text())
    assert info["configuration"]["lora"]["rank"] == 4
    assert all(tensor.any() for name, tensor in names.items() if "lora_B" in name)  # they start at nought


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_resumes_to_bitwise_the_same_adapter(trained, tiny_model, data, tmp_path, step):
    output = tmp_path / "out"
    leave_as_if_killed(trained, output, step)
    settings = flags(tiny_model, data, output, num_train_epochs=2, save_steps=1, save_total_limit=9, lora_rank=4)
    train([*settings, "--resume_from_checkpoint", "last"])
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (trained, output))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert column(output, "loss") == column(trained, "loss")


@pytest.mark.parametrize("more", [["--prefix_sharing", "on"], ["--prefix_sharing", "off", "--gradient_checkpointing"]])
def test_prefix_sharing_and_activation_checkpointing_give_an_adapter_the_same_steps(
    trained, tiny_model, data, tmp_path, more
):
    train([*flags(tiny_model, data, tmp_path / "out", max_steps=2, lora_rank=4, save_strategy="no"), *more])
    torch.testing.assert_close(
        column(tmp_path / "out", "grad_norm")[:1], column(trained, "grad_norm")[:1], rtol=1e-4, atol=0
    )


def test_training_on_from_an_adapter_begins_at_its_merged_weights(trained, data, tmp_path):
    train(flags(trained, data, tmp_path / "out", max_steps=1, learning_rate=0))
    merged = RewardModel.from_pretrained(str(trained)).model.state_dict()
    assert all(torch.equal(t, merged[name]) for name, t in load_file(tmp_path / "out/model.safetensors").items())


def test_an_adapter_on_top_of_an_adapter_is_merged_into_both_and_a_circle_is_refused(trained, tmp_path):
    lower = RewardModel.from_pretrained(str(trained)).eval()
    lower.add_adapter(LoraSettings(rank=2), base=str(trained))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in lower.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    lower.save_pretrained(tmp_path / "upper")
    again, row = RewardModel.from_pretrained(str(tmp_path / "upper")).eval(), [[5, 6, 7]]
    torch.testing.assert_close(scores(again, row), scores(lower, row), atol=1e-5, rtol=1e-5)
    assert abs(scores(again, row) - scores(RewardModel.from_pretrained(str(trained)).eval(), row)) > 1e-3
    path = tmp_path / "upper/adapter_config.json"
    circle = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "upper")}
    path.write_text(json.dumps(circle))
    with pytest.raises(InputError, match="leads back to the adapter itself"):
        RewardModel.from_pretrained(str(tmp_path / "upper"))


def test_a_checkpoint_is_exported_without_its_optimizer_state_as_stock_folder_or_as_adapter(trained, tmp_path):
    export(str(trained / "checkpoint-2"), tmp_path / "bf16", dtype="bf16")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bf16")
    assert stock.dtype == torch.bfloat16
    export(str(trained / "checkpoint-2"), tmp_path / "adapter", merge=False)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any("optimizer" in name or "state" in name for name in names)
    model = RewardModel.from_pretrained(str(tmp_path / "adapter")).eval()
    row = [[5, 6, 7]]
    assert torch.equal(
        scores(model, row), scores(RewardModel.from_pretrained(str(trained / "checkpoint-2")).eval(), row)
    )


def test_adapters_that_do_not_fit_are_input_errors(trained, tmp_path):
    def changed(**fields) -> str:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | fields))
        return str(folder)

    with pytest.raises(InputError, match="does not fit the base model"):
        RewardModel.from_pretrained(changed(r=8))
    with pytest.raises(InputError, match="names no base model"):
        RewardModel.from_pretrained(changed(base_model_name_or_path=None))
    with pytest.raises(InputError, match=r"its base model .*absent"):
        RewardModel.from_pretrained(changed(base_model_name_or_path=str(tmp_path / "absent")))
    with pytest.raises(InputError, match="not LoRA for SEQ_CLS"):
        RewardModel.from_pretrained(changed(task_type="CAUSAL_LM"))
    torn = Path(changed(inference_mode=True))
    (torn / "adapter_model.safetensors").write_bytes(b"\x00" * 9)
    with pytest.raises(InputError, match="cannot be loaded as an adapter"):
        RewardModel.from_pretrained(str(torn))
    headless = Path(changed(lora_dropout=0.0))
    tensors = load_file(trained / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".score." not in name}
    save_file(kept, headless / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"score\.weight among 1 tensors"):
        RewardModel.from_pretrained(str(headless))


def test_an_adapter_is_evaluated_as_its_merged_export_and_named_by_its_base_weights_too(trained, tiny_model, tmp_path):
    export(str(trained), tmp_path / "merged")
    conversations = [Conversation("What is 3 and 4?", f"The answer is {word}.", word) for word in ("3", "surely")]
    scored = []
    for folder in (trained, tmp_path / "merged"):
        scorer = ModelScorer.load(str(folder), batch_size=4, max_length=64, dtype="fp32", device="cpu")
        scored.append([scorer.score(scorer.prepare(batch)) for batch in scorer.plan(conversations)])
    assert scored[0] == [pytest.approx(scores, abs=1e-6) for scores in scored[1]]
    shutil.copytree(trained, tmp_path / "adapter", ignore=shutil.ignore_patterns("checkpoint-*"))
    shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((trained / "adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "base")})
    )
    before = weights_hash(str(tmp_path / "adapter"))
    tensors = load_file(tmp_path / "base/model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    assert weights_hash(str(tmp_path / "adapter")) != before


def test_an_output_folder_that_holds_something_is_refused(trained, tiny_model, tmp_path):
    (tmp_path / "file").write_text("mine")
    for kept in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="not an empty folder"):
            export(str(trained), kept)
    with pytest.raises(InputError, match="no folder with an adapter"):
        export(str(tiny_model), tmp_path / "new", merge=False)
    with pytest.raises(InputError, match="has no reward head"):
        export(str(tiny_model), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_state_may_leave_the_frozen_weights_out_but_nothing_that_is_trained(tiny_reward_model):
    model = RewardModel.from_pretrained(str(tiny_reward_model))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    model.add_adapter(LoraSettings(rank=2), base="base")
    trained = {name: weight + 1 for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(trained)
    assert all(torch.equal(weight, trained.get(name, before[name])) for name, weight in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(dict(list(trained.items())[1:]))


def test_a_whole_model_is_no_adapter(tiny_model):
    assert adapter_config(str(tiny_model)) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora_alpha", "8"], "--lora_alpha: belongs to an adapter"),
        (["--lora_target_modules", "q_proj"], "--lora_target_modules: belongs to an adapter"),
        (["--qlora"], "--qlora: belongs to an adapter"),
        (["--lora_rank", "4", "--qlora"], "CUDA"),
        (["--lora_rank", "0"], "--lora_rank"),
        (["--lora_rank", "4", "--lora_dropout", "1"], "--lora_dropout"),
        (["--lora_rank", "4", "--lora_alpha", "-1"], "--lora_alpha"),
        (["--lora_rank", "4", "--lora_target_modules", "no_such_layer"], "--lora_target_modules no_such_layer"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="--qlora is refused for want of a GPU")
def test_adapter_flags_that_cannot_work_are_input_errors(tiny_model, data, tmp_path, more, message):
    with pytest.raises(InputError) as error:
        train([*flags(tiny_model, data, tmp_path / "out"), *more])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(600)  # the first launch on a machine compiles an operator
@pytest.mark.parametrize("stage", [2, 3])
def test_an_adapter_and_a_learned_temperature_train_under_zero_on_two_ranks_as_in_one_process(
    tiny_reward_model, data, tmp_path, stage
):
    more = {"lora_rank": 4, "max_steps": 2, "prefix_sharing": "on"}
    options = ["--gradient_checkpointing", "--learned_temperature"]
    train([*flags(tiny_reward_model, data, tmp_path / "one", **more), *options])
    settings = flags(tiny_reward_model, data, tmp_path / "two", **more, per_device_train_batch_size=4)
    done = run_on_two_ranks(*settings, *options, "--deepspeed", str(ROOT / f"configs/ds_z{stage}_config.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("loss", "grad_norm", "temperature"):
        torch.testing.assert_close(column(tmp_path / "two", name), column(tmp_path / "one", name), rtol=1e-4, atol=1e-6)
    one, two = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("one", "two"))
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in two.items()}
    assert all(torch.allclose(tensor, two[name], atol=1e-4) for name, tensor in one.items())
