"""Everything that can score a conversation; ``codes.evaluate.scoring`` makes it score each distinct one once.

A scorer has an ``identity`` (what decides its scores, as far as it is not the conversation), ``facts`` for readers of
the results, and three steps: ``plan`` puts conversations into batches, ``prepare`` does for one what can be done ahead,
``score`` gives one number for each conversation of a batch.
``length`` and ``random`` need neither model nor torch; the model's scorer is imported only when it is asked for.
"""

import argparse
import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

from codes.common.cli import RunFailed, random_seed
from codes.common.records import InputError, Question, content_hash
from codes.evaluate import scorer_flags

# Of a scorer that needs no model; several ranks share them out.
CONVERSATIONS_AT_A_TIME = 256
SCORERS = ("model", "ensemble", "dpo", "server", "judge", "length", "random")


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


class Pair(NamedTuple):
    """Two answers to one question, in the order of their row; ``crowd`` is the one that most people are said to prefer.

    Only a judge can be told about a crowd.
    """

    first: Conversation
    second: Conversation
    crowd: str | None = None


@dataclass(frozen=True)
class Batch:
    """Conversations to score together, and about how many tokens that takes, where the scorer knows.

    For a model they come with their texts (the prompt's and the whole) and, once prepared, with their token ids,
    how many of these are the prompt's, and which of them were cut to max_length.
    """

    conversations: list[Conversation]
    tokens: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    prompt_cut: frozenset[str] = frozenset()
    answer_cut: frozenset[str] = frozenset()

    def without(self, keys: Container[str]) -> "Batch":
        """The part of the batch that has other conversation keys, in order, yet to be prepared."""
        kept = [position for position, conversation in enumerate(self.conversations) if conversation.key not in keys]
        if len(kept) == len(self.conversations):
            return self
        texts = [self.texts[i] for i in kept] if self.texts else []
        return Batch([self.conversations[i] for i in kept], self.tokens, texts)


class PartlyScored(RunFailed):
    """Some conversations of a batch could not be scored; ``scores`` holds the others', by conversation key."""

    def __init__(self, problem: str, scores: dict[str, float]):
        super().__init__(problem)
        self.scores = scores


class Scorer(Protocol):
    identity: dict
    facts: dict
    # Whether a score is dear enough to be kept in a store.
    keeps_scores: bool

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        """Batches that depend on the conversations alone. Raises InputError for one that cannot be scored."""

    def prepare(self, batch: Batch) -> Batch:
        """What can be done while another batch is scored; called in another thread."""

    def score(self, batch: Batch) -> list[float] | list[list[float]]:
        """One number a conversation of a prepared batch, in order; where a model has several heads, the score and then
        those of its heads.
        """


class _TextScorer:
    """A scorer that needs no model: a number from each conversation by itself."""

    keeps_scores = False
    facts: ClassVar[dict] = {}

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        starts = range(0, len(conversations), CONVERSATIONS_AT_A_TIME)
        return [Batch(list(conversations[start : start + CONVERSATIONS_AT_A_TIME])) for start in starts]

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def score(self, batch: Batch) -> list[float]:
        return [self.score_one(conversation) for conversation in batch.conversations]

    def score_one(self, conversation: Conversation) -> float:
        raise NotImplementedError


class LengthScorer(_TextScorer):
    """The number of characters of the answer: the baseline that every reward model has to beat."""

    identity: ClassVar[dict] = {"scorer": "length"}

    def score_one(self, conversation: Conversation) -> float:
        return float(len(conversation.answer))


class RandomScorer(_TextScorer):
    """A number from [0, 1) drawn from the seed and the conversation alone, whatever the order."""

    def __init__(self, seed: int) -> None:
        self.identity = {"scorer": "random", "seed": seed}

    def score_one(self, conversation: Conversation) -> float:
        digest = hashlib.sha256(f"{self.identity['seed']}:{conversation.key}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


# --- Command line ------------------------------------------------------------------------------------------------


def add_scorer_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every evaluation command shares."""
    parser.add_argument(
        "--model_path", help="reward model, or policy for dpo: a folder or a Hub name; or an ensemble's file"
    )
    parser.add_argument(
        "--model_name",
        help="name in result files (default: the last part of --model_path, cleaned); with --scorer server and judge "
        "also the name by which the server knows its model",
    )
    parser.add_argument("--scorer", choices=SCORERS, default="model", help="what gives the scores")
    scorer_flags.add_model_flags(parser)
    parser.add_argument(
        "--self_check",
        action="store_true",
        help="score a sample again alone, padded on the left and without sharing; too large a difference is an error",
    )
    scorer_flags.add_flags(parser)
    parser.add_argument(
        "--seed", type=random_seed, default=42, help="of the random scorer and of the bootstrap intervals"
    )


def check_scorer_flags(args: argparse.Namespace) -> None:
    """Raise InputError where the flags do not go together; before anything is read or loaded."""
    if args.scorer == "model" and not args.model_path:
        raise InputError("--model_path is needed with --scorer model")
    if args.self_check and args.scorer != "model":
        raise InputError(f"--self_check: there is nothing to check in --scorer {args.scorer} itself, only in a model")
    scorer_flags.check_model_flags(args)
    scorer_flags.check_flags(args)


def gives_logits(args: argparse.Namespace) -> bool:
    """Whether the scores are logits of a preference model, as the refinement-aware figures need.

    What a policy without a reference gives is a likelihood, and an ensemble standardises: a sigmoid says nothing there.
    """
    return args.scorer in ("model", "server") or (args.scorer == "dpo" and args.ref_model != scorer_flags.NO_REFERENCE)


def load_scorer(args: argparse.Namespace) -> Scorer:
    """The scorer that the flags ask for."""
    if args.scorer == "length":
        return LengthScorer()
    if args.scorer == "random":
        return RandomScorer(args.seed)
    if args.scorer != "model":
        return scorer_flags.load(args)
    # torch and transformers take seconds to import, and the other scorers do without.
    from codes.evaluate.model_scorer import ModelScorer

    return ModelScorer.load(
        args.model_path, prefix_sharing=args.prefix_sharing, **scorer_flags.local_model_options(args)
    )
