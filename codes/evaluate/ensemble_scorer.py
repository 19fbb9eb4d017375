"""The scorer `ensemble`: several reward models, put on one scale and combined by a rule.

`codes.evaluate.ensemble` makes the file that it is loaded from. Each member's scores are standardised with the mean and
the standard deviation that they had over the file's reference answers, so that a score depends on nothing else that is
scored. Members are loaded one after another and the memory of one is enough; each keeps its scores in the store under
an identity of its own, so what a member has scored already, alone or for another rule, is not scored again.
"""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codes.common.cli import RunFailed
from codes.common.records import FieldError, InputError, content_hash, finite_number, parse_record
from codes.evaluate.score_store import Scores

if TYPE_CHECKING:
    from codes.evaluate.model_scorer import ModelScorer
    from codes.evaluate.scorers import Conversation, Pair

FORMAT = "contrastrm-ensemble"
LEAST_MEMBERS = 2


@dataclass(frozen=True)
class Member:
    """One reward model and its scale: mean and standard deviation of its scores over the reference answers.

    ``model`` is a Hub name (of the commit ``revision``) or, beginning with a dot or slash, a folder as seen from the
    ensemble's file.
    """

    model: str
    revision: str | None
    weights_sha256: str
    template_hash: str
    mean: float
    standard_deviation: float

    @property
    def is_folder(self) -> bool:
        return self.model.startswith((".", "/"))


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble's file says; ``penalty`` is that of the rule ``penalised``."""

    path: Path
    members: tuple[Member, ...]
    rule: str
    penalty: float

    def source(self, member: Member) -> str:
        """What the member is loaded from."""
        return str(self.path.resolve().parent / member.model) if member.is_folder else member.model

    def names(self) -> list[str]:
        """A short name for each member: the last part of its path, where no other has the same."""
        short = [Path(member.model).name for member in self.members]
        return [name if Counter(short)[name] == 1 else member.model for name, member in zip(short, self.members)]


def read_ensemble(path: Path) -> Ensemble:
    """Raises InputError naming file and field where it is no ensemble's file."""
    from codes.common.score_rules import RULES

    try:
        content = parse_record(path.read_bytes())
        if content.get("format") != FORMAT:
            raise FieldError("format", f"is not {FORMAT!r}; `python -m codes.evaluate.ensemble` makes such a file")
        if content.get("rule") not in RULES:
            raise FieldError("rule", f"{content.get('rule')!r:.80} is not one of {', '.join(RULES)}")
        penalty = _above_0(content.get("penalty"), "penalty")
        members = content.get("members")
        if not isinstance(members, list) or len(members) < LEAST_MEMBERS:
            raise FieldError("members", f"expected a list of at least {LEAST_MEMBERS} models")
        found = tuple(_member(member, f"members[{place}]") for place, member in enumerate(members))
        if len({member.weights_sha256 for member in found}) < len(found):
            raise FieldError("members", "two have the same weights_sha256; members must differ")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except FieldError as error:
        raise InputError(f"{path}: {error}") from None
    return Ensemble(path, found, content["rule"], penalty)


def _member(content: object, where: str) -> Member:
    if not isinstance(content, dict):
        raise FieldError(where, "expected an object")
    for name in ("model", "weights_sha256", "template_hash"):
        if not isinstance(content.get(name), str) or not content[name]:
            raise FieldError(f"{where}.{name}", f"expected a text, found {content.get(name)!r:.80}")
    if not isinstance(content.get("revision"), str | None):
        raise FieldError(f"{where}.revision", f"expected a text or null, found {content['revision']!r:.80}")
    return Member(
        content["model"],
        content.get("revision"),
        content["weights_sha256"],
        content["template_hash"],
        finite_number(content.get("mean"), f"{where}.mean"),
        _above_0(content.get("standard_deviation"), f"{where}.standard_deviation"),
    )


def _above_0(value: object, field: str) -> float:
    number = finite_number(value, field)
    if number <= 0:
        raise FieldError(field, f"expected a number above 0, found {number:g}")
    return number


@dataclass
class EnsembleScores(Scores):
    """Combined scores; ``members``: conversation key -> the members' standardised scores, in the file's order.

    ``spread``: conversation key -> their disagreement, a standard deviation.
    """

    members: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)

    def details(self, conversation: "Conversation") -> dict:
        return {"member_scores": self.members[conversation.key], "disagreement": self.spread[conversation.key]}

    def disagreements(self, pairs: Sequence["Pair"]) -> list[float]:
        """The members' standard deviation of each pair's margin.

        Unlike that of a single score it does not count what members disagree on over all answers to a question.
        """
        import torch

        from codes.common.score_rules import disagreement

        both = torch.tensor([[self.members[c.key] for c in pair[:2]] for pair in pairs], dtype=torch.float64)
        return disagreement(both[:, 0] - both[:, 1]).tolist() if pairs else []


