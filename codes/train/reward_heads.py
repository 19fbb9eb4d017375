"""Several reward heads on one trunk: their names, how their scores become one, and where a model folder says so.

The heads are the labels of a stock sequence classifier, so stock classes load the folder and give one logit a head, in
the order of ``id2label``, which names them. How these become the one score that everything here compares is a field of
config.json that stock classes pass over:

    "reward_heads": {"rule": "mean"}                              the heads of an ensemble: mean, minimum
    "reward_heads": {"rule": "penalised", "penalty": 1.0}         their mean less a multiple of their variance
    "reward_heads": {"rule": "weighted", "weights": {"helpfulness": 1.0, "safety": 2.0}}     a sum over objectives

A classifier with several labels and without that field is no model of ours, and no reward model as far as we know.
An adapter folder has the two fields in a file of their own, because stock classes take one with a config.json for a
whole model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file

from codes.common.conversation import first_line
from codes.common.records import InputError, write_json
from codes.common.score_rules import RULES, combined

CONFIG_FIELD = "reward_heads"
ADAPTER_HEADS = "reward_heads.json"
WEIGHTED = "weighted"
LARGEST = torch.finfo(torch.float32).max  # of a weight or a penalty: what the scores are computed in


@dataclass(frozen=True)
class RewardHeads:
    """The heads' names, in the order of their scores, and the rule that makes these one score.

    ``penalty`` belongs to the rule ``penalised``, ``weights`` (one a head) to ``weighted``: heads of that rule stand
    for an objective each, those of any other make an ensemble.
    """

    names: tuple[str, ...] = ("reward",)
    rule: str = "mean"
    penalty: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_objectives(self) -> bool:
        return self.rule == WEIGHTED

    @property
    def are_plain(self) -> bool:
        """Whether this is the one head of any reward model, which needs no word about it."""
        return len(self.names) == 1 and not self.are_objectives

    def combined(self, scores: Tensor) -> Tensor:
        """float32 [..., heads] -> [...]."""
        if not self.are_objectives:
            return combined(scores, self.rule, self.penalty)
        return (scores * self.sum_weights().to(scores.device)).sum(-1)

    def sum_weights(self) -> Tensor:
        """The weights of the sum that the combined score is: float32 [heads]. Raises InputError where it is none."""
        if self.are_objectives:
            return torch.tensor([self.weights[name] for name in self.names], dtype=torch.float32)
        if self.rule != "mean":
            raise InputError(f"--merge_heads: the rule {self.rule} is no sum over heads, so no one head can express it")
        return torch.full((len(self.names),), 1 / len(self.names))

    def as_field(self) -> dict:
        """What config.json says of them besides their names."""
        if self.are_objectives:
            return {"rule": self.rule, "weights": dict(self.weights)}
        return {"rule": self.rule} | ({"penalty": self.penalty} if self.rule == "penalised" else {})

    def as_facts(self) -> dict:
        """All that a reader of their scores must know."""
        return {"names": list(self.names), **self.as_field()}

    def describe_in(self, config: PretrainedConfig) -> None:
        """Make it the configuration of a classifier with these heads."""
        config.num_labels = len(self.names)
        vars(config).pop(CONFIG_FIELD, None)
        if not self.are_plain:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: place for place, name in enumerate(self.names)}
            setattr(config, CONFIG_FIELD, self.as_field())

    def save_beside_adapter(self, folder: Path) -> None:
        """Write the file of an adapter folder that names them, unless there is no need to."""
        if not self.are_plain:
            write_json(folder / ADAPTER_HEADS, {"id2label": dict(enumerate(self.names)), CONFIG_FIELD: self.as_field()})


ONE_HEAD = RewardHeads()


def ensemble_heads(count: int, rule: str = "mean", penalty: float = 1.0) -> RewardHeads:
    return RewardHeads(tuple(f"head_{number}" for number in range(1, count + 1)), rule, penalty)


def heads_of_adapter(model_path: str, revision: str | None = None) -> RewardHeads | None:
    """The heads that an adapter's folder or Hub name says it has; None where it says nothing."""
    try:
        path = cached_file(model_path, ADAPTER_HEADS, revision=revision)
    except OSError:
        return None
    try:
        fields = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is no JSON object: {first_line(error)}") from None
    return heads_in(fields, path)


def heads_in(config: Mapping, where: str) -> RewardHeads | None:
    """The heads that a config.json, or the attributes of what it was read into, describe; None where it does not.

    Raises InputError that begins with ``where`` for fields of another shape.
    """
    if config.get(CONFIG_FIELD) is None:
        return None
    try:
        names = {int(place): name for place, name in dict(config.get("id2label") or {}).items()}
        return _read(config[CONFIG_FIELD], [names[place] for place in sorted(names)])
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: field {CONFIG_FIELD!r}: {error}") from None


def _read(fields: object, names: list[object]) -> RewardHeads:
    if not isinstance(fields, dict):
        raise ValueError(f"{fields!r} is no object")
    rule, penalty, weights = fields.get("rule"), fields.get("penalty", 1.0), fields.get("weights")
    if rule not in (*RULES, WEIGHTED):
        raise ValueError(f"unknown rule {rule!r}; known are {', '.join((*RULES, WEIGHTED))}")
    if not names or not all(map(is_head_name, names)) or len(set(names)) < len(names):
        raise ValueError(f"the labels {names} do not name a head each")
    if not _is_number(penalty) or penalty < 0:
        raise ValueError(f"the penalty {penalty!r} is not a number of at least 0")
    if rule != WEIGHTED:
        return RewardHeads(tuple(names), rule, float(penalty))
    if not isinstance(weights, dict) or weights.keys() != set(names) or not all(map(_is_number, weights.values())):
        raise ValueError(f"the weights {weights!r} are not a number for each of {', '.join(names)}")
    return RewardHeads(tuple(names), rule, weights=weights)


def is_head_name(name: object) -> bool:
    """Whether it can be told in one line and be found in ``NAME=WEIGHT,NAME=WEIGHT``."""
    return isinstance(name, str) and name.isprintable() and name == name.strip() != "" and not set(name) & set("=,")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
