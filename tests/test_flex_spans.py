"""Packed rows through FlexAttention: the mask, and scores as alone; the CPU has no backward pass of it."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from codes.common import flex_spans
from codes.common.flex_spans import FLEX_ATTENTION, PROMPT, block_mask, token_labels
from codes.common.prefix_sharing import SPAN_ATTENTION, pack_groups
from codes.common.records import InputError
from codes.train.reward_model import RewardModel
from codes.train.train_reward_model import train
from tests.test_prefix_sharing import (
    ARCHITECTURES,
    GROUPS,
    gradients,
    packed_scores,
    random_groups,
    random_model,
    scores_alone,
)
from tests.training_runs import flags, write_groups


def test_every_token_knows_its_group_its_answer_and_its_position():
    row = pack_groups([[[7, 8, 1, 2], [7, 8, 3]], [[9], [6, 5]]])
    group_of, answer_of, positions = token_labels(row.groups)
    assert group_of == [0, 0, 0, 0, 0, 1, 2, 2]
    assert answer_of == [PROMPT, PROMPT, 0, 0, 1, 0, 0, 0]
    assert positions == row.position_ids


@pytest.mark.parametrize("window", [None, 3])
def test_a_token_attends_to_the_prompt_and_to_its_own_answer_within_the_window(window):
    groups = random_groups(3, [(4, [3, 1, 5]), (1, [1]), (2, [6, 6])])
    row = pack_groups(groups)
    mask = block_mask(row.groups, window, torch.device("cpu"))
    length = len(row.input_ids)
    found = create_mask(mask.mask_mod, None, None, length, length, device="cpu")[0, 0]
    labels = list(zip(*token_labels(row.groups)))
    for query, (group, answer, position) in enumerate(labels):
        for key, (other_group, other_answer, other_position) in enumerate(labels):
            sees = group == other_group and other_answer in (PROMPT, answer) and other_position <= position
            # Another answer's token may stand at an earlier position; the prompt sees no answer.
            sees = sees and (window is None or position - other_position < window)
            assert found[query, key] == sees


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_conversations_scored_alone(name):
    model = random_model(name).eval()
    with torch.no_grad():
        alone = scores_alone(model, GROUPS)
        model.set_attn_implementation(FLEX_ATTENTION)
        torch.testing.assert_close(packed_scores(model, GROUPS), alone, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a backward pass on CUDA alone")
@pytest.mark.parametrize("name", ["Qwen3", "Gemma 2 (soft-capped, short window)"])
def test_gradients_on_cuda_are_those_of_conversations_scored_alone(name):
    model = random_model(name)
    alone = gradients(model, scores_alone(model, GROUPS))
    model.cuda().set_attn_implementation(FLEX_ATTENTION)
    row = pack_groups(GROUPS, 1)
    hidden = model.base_model(
        input_ids=torch.tensor([row.input_ids], device="cuda"),
        position_ids=torch.tensor([row.position_ids], device="cuda"),
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cuda"),
        prefix_spans=row.groups,
        use_cache=False,
    ).last_hidden_state
    shared = gradients(model, model.score(hidden[0, row.read_at]).squeeze(-1).cpu())
    for parameter, expected in alone.items():
        error = (shared[parameter].cpu() - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-3, parameter  # TF32 aside, CUDA sums in another order


def test_a_reward_model_takes_the_kernel_that_it_is_asked_for(tiny_reward_model):
    model = RewardModel.from_pretrained(str(tiny_reward_model)).eval()
    with torch.no_grad():
        alone = model(**model.layout(GROUPS))
        model.share_prefixes("on", "flex")
        assert model.config._attn_implementation == FLEX_ATTENTION
        torch.testing.assert_close(model(**model.layout(GROUPS)), alone, atol=1e-5, rtol=0)


def test_where_the_kernel_fails_spans_take_its_place_and_it_is_said(tiny_reward_model, monkeypatch, caplog):
    def fails(*arguments, **settings):
        raise RuntimeError("no kernel for this machine\nand a long trace")

    monkeypatch.setattr(flex_spans, "flex_attention", fails)
    model = RewardModel.from_pretrained(str(tiny_reward_model)).eval()
    model.share_prefixes("on", "flex")
    assert model.config._attn_implementation == SPAN_ATTENTION
    assert model.facts()["prefix_sharing"]
    (message,) = [record.message for record in caplog.records if "FlexAttention is not used" in record.message]
    assert message.endswith("it fails here: no kernel for this machine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it is no error")
def test_training_with_it_is_refused_without_cuda(tiny_model, tmp_path):
    data = write_groups(tmp_path / "data.jsonl", 2)
    with pytest.raises(InputError, match=r"--sharing_kernel flex: .* no CUDA"):
        train(flags(tiny_model, data, tmp_path / "out", sharing_kernel="flex"))
    assert not (tmp_path / "out").exists()
