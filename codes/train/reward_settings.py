"""What decides the model, the objective and the data: the flags of training that TrainingArguments does not have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from codes.common.cli import require_files
from codes.common.records import InputError
from codes.train.adapters import LoraSettings, require_peft, require_quantization
from codes.train.losses import ORIGINAL
from codes.train.reward_heads import LARGEST, ONE_HEAD, WEIGHTED, RewardHeads, ensemble_heads, is_head_name
from codes.train.training_data import OTHER_PROMPT, EncodingSettings, WeightedFile, weighted_file

TEMPERATURE_LEARNING_RATE = 1e-3
# Settings of the training mode's loss, besides those that it has by itself.
ACT_ON_THE_PREFERENCE = (
    *("learned_temperature", "bias_weights", "original_weight", "in_batch_negatives"),
    *("center_rewards_coefficient", "length_penalty_coefficient"),
)


@dataclass
class RewardSettings:
    """What decides the model and the data; the flags that TrainingArguments does not have."""

    model_name_or_path: str = field(metadata={"help": "folder or Hub name of a language model or a reward model"})
    train_data_path: list[str] = field(
        metadata={
            "help": "one or more JSONL files of train records, each with a weight after a colon if an epoch should not "
            "hold it just once: a.jsonl b.jsonl:0.3 c.jsonl:2 draws 30%% of b anew each epoch, and c twice"
        }
    )
    training_mode: Literal["contrast", "pairwise", "bradley_terry"] = field(
        metadata={
            "help": "contrast: cross entropy of the chosen against every rejected answer; pairwise: margin loss; "
            "bradley_terry: log-sigmoid loss"
        }
    )
    pairs: Literal["first", "all"] = field(
        default="first",
        metadata={
            "help": "pairwise and bradley_terry: pair the chosen answer with the first rejected one, or with all"
        },
    )
    temperature: float = field(default=0.5, metadata={"help": "contrast: divides the scores, above 0"})
    learned_temperature: bool = field(
        default=False, metadata={"help": "contrast: train the temperature, too, from --temperature on"}
    )
    temperature_learning_rate: float = field(
        default=TEMPERATURE_LEARNING_RATE,
        metadata={"help": "learning rate of the logarithm of a learned temperature, above 0"},
    )
    margin: float = field(default=1.0, metadata={"help": "pairwise: the score difference that is enough, at least 0"})
    center_rewards_coefficient: float = field(
        default=0.0, metadata={"help": "weight of the squared mean score of a group, added to the loss; at least 0"}
    )
    bias_weights: str | None = field(
        default=None,
        metadata={
            "help": "weights of rejected answers by bias type, as length=2,authority=0.5: a weight of w counts an "
            "answer as w copies of it would; at least 0, 1 where a type is not named"
        },
    )
    original_weight: float | None = field(
        default=None,
        metadata={
            "help": "from 0 to 1: weight of the loss over original rejected answers; the loss over the biased ones "
            "gets the rest (default: all rejected answers make one loss)"
        },
    )
    in_batch_negatives: int = field(
        default=0,
        metadata={
            "help": "number of other prompts whose chosen answers join each group as rejected ones, drawn by the "
            "seed; their bias type is other_prompt"
        },
    )
    length_penalty_coefficient: float = field(
        default=0.0,
        metadata={
            "help": "weight of the squared covariance of reward and log2 of the answer's characters within groups, "
            "over the groups of one forward on one device; at least 0"
        },
    )
    heads: int = field(
        default=1,
        metadata={"help": "reward heads on the one trunk, an ensemble; the loss is the mean of the heads' losses"},
    )
    head_rule: Literal["mean", "minimum", "penalised"] | None = field(
        default=None,
        metadata={
            "help": "what makes the heads' scores the model's score, saved with it; penalised: their mean less a "
            "multiple of their variance (default: mean)"
        },
    )
    head_penalty: float | None = field(
        default=None, metadata={"help": "that multiple, at least 0 (default: 1), of --head_rule penalised"}
    )
    head_bootstrap: bool = field(
        default=False,
        metadata={
            "help": "every head counts a group as often as a draw of its own by the seed says (Poisson, mean 1), so "
            "that heads differ more; without, each learns from all groups"
        },
    )
    objectives: list[str] | None = field(
        default=None,
        metadata={
            "help": "names in the records' `rewards`; each gets a head, which learns to order a group's answers as "
            "these ratings do"
        },
    )
    objective_weights: str | None = field(
        default=None,
        metadata={
            "help": "as helpfulness=1,verbosity=-0.5: the model's score is the sum of the objectives' times their "
            "weights, saved with it; 1 where an objective is not named"
        },
    )
    preference_weight: float | None = field(
        default=None,
        metadata={
            "help": "weight of the loss of --training_mode on the model's score, added to that of the objectives; at "
            "least 0 (default: 1)"
        },
    )
    pooling: Literal["last", "mean", "weighted"] | None = field(
        default=None,
        metadata={
            "help": "what the head reads: the last token's hidden state, the mean over all tokens, or the mean with "
            "weights that grow with the position (default: what the model has, last for a new head). Stock classes "
            "refuse a decoder saved with another than last; the commands here load it"
        },
    )
    disable_dropout: bool = field(
        default=False,
        metadata={
            "help": "switch the model's own dropout off, so that one network scores all answers of a group; encoders, "
            "which have it, also train about twice as fast"
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "train a LoRA adapter of this rank and the head, in place of all weights (needs peft)"},
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "scale of the adapter times its rank, above 0 (default: twice the rank)"}
    )
    lora_dropout: float | None = field(
        default=None, metadata={"help": "dropout in front of the adapter, from 0 to below 1 (default: 0)"}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "names of the layers that get an adapter (default: all-linear)"}
    )
    qlora: bool = field(
        default=False,
        metadata={"help": "hold the frozen weights in 4 bits while an adapter is trained (CUDA, needs bitsandbytes)"},
    )
    max_length: int = field(
        default=1024,
        metadata={"help": "tokens of a conversation; the oldest prompt tokens are cut, then the answer's end"},
    )
    tokens_per_device_batch: int | None = field(
        default=None,
        metadata={
            "help": "fill batches with groups of similar lengths up to so many tokens a device and forward, as the "
            "model computes them; instead of --per_device_train_batch_size"
        },
    )
    tokenized_cache: str | None = field(
        default=None,
        metadata={"help": "folder that keeps the tokenized data for other runs, too (default: OUTPUT_DIR/tokenized)"},
    )
    prefix_sharing: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={"help": "compute a group's prompt once for all its answers; auto: where it saves enough tokens"},
    )
    sharing_kernel: Literal["spans", "flex"] = field(
        default="spans",
        metadata={
            "help": "what computes attention over shared prompts: span by span through SDPA, or on CUDA torch's "
            "FlexAttention over the whole packed row"
        },
    )
    eval_data_path: list[str] | None = field(
        default=None, metadata={"help": "JSONL files of train records to evaluate on during training"}
    )
    keep_unverified: bool = field(
        default=False, metadata={"help": "also use records whose verification failed or was undecided"}
    )
    verified_only: bool = field(default=False, metadata={"help": "leave out records that were never verified, too"})
    chat_template: str | None = field(
        default=None, metadata={"help": "file with a Jinja chat template that replaces the tokenizer's"}
    )
    revision: str | None = field(default=None, metadata={"help": "commit, tag or branch of the model on the Hub"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run code that the model's repository ships"})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "remove the run that --output_dir holds and train afresh"}
    )

    @property
    def train_files(self) -> list[WeightedFile]:
        """The training files with their weights; raises InputError for a weight that is none."""
        return [weighted_file(text) for text in self.train_data_path]

    def encoding(self, max_length: int, seed: int) -> EncodingSettings:
        """What decides how the training records become groups; ``seed`` that of the groups' draws."""
        return EncodingSettings(
            max_length=max_length,
            first_rejected_only=self.first_rejected_only,
            keep_unverified=self.keep_unverified,
            verified_only=self.verified_only,
            in_batch_negatives=self.in_batch_negatives,
            seed=seed if self.in_batch_negatives else 0,
            objectives=tuple(self.objectives or ()),
        )

    @property
    def prefers_over_the_first_only(self) -> bool:
        """Whether the training mode's loss does not look at the rejected answers after the first."""
        return self.training_mode != "contrast" and self.pairs == "first"

    @property
    def first_rejected_only(self) -> bool:
        """Whether the rejected answers after the first take no part."""
        return self.prefers_over_the_first_only and not self.objectives

    @property
    def reward_heads(self) -> RewardHeads:
        """The heads to be trained."""
        if self.objectives:
            given = parse_weights("--objective_weights", self.objective_weights)
            weights = {name: given.get(name, 1.0) for name in self.objectives}
            return RewardHeads(tuple(self.objectives), WEIGHTED, weights=weights)
        if self.heads == 1:
            return ONE_HEAD
        penalty = 1.0 if self.head_penalty is None else self.head_penalty
        return ensemble_heads(self.heads, self.head_rule or "mean", penalty)

    @property
    def lora(self) -> LoraSettings | None:
        """What the adapter to be trained is like; None where all weights are trained."""
        if self.lora_rank is None:
            return None
        targets = tuple(self.lora_target_modules or ["all-linear"])
        return LoraSettings(self.lora_rank, self.lora_alpha, self.lora_dropout or 0.0, targets, self.qlora)

    def objective(self, label_smoothing: float, seed: int) -> dict:
        """The arguments of ``head_losses``; the temperature is where a learned one starts."""
        names = ("training_mode", "pairs", "temperature", "margin", "original_weight", "center_rewards_coefficient")
        preference = 1.0 if self.preference_weight is None else self.preference_weight
        return {
            **{name: getattr(self, name) for name in (*names, "length_penalty_coefficient")},
            "bias_weights": parse_bias_weights(self.bias_weights),
            "label_smoothing": label_smoothing,
            "preference_weight": preference if self.objectives else None,
            "bootstrap_seed": seed if self.head_bootstrap else None,
        }


