"""Add a score to each row of a JSONL file, for filtering data or best-of-n.

    python -m codes.evaluate.score --input_file answers.jsonl --output_file scored.jsonl --model_path output/my_model

A row has `prompt` (text or messages) and `response`, or `messages` ending in an assistant turn. An empty answer is
scored like any other. Rows keep their fields and their order and gain `score`, a raw logit. With --scorer ensemble they
also gain `member_scores`, what each member gives on the ensemble's scale, and with --head_scores `head_scores`, an
object of the names of the model's heads; for an ensemble of either kind also `disagreement`, their standard deviation.
A run that was stopped goes on from the scores it has, which lie in score_store/ beside the output.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from codes.common.cli import EXIT_DONE, command_parser, positive_int, require_files, run_main
from codes.common.llm import Ask
from codes.common.records import (
    FieldError,
    InputError,
    check_messages,
    check_question,
    check_text,
    file_sha256,
    iter_jsonl,
    record_key,
    write_jsonl,
)
from codes.common.run_info import write_run_info
from codes.evaluate.api import Judge
from codes.evaluate.ensemble_scorer import EnsembleScorer
from codes.evaluate.ranks import is_first_rank
from codes.evaluate.results import model_reference, refuse_other_results
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Conversation, Scorer, add_scorer_flags, check_scorer_flags, load_scorer
from codes.evaluate.scoring import exit_status, score_conversations, self_check_if_asked

if TYPE_CHECKING:
    from codes.train.reward_heads import RewardHeads

# What rows gain besides the score: from an ensemble of models, and with --head_scores.
MEMBER_FIELDS = ("member_scores", "disagreement")
HEAD_FIELDS = ("head_scores", "disagreement")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    check_scorer_flags(args)
    require_files([args.input_file], "--input_file")
    source, output = Path(args.input_file), Path(args.output_file)
    if output.exists() and output.samefile(source):
        raise InputError(f"--output_file {output}: is the input file")
    if output.is_dir():
        raise InputError(f"--output_file {output}: is a folder")
    rows = _check_input(source, (args.score_field, *_added_fields(args)))
    scorer = load_scorer(args)
    if args.head_scores and scorer.heads is None:
        raise InputError(f"--head_scores: {args.model_path} has one head, and its score is `score`")
    if isinstance(scorer, Judge):
        return score_by_judge(source, rows, scorer, output, args.score_field)
    configuration = {**scorer.identity, "data_sha256": file_sha256(source), "score_field": args.score_field}
    if args.head_scores:
        configuration["head_scores"] = True
    refuse_other_results([output], configuration)

    scores = score_file(source, scorer, None if args.no_cache else output.parent, args.rows_in_memory)
    if not is_first_rank():
        return EXIT_DONE
    first_rows = islice(iter_jsonl(source), args.rows_in_memory)
    some = [conversation_of(row, f"{source}:{number}") for number, row in first_rows] if args.self_check else []
    checked = self_check_if_asked(args, scorer, some, scores)
    facts = {"rows": rows, **scores.truncation(scores.values), **checked}
    write_run_info(output, configuration, model=model_reference(args), **scorer.facts, **facts)
    write_jsonl(output, (_scored(row, args, scorer, scores) for _, row in iter_jsonl(source)))
    print(f"{rows} rows scored, {facts['answer_truncated']} conversations with part of the answer cut: {output}")
    return EXIT_DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.score")
    parser.add_argument("--input_file", required=True, help="JSONL with prompt and response, or messages")
    parser.add_argument("--output_file", required=True, help="JSONL to write")
    parser.add_argument("--score_field", default="score", help="name of the field that is added")
    parser.add_argument(
        "--head_scores", action="store_true", help="also add the scores of the single heads of a model with several"
    )
    parser.add_argument(
        "--rows_in_memory", type=positive_int, default=10_000, help="rows that are read, sorted and scored at a time"
    )
    add_scorer_flags(parser)
    args = parser.parse_args(argv)
    if not args.score_field.strip():
        raise InputError("--score_field: is empty")
    if args.scorer == "judge" and args.judge_mode != "pointwise":
        raise InputError("--scorer judge: add --judge_mode pointwise; a judge that compares gives no row a score")
    if args.head_scores and args.scorer != "model":
        raise InputError(f"--head_scores: goes with --scorer model, not with {args.scorer}")
    if args.score_field in _added_fields(args):
        raise InputError(f"--score_field {args.score_field}: is a field that is added besides; choose another name")
    return args


def conversation_of(row: dict, where: str = "") -> Conversation:
    """The conversation that a row holds. Raises FieldError for a row of another shape."""
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list):
            raise FieldError("messages", "expected a list")
        check_messages(messages, "messages")
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise FieldError("messages", "must be a conversation that ends in an assistant turn")
        check_question({"messages": messages[:-1]}, "messages")
        return Conversation(messages[:-1], messages[-1]["content"], where)
    check_question(row, "prompt")
    if not isinstance(row.get("response"), str):
        check_text(row, "response")  # says what is wrong with it; an empty answer is an answer, as in Reward-Bench
    return Conversation(row["prompt"], row["response"], where)


def _added_fields(args: argparse.Namespace) -> tuple[str, ...]:
    if args.scorer == "ensemble":
        return MEMBER_FIELDS
    return HEAD_FIELDS if args.head_scores else ()


def _scored(row: dict, args: argparse.Namespace, scorer: Scorer, scores: Scores) -> dict:
    conversation = conversation_of(row)
    details = scores.details(conversation)
    if args.head_scores:
        details = fields_of_heads(scorer.heads, scores.heads[conversation.key])
    return {**row, args.score_field: scores[conversation], **details}


def fields_of_heads(heads: "RewardHeads", scores: list[float]) -> dict:
    """What a row gains by the scores of the single heads."""
    # torch takes seconds to import, and the scorers without heads do without.
    import torch

    from codes.common.score_rules import disagreement

    added: dict = {HEAD_FIELDS[0]: dict(zip(heads.names, scores, strict=True))}
    if not heads.are_objectives:
        added[HEAD_FIELDS[1]] = disagreement(torch.tensor(scores, dtype=torch.float64)).item()
    return added


def _check_input(source: Path, new_fields: Sequence[str]) -> int:
    """The number of rows. Raises InputError naming line and field before anything is loaded or written."""

    def check(row: dict) -> None:
        conversation_of(row)
        for field in new_fields:
            if field in row:
                remedy = "name another field with --score_field" if field == new_fields[0] else "remove it"
                raise FieldError(field, f"is there already; {remedy}")

    first_line: dict[str, int] = {}
    count = 0
    for number, row in iter_jsonl(source, check):
        count += 1
        if "id" in row and (key := record_key(source, number, row)) in first_line:
            raise InputError(f"{source}:{number}: field 'id': {key!r} stands already on line {first_line[key]}")
        if "id" in row:
            first_line[key] = number
    return count


def score_file(source: Path, scorer: Scorer, folder: Path | None, rows_in_memory: int) -> Scores:
    """The score of every conversation of the file, of which so many rows are in memory at a time."""
    if isinstance(scorer, EnsembleScorer):
        # Each member is loaded once, whatever the number of rows.
        return scorer.combine(lambda member: score_file(source, member, folder, rows_in_memory))
    rows, scores = iter_jsonl(source), Scores()
    while part := list(islice(rows, rows_in_memory)):
        conversations = [conversation_of(row, f"{source}:{number}") for number, row in part]
        scores.add(score_conversations(scorer, conversations, folder))
    return scores


def score_by_judge(source: Path, rows: int, judge: Judge, output: Path, score_field: str) -> int:
    """Write every row with its score, null where the judge gave none; journal and failures lie beside the output."""
    without_score = set()

    async def scored(row: dict, ask: Ask) -> dict:
        conversation = conversation_of(row["row"])
        asked = {"id": conversation.key, "question": conversation.question, "answer": conversation.answer}
        score = (await judge.rate_one(asked, ask))["score"]
        if score is None:
            without_score.add(row["id"])
        return {**row["row"], score_field: score}

    def numbered() -> Iterator[dict]:
        return ({"id": f"line {number}", "row": row} for number, row in iter_jsonl(source))

    judge.run(numbered, scored, output, {"score_field": score_field}, rows)
    print(f"{rows} rows, {len(without_score)} of them without a score (null): {output}")
    return exit_status(judge)


if __name__ == "__main__":
    run_main(main)