class EnsembleScorer:
    """Standardised scores of the members, combined; ``combine`` takes the place of planning and scoring batches."""

    keeps_scores = True

    def __init__(self, ensemble: Ensemble, **options):
        """``options``: what members are loaded with, see ``ModelScorer.load``; the dtype is given."""
        self.ensemble = ensemble
        self._options = options
        members = [asdict(member) for member in ensemble.members]
        decisive = ("weights_sha256", "template_hash", "mean", "standard_deviation")
        self.identity = {
            "scorer": "ensemble",
            "members_sha256": content_hash([[member[name] for name in decisive] for member in members]),
            "rule": ensemble.rule,
            "penalty": ensemble.penalty if ensemble.rule == "penalised" else None,
            "dtype": options["dtype"],
            "max_length": options["max_length"],
        }
        self.facts = {"members": dict(zip(ensemble.names(), members))}

    @classmethod
    def load(cls, path: Path, *, revision: str | None = None, **options) -> "EnsembleScorer":
        """Read the file and check its members' weights. Raises InputError for one that has changed or is gone."""
        from codes.evaluate.model_scorer import best_device, usual_dtype

        if revision is not None:
            raise InputError("--revision: the revisions of an ensemble's members stand in its file")
        ensemble = read_ensemble(path)
        for member in ensemble.members:
            _require_unchanged_folder(ensemble, member)
        options["dtype"] = options.get("dtype") or usual_dtype(best_device(options.get("device", "auto")))
        return cls(ensemble, **options)

    def combine(self, score: Callable[["ModelScorer"], Scores]) -> EnsembleScores:
        """What ``score`` gives for each member in turn, combined. Raises RunFailed for a score that is not finite.

        ``score`` must give the same conversations' scores for each member, and keep none of the members.
        """
        import torch

        from codes.common.score_rules import combined, disagreement

        found = []
        for place in range(len(self.ensemble.members)):
            found.append(score(self._load(place)))
            free_memory()
        keys = list(found[0].values)
        raw = torch.tensor([[scores.values[key] for key in keys] for scores in found], dtype=torch.float64).T
        mean, deviation = (
            torch.tensor([getattr(member, name) for member in self.ensemble.members], dtype=torch.float64)
            for name in ("mean", "standard_deviation")
        )
        scaled = (raw - mean) / deviation
        values = combined(scaled, self.ensemble.rule, self.ensemble.penalty)
        if not values.isfinite().all():
            raise RunFailed(f"{self.ensemble.path}: a combined score is not finite; the members' scales do not fit")
        return EnsembleScores(
            dict(zip(keys, values.tolist())),
            set().union(*(scores.prompt_cut for scores in found)),
            set().union(*(scores.answer_cut for scores in found)),
            members=dict(zip(keys, scaled.tolist())),
            spread=dict(zip(keys, disagreement(scaled).tolist())),
        )

    def _load(self, place: int) -> "ModelScorer":
        from codes.evaluate.model_scorer import ModelScorer

        member = self.ensemble.members[place]
        scorer = ModelScorer.load(
            self.ensemble.source(member),
            revision=member.revision,
            weights_sha256=member.weights_sha256 if member.is_folder else None,
            **self._options,
        )
        for name in ("weights_sha256", "template_hash"):
            if scorer.identity[name] != getattr(member, name):
                raise _changed(self.ensemble, member, name)
        self.facts["members"][self.ensemble.names()[place]] |= {
            **scorer.facts,
            **scorer.identity,
            "revision": member.revision,
        }
        return scorer


def free_memory() -> None:
    """Give a GPU back what a model has held that nobody needs any more."""
    import torch

    if torch.cuda.is_available():
        gc.collect()  # a model that is spread over devices refers to itself
        torch.cuda.empty_cache()


def _require_unchanged_folder(ensemble: Ensemble, member: Member) -> None:
    from codes.evaluate.model_scorer import weights_hash

    if not member.is_folder:
        return  # the Hub's are there only once they are loaded
    folder = ensemble.source(member)
    if not Path(folder).is_dir():
        raise InputError(f"{ensemble.path}: member {member.model}: there is no such folder")
    if weights_hash(folder) != member.weights_sha256:
        raise _changed(ensemble, member, "weights_sha256")


def _changed(ensemble: Ensemble, member: Member, name: str) -> InputError:
    return InputError(
        f"{ensemble.path}: member {member.model}: {name} is another than when the ensemble was made; make it again"
    )