def check_settings(settings: RewardSettings) -> None:
    """Refuse values that cannot work, alone or together. Raises InputError that names the flag."""
    for name in ("temperature", "temperature_learning_rate"):
        require_number(f"--{name}", getattr(settings, name), "above 0", getattr(settings, name) > 0)
    for name in ("margin", "center_rewards_coefficient", "length_penalty_coefficient", "in_batch_negatives"):
        require_number(f"--{name}", getattr(settings, name), "at least 0", getattr(settings, name) >= 0)
    require_number("--max_length", settings.max_length, "at least 1", settings.max_length >= 1)
    _check_adapter_settings(settings)
    _check_head_settings(settings)
    budget = settings.tokens_per_device_batch
    require_number("--tokens_per_device_batch", budget or 0, "at least 1", budget is None or budget >= 1)
    parse_bias_weights(settings.bias_weights)
    share = settings.original_weight
    require_number("--original_weight", share or 0, "from 0 to 1", share is None or 0 <= share <= 1)
    if settings.temperature_learning_rate != TEMPERATURE_LEARNING_RATE and not settings.learned_temperature:
        raise InputError("--temperature_learning_rate: the temperature is fixed; add --learned_temperature")
    if settings.learned_temperature and settings.training_mode != "contrast":
        raise InputError("--learned_temperature: only --training_mode contrast has a temperature")
    if settings.prefers_over_the_first_only:
        for name in ("bias_weights", "original_weight", "in_batch_negatives"):
            if getattr(settings, name) not in (None, 0):
                raise InputError(f"--{name}: has no effect on the first rejected answer alone; add --pairs all")
    if settings.sharing_kernel == "flex" and not torch.cuda.is_available():
        raise InputError("--sharing_kernel flex: FlexAttention has no backward pass on the CPU, and there is no CUDA")
    if settings.sharing_kernel == "flex" and settings.prefix_sharing == "off":
        raise InputError("--sharing_kernel flex: has no effect with --prefix_sharing off")
    if settings.keep_unverified and settings.verified_only:
        raise InputError("--keep_unverified and --verified_only contradict each other")
    require_files([file.path for file in settings.train_files], "--train_data_path")
    require_files(settings.eval_data_path or [], "--eval_data_path")
    if settings.chat_template:
        require_files([settings.chat_template], "--chat_template")


