"""What training data is in tokens: lengths, what is cut and dropped, what an epoch computes, and how long it takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig

from codes.common.conversation import (
    LOADING_ERRORS,
    first_line,
    fitting_max_length,
    load_tokenizer,
    raise_if_unreachable,
)
from codes.common.prefix_sharing import LEAST_SAVING, BatchLayout, sharing_obstacle
from codes.common.records import InputError
from codes.train.adapters import adapter_config
from codes.train.batches import GroupCollator, GroupDataset
from codes.train.losses import contrastive_loss
from codes.train.pooling import pooled_config
from codes.train.reward_model import RewardModel
from codes.train.tokenized_data import TokenizedFile, tokenized_file
from codes.train.training_data import EncodingSettings, WeightedFile
from codes.train.training_log import computed_tokens

PERCENTILES = (50, 90, 95, 99, 100)
WARMING_STEPS, MEASURED_STEPS = 1, 3


@dataclass(frozen=True)
class ModelSource:
    """Where model and tokenizer come from, as training's flags name it."""

    model_name_or_path: str
    chat_template: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def tokenized_training_data(
    files: Sequence[WeightedFile], source: ModelSource, settings: EncodingSettings, cache_dir: str
) -> tuple[GroupDataset, int, PretrainedConfig]:
    """The groups as training would make them, the length they were cut at, and the model's configuration.

    Raises InputError where training would refuse tokenizer, template or data.
    """
    tokenizer = load_tokenizer(source.model_name_or_path, chat_template=source.chat_template, **source.options)
    config = model_config(source)
    max_length = fitting_max_length(settings.max_length, tokenizer, config)
    fitting = EncodingSettings(
        max_length, settings.first_rejected_only, settings.keep_unverified, settings.verified_only
    )
    tokenized = [tokenized_file(file.path, tokenizer, fitting, cache_dir) for file in files]
    return GroupDataset(tokenized, [file.weight for file in files]), max_length, config


def model_config(source: ModelSource) -> PretrainedConfig:
    """The configuration of the model's body, without loading its weights; an adapter's is its base model's."""
    adapter = adapter_config(source.model_name_or_path, source.revision)
    path = adapter.base_model_name_or_path if adapter is not None else source.model_name_or_path
    options = source.options if adapter is None else {**source.options, "revision": adapter.revision}
    try:
        pooled = pooled_config(path, **options)
        return pooled[0] if pooled is not None else AutoConfig.from_pretrained(path, **options)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise_if_unreachable(path, error)
        raise InputError(f"{path}: no model configuration could be loaded: {first_line(error)}") from None


def percentiles(values: np.ndarray) -> dict[str, int]:
    """The PERCENTILES of whole numbers, each one of the values: {"50": ...}."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {str(share): int(value) for share, value in zip(PERCENTILES, found)}


def token_figures(data: GroupDataset, max_length: int, config: PretrainedConfig) -> dict:
    """Lengths in tokens, what an epoch computes with and without prefix sharing, and what was cut and dropped."""
    counts = data.counts
    groups = np.concatenate([file.tokens for file in data.files])
    lengths = np.concatenate([file.conversation_tokens() for file in data.files])
    with_cut = counts.conversations_with_cut_prompt, counts.conversations_with_cut_answer
    shared, unshared = (_an_epoch(data, file_tokens) for file_tokens in (_shared_tokens, lambda file: file.tokens))
    return {
        "max_length": max_length,
        "groups": len(groups),
        "conversations": len(lengths),
        "conversation": percentiles(lengths),
        "group": percentiles(groups),
        "epoch": {
            "groups": len(data.order(seed=None)),
            "with_prefix_sharing": shared,
            "without_prefix_sharing": unshared,
            "saved": 1 - shared / unshared,
            "sharing_obstacle": sharing_obstacle(config),
        },
        "cut": {
            "conversations_with_cut_prompt": with_cut[0],
            "conversations_with_cut_answer": with_cut[1],
            "share_with_cut_prompt": with_cut[0] / len(lengths),
            "share_with_cut_answer": with_cut[1] / len(lengths),
            "prompt_tokens": counts.cut_prompt_tokens,
            "answer_tokens": counts.cut_answer_tokens,
        },
        "dropped": {
            "answers_equal_to_chosen": counts.dropped_answers_equal_to_chosen,
            "groups_without_rejected": counts.dropped_groups_without_rejected,
        },
    }


def _shared_tokens(file: TokenizedFile) -> np.ndarray:
    layout = BatchLayout(pad_id=0, least_saving=LEAST_SAVING)
    rows, width = layout.sizes(file.answers, file.tokens, file.longest, file.prefix)
    return rows * width


def _an_epoch(data: GroupDataset, tokens_of) -> int:
    """Tokens of an epoch: those of each file's groups, as often as its weight lets them come up."""
    groups = data.order(seed=None).counts
    return round(sum(float(tokens_of(file).mean()) * count for file, count in zip(data.files, groups)))


def training_time(tokens: dict, tokens_per_second: float, measured: dict | None) -> dict:
    """Seconds of an epoch of ``token_figures`` at a rate of computed tokens a second."""
    epoch = tokens["epoch"]
    name = "with_prefix_sharing" if epoch["sharing_obstacle"] is None else "without_prefix_sharing"
    if measured is not None and not measured["prefix_sharing"]:
        name = "without_prefix_sharing"
    return {
        "tokens_per_second": tokens_per_second,
        "tokens": epoch[name],
        "seconds_an_epoch": epoch[name] / tokens_per_second,
        "measured": measured,
    }


def measured_speed(data: GroupDataset, source: ModelSource, *, groups: int, seed: int) -> dict:
    """Computed tokens a second of forward and backward on this device, over a few steps of groups drawn by the seed.

    bf16 autocast on CUDA, float32 elsewhere; the optimizer's step, data loading and other ranks are no part of it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)  # of a new head
    model = RewardModel.from_pretrained(
        source.model_name_or_path, new_head=True, chat_template=source.chat_template, **source.options
    )
    model.ensure_own_pad_token()
    model.to(device).train()
    model.share_prefixes("auto")
    collate = GroupCollator(model.layout)
    drawn = np.random.default_rng([seed, 2]).choice(len(data), (WARMING_STEPS + MEASURED_STEPS) * groups)
    tokens = seconds = 0.0
    for step, places in enumerate(drawn.reshape(-1, groups)):
        batch = collate([data[int(place)] for place in places])
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch["inputs"].items()
        }
        began = _now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = contrastive_loss(model(**inputs), batch["groups"].group_sizes.to(device), 0.5)
        loss.backward()
        model.zero_grad()
        if step >= WARMING_STEPS:
            seconds += _now(device) - began
            tokens += computed_tokens(batch["inputs"])
    return {
        "tokens_per_second": tokens / seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": "bf16" if device.type == "cuda" else "fp32",
        "steps": MEASURED_STEPS,
        "groups_a_step": groups,
        "prefix_sharing": model.layout.least_saving is not None,
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
