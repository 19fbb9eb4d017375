"""Make one scorer of several reward models: a file that every evaluation command takes with --scorer ensemble.

    python -m codes.evaluate.ensemble output/rm-seed-1 output/rm-seed-2 output/rm-seed-3 --reference answers.jsonl \\
        --rule penalised -o output/ensemble.json
    python -m codes.evaluate.eval_rm all --scorer ensemble --model_path output/ensemble.json

Reward models have scales and offsets of their own, so that a mean of their scores follows the loudest one and a minimum
the lowest one. Each member therefore scores the reference answers (rows as `codes.evaluate.score` reads them, bias
pairs, or rows with chosen and rejected): answers such as will be scored. Its mean and standard deviation over the
distinct ones go into the file and put its scores on one scale ever after. What no scale takes away: training on pairs
leaves open by how much a model rates all answers to one question higher, and `minimum` and `penalised` count what
members disagree on there, too; training with --center_rewards_coefficient leaves less of it.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from codes.common.cli import command_parser, positive_float, require_files, run_main
from codes.common.conversation import is_local
from codes.common.records import (
    InputError,
    check_answers,
    check_bias_pair,
    check_question,
    file_sha256,
    iter_jsonl,
    write_json,
)
from codes.common.result_files import SCHEMA_VERSION, aligned_table, refuse_other_format
from codes.common.score_rules import RULES
from codes.evaluate.bias_summary import BIASED_FIELDS, ORIGINAL_FIELDS
from codes.evaluate.ensemble_scorer import FORMAT, LEAST_MEMBERS, Member, free_memory
from codes.evaluate.ranks import is_first_rank
from codes.evaluate.score import conversation_of
from codes.evaluate.scorer_flags import add_model_flags, check_model_flags, local_model_options
from codes.evaluate.scorers import Conversation
from codes.evaluate.scoring import score_conversations

# Scores that differ by less than this share of the largest one differ by rounding.
ROUNDING = 1e-6


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    from codes.evaluate.model_scorer import best_device, usual_dtype

    answers = list({answer.key: answer for answer in reference_answers(args.reference)}.values())
    args.dtype = args.dtype or usual_dtype(best_device(args.device))
    known = _known_weights(args.models)
    members: list[Member] = []
    for model in args.models:
        member = _measured(model, known[model], answers, args)
        _refuse_equal(model, member.weights_sha256, {m: other.weights_sha256 for m, other in zip(args.models, members)})
        members.append(member)
        free_memory()
    if not is_first_rank():
        return
    reference = {"file": args.reference.name, "sha256": file_sha256(args.reference)}
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "rule": args.rule,
        "penalty": args.penalty,
        "members": [asdict(member) for member in members],
        "reference_answers": len(answers),
        "provenance": {"dtype": args.dtype, "max_length": args.max_length, "files": [reference]},
    }
    write_json(args.output_file, result)
    rows = [(member.model, f"{member.mean:.4g}", f"{member.standard_deviation:.4g}") for member in members]
    print(f"{len(members)} members scored {len(answers)} reference answers; rule: {args.rule}")
    print(aligned_table(("member", "mean", "standard deviation"), rows))
    print(f"ensemble: {args.output_file}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.ensemble")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="reward models: folders or Hub names")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FILE", help="JSONL of answers that set the scales"
    )
    parser.add_argument("-o", "--output_file", type=Path, required=True, help="the ensemble's file (.json)")
    parser.add_argument("--rule", choices=RULES, default="mean", help="how the members' scores are made one")
    parser.add_argument(
        "--penalty",
        type=positive_float,
        default=1.0,
        help="penalised: the multiple of the members' variance that the mean loses",
    )
    add_model_flags(parser)
    args = parser.parse_args(argv)
    check_model_flags(args)
    if len(args.models) < LEAST_MEMBERS:
        raise InputError(f"MODEL: an ensemble has at least {LEAST_MEMBERS} members")
    require_files([args.reference], "--reference")
    refuse_other_format(args.output_file, FORMAT)
    return args


# --- Reference answers -------------------------------------------------------------------------------------------


def reference_answers(path: Path) -> list[Conversation]:
    """Every answer of the file. Raises InputError naming file, line and field for a row of another shape."""
    return [
        replace(answer, where=f"{path}:{number}")
        for number, row in iter_jsonl(path, _answers)
        for answer in _answers(row)
    ]


def _answers(row: dict) -> list[Conversation]:
    if ORIGINAL_FIELDS[0] in row:
        check_bias_pair(row)
        return [Conversation(row["question"], row[name]) for name in (*ORIGINAL_FIELDS, *BIASED_FIELDS)]
    if "rejected" not in row:
        return [conversation_of(row)]
    field = "question" if "question" in row else "prompt"
    check_question(row, field)
    given = {name: row.get(name) for name in ("chosen", "rejected")}
    given = {name: answers if isinstance(answers, list) else [answers] for name, answers in given.items()}
    for name in given:
        check_answers(given, name)
    return [Conversation(row[field], answer) for answers in given.values() for answer in answers]


# --- Members -----------------------------------------------------------------------------------------------------


def scale_of(scores: Sequence[float]) -> tuple[float, float] | None:
    """Mean and standard deviation (of these scores, not an estimate for others); None where they do not differ."""
    values = np.asarray(scores, dtype=float)
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return None
    return float(values.mean()), float(values.std())


def _known_weights(models: Sequence[str]) -> dict[str, str | None]:
    """Model -> hash of its weights; None for what has yet to come from the Hub. Raises InputError for equal ones."""
    from codes.evaluate.model_scorer import weights_hash

    known: dict[str, str | None] = {}
    for model in models:
        found = weights_hash(model) if is_local(model) else None
        _refuse_equal(model, found, known)
        known[model] = found
    return known


def _refuse_equal(model: str, found: str | None, others: Mapping[str, str | None]) -> None:
    """A model that counts twice would outvote the others and never disagree."""
    for other, weights in others.items():
        if model == other or (found is not None and found == weights):
            raise InputError(f"MODEL {model}: has the same weights as {other}; members must differ")


def _measured(model: str, weights_sha256: str | None, answers: Sequence[Conversation], args) -> Member:
    """The member with its scale. Raises InputError where it scores all answers alike.

    The model is let go of on return, before the next one is loaded.
    """
    from codes.evaluate.model_scorer import ModelScorer

    options = local_model_options(args) | {"prefix_sharing": args.prefix_sharing}
    scorer = ModelScorer.load(model, weights_sha256=weights_sha256, **options)
    scores = score_conversations(scorer, answers, None if args.no_cache else args.output_file.parent)
    scale = scale_of([scores[answer] for answer in answers])
    if scale is None:
        raise InputError(f"MODEL {model}: scores all {len(answers)} reference answers alike; it cannot be scaled")
    return Member(
        _as_in_file(model, args.output_file),
        None if is_local(model) else scorer.facts.get("revision"),
        scorer.identity["weights_sha256"],
        scorer.identity["template_hash"],
        *scale,
    )


def _as_in_file(model: str, file: Path) -> str:
    """A folder as seen from the ensemble's file, so that they can be moved together."""
    if not is_local(model):
        return model
    path = os.path.relpath(Path(model).resolve(), file.resolve().parent)
    return path if path.startswith(".") else f"./{path}"


if __name__ == "__main__":
    run_main(main)