def _check_adapter_settings(settings: RewardSettings) -> None:
    lora = settings.lora
    if lora is None:
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "qlora"):
            if getattr(settings, name):
                raise InputError(f"--{name}: belongs to an adapter; add --lora_rank")
        return
    require_number("--lora_rank", lora.rank, "of at least 1", lora.rank >= 1)
    require_number("--lora_alpha", lora.alpha or 0, "above 0", lora.alpha is None or lora.alpha > 0)
    require_number("--lora_dropout", lora.dropout, "from 0 to below 1", 0 <= lora.dropout < 1)
    require_peft("--lora_rank")
    if lora.quantized:
        require_quantization("--qlora")


def _check_head_settings(settings: RewardSettings) -> None:
    require_number("--heads", settings.heads, "of at least 1", settings.heads >= 1)
    if settings.heads > 1 and settings.objectives:
        raise InputError("--heads: with --objectives there is a head for each of them; leave --heads out")
    for name in ("head_rule", "head_penalty", "head_bootstrap"):
        if settings.heads == 1 and getattr(settings, name) not in (None, False):
            raise InputError(f"--{name}: belongs to an ensemble of heads; add --heads")
    penalty = settings.head_penalty
    holds = penalty is None or 0 <= penalty <= LARGEST
    require_number("--head_penalty", penalty or 0, "of at least 0 that float32 holds", holds)
    if penalty is not None and settings.head_rule != "penalised":
        raise InputError("--head_penalty: only --head_rule penalised has one")
    for name in ("objective_weights", "preference_weight"):
        if settings.objectives is None and getattr(settings, name) is not None:
            raise InputError(f"--{name}: belongs to several objectives; add --objectives")
    if settings.objectives is not None:
        _check_objectives(settings)


