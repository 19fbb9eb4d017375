"""Everything that can score a conversation, and scoring every distinct conversation once.

A scorer has an ``identity`` (what decides its scores, as far as it is not the conversation), ``facts`` for readers of
the results, and two steps: ``plan`` puts conversations into batches, ``score`` gives one number for each in a batch.
``length`` and ``random`` need neither model nor torch; the model's scorer is imported only when it is asked for.
"""

import argparse
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from codes.common.cli import RunFailed, positive_int, progress, random_seed
from codes.common.records import InputError, Question, content_hash
from codes.evaluate.score_store import ScoreStore

SCORERS = ("model", "length", "random")


@dataclass(frozen=True)
class Conversation:
    """A question and the answer to be scored; ``where`` (file, row, field) is for error messages only."""

    question: Question
    answer: str
    where: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """The same for equal conversations, in every run."""
        return content_hash(self.question, self.answer)[:32]


@dataclass(frozen=True)
class Batch:
    """Conversations to score together; for a model also their token ids, and which of them were cut to max_length."""

    conversations: list[Conversation]
    ids: list[list[int]] = field(default_factory=list)
    prompt_cut: frozenset[str] = frozenset()
    answer_cut: frozenset[str] = frozenset()

    def only(self, keys: set[str]) -> "Batch":
        """The part of the batch with these conversation keys, in order."""
        kept = [position for position, conversation in enumerate(self.conversations) if conversation.key in keys]
        return Batch([self.conversations[i] for i in kept], [self.ids[i] for i in kept] if self.ids else [])


class Scorer(Protocol):
    identity: dict
    facts: dict
    # Whether scores are logits of a model, as the refinement-aware figures need.
    has_logit: bool
    # Whether a score is dear enough to be kept in a store.
    keeps_scores: bool

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]: ...

    def score(self, batch: Batch) -> list[float]: ...


class LengthScorer:
    """The number of characters of the answer: the baseline that every reward model has to beat."""

    has_logit = keeps_scores = False

    def __init__(self) -> None:
        self.identity = {"scorer": "length"}
        self.facts: dict = {}

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        return [Batch(list(conversations))]

    def score(self, batch: Batch) -> list[float]:
        return [float(len(conversation.answer)) for conversation in batch.conversations]


class RandomScorer:
    """A number from [0, 1) drawn from the seed and the conversation alone, whatever the order."""

    has_logit = keeps_scores = False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.identity = {"scorer": "random", "seed": seed}
        self.facts: dict = {}

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        return [Batch(list(conversations))]

    def score(self, batch: Batch) -> list[float]:
        return [self._draw(conversation.key) for conversation in batch.conversations]

    def _draw(self, key: str) -> float:
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


@dataclass
class Scores:
    """Score by conversation key, and the keys of the conversations that were cut to fit."""

    values: dict[str, float] = field(default_factory=dict)
    prompt_cut: set[str] = field(default_factory=set)
    answer_cut: set[str] = field(default_factory=set)

    def __getitem__(self, conversation: Conversation) -> float:
        return self.values[conversation.key]

    def add(self, other: "Scores") -> None:
        self.values |= other.values
        self.prompt_cut |= other.prompt_cut
        self.answer_cut |= other.answer_cut

    def truncation(self, keys: Iterable[str]) -> dict[str, int]:
        """How many of the conversations with these keys lost prompt tokens, and how many part of the answer."""
        keys = set(keys)
        return {
            "conversations": len(keys),
            "prompt_truncated": len(keys & self.prompt_cut),
            "answer_truncated": len(keys & self.answer_cut),
        }


def score_conversations(scorer: Scorer, conversations: Iterable[Conversation], folder: Path) -> Scores:
    """Score every distinct conversation once; what the store in ``folder`` holds already is not scored again.

    Batches depend on the conversations alone, never on what is stored, so an interrupted run that is started again
    computes what an uninterrupted one does. Raises RunFailed naming the row of a score that is NaN or infinite.
    """
    distinct: dict[str, Conversation] = {}
    for conversation in conversations:
        distinct.setdefault(conversation.key, conversation)
    batches = scorer.plan(list(distinct.values()))
    scores = Scores()
    for batch in batches:
        scores.prompt_cut |= batch.prompt_cut
        scores.answer_cut |= batch.answer_cut
    if not scorer.keeps_scores:
        for batch in batches:
            scores.values.update(_finite(batch, scorer.score(batch)))
        return scores
    with ScoreStore(folder, scorer.identity) as store, progress(total=len(distinct), unit="conversation") as bar:
        for batch in batches:
            missing = {c.key for c in batch.conversations} - store.scores.keys()
            if missing:
                part = batch.only(missing)
                found = _finite(part, scorer.score(part))
                store.add(list(found), list(found.values()))
            bar.update(len(batch.conversations))
        scores.values = {key: store.scores[key] for key in distinct}
    return scores


def _finite(batch: Batch, values: list[float]) -> dict[str, float]:
    for conversation, value in zip(batch.conversations, values, strict=True):
        if not math.isfinite(value):
            raise RunFailed(f"{conversation.where}: the score is {value}, not a finite number")
    return {conversation.key: value for conversation, value in zip(batch.conversations, values)}


# --- Command line ------------------------------------------------------------------------------------------------


def add_scorer_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every evaluation command shares."""
    parser.add_argument("--model_path", help="reward model: a folder or a Hub name; not needed for length and random")
    parser.add_argument("--scorer", choices=SCORERS, default="model", help="what gives the scores")
    parser.add_argument("--batch_size", type=positive_int, default=32, help="most conversations in one forward pass")
    parser.add_argument("--max_length", type=positive_int, default=2048, help="most tokens of one conversation")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: bf16 on CUDA, fp32 on the CPU")
    parser.add_argument(
        "--prefix_sharing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute a question once for all its answers; auto: where it saves enough tokens; the scores are the same",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is")
    parser.add_argument("--chat_template", help="file with a chat template to use instead of the tokenizer's")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that a Hub model brings along")
    parser.add_argument(
        "--seed", type=random_seed, default=42, help="of the random scorer and of the bootstrap intervals"
    )


def check_scorer_flags(args: argparse.Namespace) -> None:
    """Raise InputError where the flags do not go together; before anything is read or loaded."""
    if args.scorer == "model" and not args.model_path:
        raise InputError("--model_path is needed with --scorer model")
    if args.chat_template and not Path(args.chat_template).is_file():
        raise InputError(f"--chat_template: no such file: {args.chat_template}")


def load_scorer(args: argparse.Namespace) -> Scorer:
    """The scorer that the flags ask for."""
    if args.scorer == "length":
        return LengthScorer()
    if args.scorer == "random":
        return RandomScorer(args.seed)
    # torch and transformers take seconds to import, and the other scorers do without.
    from codes.evaluate.model_scorer import ModelScorer

    return ModelScorer.load(
        args.model_path,
        batch_size=args.batch_size,
        max_length=args.max_length,
        dtype=args.dtype,
        device=args.device,
        prefix_sharing=args.prefix_sharing,
        chat_template=args.chat_template,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
