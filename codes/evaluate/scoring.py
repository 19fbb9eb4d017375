"""Scoring every distinct conversation once: from the store where it is known, shared out over the ranks where not."""

import argparse
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from codes.common.cli import EXIT_DONE, EXIT_SOME_ITEMS_FAILED, RunFailed, progress
from codes.evaluate.api import PAIRWISE, Judge, Preferences
from codes.evaluate.ensemble_scorer import EnsembleScorer, EnsembleScores
from codes.evaluate.ranks import Ranks, join_ranks
from codes.evaluate.score_store import FOLDER, Scores, open_store
from codes.evaluate.scorers import Batch, Conversation, Pair, PartlyScored, Scorer

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

# How many batches are prepared beyond the one that is being scored.
BATCHES_AHEAD = 2


def score_conversations(scorer: Scorer, conversations: Iterable[Conversation], folder: Path | None) -> Scores:
    """Score every distinct conversation once, shared out over the ranks; each rank gets the scores of all.

    What the store in ``folder`` holds already is not scored again; with None there is no store. Batches depend on the
    conversations alone, never on what is stored or on the number of ranks, so every way to run computes the same.
    Raises RunFailed naming the row of a score that is NaN or infinite.
    """
    if isinstance(scorer, Judge):
        return scorer.rate(conversations, folder)
    if isinstance(scorer, EnsembleScorer):
        conversations = list(conversations)
        if not conversations:  # no reason to load every member
            return EnsembleScores()
        return scorer.combine(lambda member: score_conversations(member, conversations, folder))
    distinct: dict[str, Conversation] = {}
    for conversation in conversations:
        distinct.setdefault(conversation.key, conversation)
    ranks = join_ranks()
    with ranks.telling_failures():
        batches = scorer.plan(list(distinct.values()))
        if folder is None or not scorer.keeps_scores:
            known = Scores()
            found = _score_missing(scorer, batches, known, ranks, keep=lambda scores: None)
        else:
            with open_store(folder, scorer.identity, ranks) as store:
                known = store.known.only(distinct)
                found = _score_missing(scorer, batches, known, ranks, keep=store.add)
        known.add(_of_all_ranks(found, [key for key in distinct if key not in known.values], ranks))
    return known


def score_pairs(
    scorer: Scorer,
    pairs: Sequence[Pair],
    folder: Path | None,
    alone: Iterable[Conversation] = (),
) -> Scores | Preferences:
    """What gives ``pair(pair)`` for every pair: both answers' scores, or a judge's preference.

    ``alone`` are further conversations to score, where the scorer scores single ones.
    """
    if isinstance(scorer, Judge) and scorer.mode == PAIRWISE:
        return scorer.compare(pairs, folder)
    return score_conversations(scorer, [*(c for pair in pairs for c in pair[:2]), *alone], folder)


def exit_status(scorer: Scorer) -> int:
    """The status of a command that is done: some items failed where a judge gave no answer to some requests."""
    return EXIT_SOME_ITEMS_FAILED if isinstance(scorer, Judge) and scorer.failed else EXIT_DONE


def self_check_if_asked(
    args: argparse.Namespace, scorer: Scorer, conversations: Sequence[Conversation], scores: Scores
) -> dict:
    """The field ``self_check`` of a summary with --self_check, else nothing; see ``codes.evaluate.self_check``."""
    if not args.self_check:
        return {}
    from codes.evaluate.self_check import WAYS, self_check

    figures = self_check(scorer, conversations, scores, seed=args.seed)
    told = ", ".join(f"{way.replace('_', ' ')} {figures[way]:.1e}" for way in WAYS)
    logger.info("self-check of %d scores, largest differences: %s", figures["sample"], told)
    return {"self_check": figures}


def _score_missing(
    scorer: Scorer, batches: list[Batch], known: Scores, ranks: Ranks, keep: Callable[[Scores], None]
) -> Scores:
    """The scores of this rank's part of the batches, without what is known."""
    missing = [part for batch in batches if (part := batch.without(known.values)).conversations]
    own = [missing[i] for i in ranks.own_part([part.tokens or len(part.conversations) for part in missing])]
    found = Scores()
    with progress(total=sum(len(part.conversations) for part in own), unit="conversation") as bar:
        for batch in prepared_ahead(scorer.prepare, own):
            ranks.raise_failure_of_others()
            try:
                numbers = scorer.score(batch)
            except PartlyScored as problem:
                if problem.scores:
                    keep(Scores(problem.scores, set(batch.prompt_cut), set(batch.answer_cut)).only(problem.scores))
                raise
            scores = _finite_scores(batch, numbers)
            keep(scores)
            found.add(scores)
            bar.update(len(batch.conversations))
    return found


def _finite_scores(batch: Batch, numbers: list[float] | list[list[float]]) -> Scores:
    scores = Scores({}, set(batch.prompt_cut), set(batch.answer_cut))
    for conversation, found in zip(batch.conversations, numbers, strict=True):
        value, *heads = found if isinstance(found, list) else [found]
        for number in (value, *heads):
            if not math.isfinite(number):
                raise RunFailed(f"{conversation.where}: the score is {number}, not a finite number")
        scores.values[conversation.key] = value
        if heads:
            scores.heads[conversation.key] = heads
    return scores


def _of_all_ranks(found: Scores, keys: list[str], ranks: Ranks) -> Scores:
    """What all ranks have found; each conversation's score comes from one of them.

    Raises RunFailed where it comes from none or two: then the ranks did not know the same scores beforehand.
    """
    if ranks.count == 1:
        return found
    import torch

    # The scores' bits and whole numbers add up to exactly what each rank had.
    def summed_bits(rows: list[list[float]]) -> list[list[float]]:
        bits = torch.tensor(rows, dtype=torch.float64).view(torch.int64)
        ranks.sum(bits)
        return bits.view(torch.float64).tolist()

    parts = (found.values, found.prompt_cut, found.answer_cut)
    heads = [len(found.heads.get(key, ())) for key in keys]
    table = torch.tensor([*([key in part for key in keys] for part in parts), heads], dtype=torch.int64)
    ranks.sum(table)
    if (table[0] != 1).any():
        raise RunFailed(f"the ranks see different files in {FOLDER}/; they need a common file system, or --no_cache")
    cut = [{key for key, there in zip(keys, row) if there} for row in table[1:3].tolist()]
    width = int(table[3].max()) if keys else 0
    rows = summed_bits([[found.values.get(key, 0.0), *found.heads.get(key, [0.0] * width)] for key in keys])
    values = {key: row[0] for key, row in zip(keys, rows)}
    return Scores(values, *cut, {key: row[1:] for key, row in zip(keys, rows)} if width else {})


def prepared_ahead(prepare: Callable[[Item], Prepared], items: Iterable[Item]) -> Iterator[Prepared]:
    """``prepare(item)`` for each item in order, computed in a thread a few items ahead of the one that is taken."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(thread.submit(prepare, item))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