def _check_objectives(settings: RewardSettings) -> None:
    names = settings.objectives
    for name in names:
        if not is_head_name(name):
            raise InputError(f"--objectives: {name!r} is no name: empty, spaces around it, '=', ',' or unprintable")
        if names.count(name) > 1:
            raise InputError(f"--objectives: {name!r} is named twice")
    weights = parse_weights("--objective_weights", settings.objective_weights)
    if unknown := sorted(weights.keys() - set(names)):
        raise InputError(f"--objective_weights: {unknown[0]!r} is none of the objectives {', '.join(names)}")
    if not any(settings.reward_heads.weights.values()):
        raise InputError("--objective_weights: all are 0, and every score would be")
    preference = settings.preference_weight
    require_number("--preference_weight", preference or 0, "of at least 0", preference is None or preference >= 0)
    if preference == 0:
        for name in ACT_ON_THE_PREFERENCE:
            if getattr(settings, name) not in (None, False, 0):
                raise InputError(f"--{name}: has no effect with --preference_weight 0")


def parse_bias_weights(text: str | None) -> dict[str, float]:
    """``length=2,authority=0.5`` as a mapping. Raises InputError for anything else, and for weights below 0."""
    weights = parse_weights("--bias_weights", text)
    for name, weight in weights.items():
        require_number(f"--bias_weights: {name}", weight, "of at least 0", weight >= 0)
    return weights


def parse_weights(flag: str, text: str | None) -> dict[str, float]:
    """``NAME=WEIGHT,NAME=WEIGHT`` as a mapping, empty for None. Raises InputError for anything else."""
    weights: dict[str, float] = {}
    for entry in text.split(",") if text is not None else ():
        name, _, number = (part.strip() for part in entry.partition("="))
        try:
            weight = float(number)
        except ValueError:
            raise InputError(f"{flag}: {entry!r} is not of the form NAME=WEIGHT") from None
        if not name or name in weights:
            raise InputError(f"{flag}: {entry!r} " + ("is named twice" if name else "names nothing"))
        require_number(f"{flag}: {name}", weight, "that float32 holds", abs(weight) <= LARGEST)
        weights[name] = weight
    return weights


def check_bias_types(settings: RewardSettings, rejected_by_bias_type: Mapping[str, int]) -> None:
    """Refuse weights that would weigh nothing in this data."""
    known = {*rejected_by_bias_type, *([OTHER_PROMPT] if settings.in_batch_negatives else [])}
    if absent := sorted(parse_bias_weights(settings.bias_weights).keys() - known):
        raise InputError(
            f"--bias_weights: the data has no rejected answer of type {absent[0]!r}; it has {sorted(known)}"
        )
    if settings.original_weight is not None and not known - {ORIGINAL}:
        raise InputError(
            "--original_weight: the data has no biased rejected answers to weigh the original ones against"
        )
    if settings.original_weight is not None and ORIGINAL not in known:
        raise InputError("--original_weight: the data has no original rejected answers")


def check_objectives_are_rated(settings: RewardSettings, rated_pairs: Mapping[str, int]) -> None:
    """Refuse an objective that this data says nothing about."""
    for name in settings.objectives or ():
        if not rated_pairs.get(name):
            raise InputError(f"--objectives: the data rates no two answers of a group differently by {name!r}")


def require_number(flag: str, value: float, wanted: str, holds: bool) -> None:
    """Raise InputError naming the flag, unless the value is finite and ``holds``, which ``wanted`` puts into words."""
    if not (math.isfinite(value) and holds):
        raise InputError(f"{flag}: {value} is not a number {wanted}")
