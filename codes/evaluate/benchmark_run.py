"""From the rows of a benchmark to its result files: what eval_benchmark and eval_reward_bench do alike."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codes.common.records import write_json, write_jsonl
from codes.common.result_files import SCHEMA_VERSION
from codes.common.run_info import write_run_info
from codes.evaluate.api import Preferences
from codes.evaluate.benchmark import AnswerScores, BenchmarkRow
from codes.evaluate.judge_biases import without_verdict
from codes.evaluate.ranks import is_first_rank
from codes.evaluate.results import model_name, model_reference, refuse_other_results, refuse_other_scorer, result_folder
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Pair, Scorer, load_scorer
from codes.evaluate.scoring import score_pairs, self_check_if_asked
from codes.evaluate.stored_temperature import with_probabilities


@dataclass(frozen=True)
class ResultFiles:
    """Where the results of one benchmark (``stem``) and one model (``name``) go."""

    folder: Path
    name: str
    stem: str

    @classmethod
    def of(cls, args: argparse.Namespace, stem: str) -> "ResultFiles":
        """Raises InputError where the flags name no folder that can be written."""
        name = model_name(args)
        return cls(result_folder(args, name), name, stem)

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.stem}_evaluation_{self.name}.jsonl"

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.stem}_summary_{self.name}.json"


@dataclass(frozen=True)
class ScoredRows:
    """Scores by row, what was checked on the way (fields of the summary), and what was cut (for the provenance)."""

    scores: list[AnswerScores]
    checks: dict
    truncation: dict[str, int]


def load_scorer_for(args: argparse.Namespace, files: ResultFiles, data: dict) -> tuple[Scorer, dict]:
    """The scorer, and the configuration of its results on this data.

    Raises InputError where the folder has results of another configuration or of another scorer.
    """
    scorer = load_scorer(args)
    configuration = {**scorer.identity, **data}
    refuse_other_results([files.rows, files.summary], configuration)
    refuse_other_scorer(files.folder, scorer.identity)
    return scorer, configuration


def score_rows(
    args: argparse.Namespace, scorer: Scorer, rows: Sequence[BenchmarkRow], folder: Path
) -> ScoredRows | None:
    """Every chosen answer against every rejected one; None on the ranks that write nothing."""
    pairs = [row.pairs() for row in rows]
    flat = [pair for of_row in pairs for of_chosen in of_row for pair in of_chosen]
    judged = score_pairs(scorer, flat, None if args.no_cache else folder)
    if not is_first_rank():
        return None
    conversations = [conversation for row in rows for conversation in row.conversations]
    checks = self_check_if_asked(args, scorer, conversations, judged)
    if args.scorer == "judge":
        checks["without_verdict"] = without_verdict(judged, flat)
    scores = [_answer_scores(row, of_row, judged) for row, of_row in zip(rows, pairs)]
    return ScoredRows(scores, checks, judged.truncation(c.key for c in conversations))


def _answer_scores(row: BenchmarkRow, pairs: list[list[Pair]], judged: Scores | Preferences) -> AnswerScores:
    compared = [[judged.pair(pair) for pair in of_chosen] for of_chosen in pairs]
    if isinstance(judged, Preferences):
        # One comparison is as good as two scores; several do not give an answer one score.
        one = compared[0][0] if len(row.conversations) == 2 else None
        return AnswerScores(one and one[:1], one and one[1:], compared)
    values, count = [judged[conversation] for conversation in row.conversations], len(row.answers.chosen)
    return AnswerScores(tuple(values[:count]), tuple(values[count:]), compared)


def write_results(
    args: argparse.Namespace,
    files: ResultFiles,
    scorer: Scorer,
    configuration: dict,
    rows: Iterable[dict],
    figures: dict,
    facts: dict,
) -> dict:
    """Write rows, provenance and summary, whose provenance also holds ``facts``; returns the summary."""
    provenance = {**scorer.facts, **configuration, **facts}
    summary = {"schema_version": SCHEMA_VERSION, "eval_model": files.name, **figures, "provenance": provenance}
    write_run_info(files.rows, configuration, model=model_reference(args), **scorer.facts, **facts)
    write_jsonl(files.rows, with_probabilities(rows, scorer.facts))
    write_json(files.summary, summary)
    return summary
