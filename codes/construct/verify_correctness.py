"""Is the chosen answer better than each rejected one? Label records, and drop rejected answers that are not worse.

    python -m codes.construct.verify_correctness --input_file output/biased.jsonl --output_file output/verified.jsonl \\
        --backend rules

Mechanical checks come first (error texts, answers equal to another). Then, with `openai`, a judge compares each
rejected answer with the chosen one in both orders, without knowing which is which; where the orders disagree the answer
is undecided. With `rules` the mechanical checks of the injection decide, answers without provenance are taken as given,
and the verdicts say so. A record is CHOSEN_IS_BEST if a rejected answer was found worse: those stay, the others move to
`dropped` with the reason. Otherwise nothing is dropped: CHOSEN_NOT_BEST, UNDECIDED, FAILED or SKIPPED. --controls
measures the judge itself on pairs whose right verdict is known.
"""

import argparse
import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from codes.common.batch_api import BatchCounts
from codes.common.cli import command_parser, fraction, run_main
from codes.common.llm import Ask, Backend, Call, CallFailed, RunCounts
from codes.common.prompt_text import parse_verdict
from codes.common.records import CHOSEN_IS_BEST, InputError, aligned_bias_types, rewards_of, write_json
from codes.construct import api
from codes.construct.bias_checks import looks_like_error, source_name
from codes.construct.bias_definitions import BUILT_IN, Bias, add_bias_file_flag, definitions_setting, known_biases
from codes.construct.bias_rules import RULES_VERSION
from codes.construct.build_prompt import PROMPT_VERSION, fault_prompt, parse_faults, verdict_prompt
from codes.construct.verifier_controls import (
    CONTROLS_VERSION,
    control_pairs,
    controls_path,
    controls_report,
    is_control,
    report_text,
)

logger = logging.getLogger(__name__)

# Outcomes of one rejected answer. Only "worse" makes it a training example.
WORSE, NOT_WORSE, UNDECIDED, FAILED, SKIPPED = "worse", "not_worse", "undecided", "failed", "skipped"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    rows, total = api.input_rows(args)
    known = known_biases(args.bias_file)
    backend = api.make_backend(args)

    if args.controls and args.backend == "rules":
        raise InputError("--controls: measures a judge, and the rules do not judge; use --backend openai")
    controls: dict[str, list[tuple[str, str, str]]] = {}

    async def process(record: dict, ask: Ask) -> dict:
        verified = await verify_record(record, ask, backend, known, pointwise=args.pointwise)
        if is_control(str(record["id"]), args.controls, args.seed):
            controls[str(record["id"])] = await judge_controls(record, ask, backend, args.seed)
        return verified

    configuration = {"command": "verify_correctness", "prompt_version": PROMPT_VERSION, **definitions_setting(known)}
    if args.pointwise:  # controls change no record, so a run may be measured later
        configuration["pointwise"] = True
    counts = api.run(args, process, backend, configuration, rows, total)
    finished = counts.counts if isinstance(counts, BatchCounts) else counts
    if args.controls and isinstance(finished, RunCounts):
        outcomes = [outcome for row_id in sorted(controls) for outcome in controls[row_id]]
        write_controls(Path(args.output_file), outcomes, args, backend)
    return api.report(counts, args.output_file)


def write_controls(output: Path, outcomes: list[tuple[str, str, str]], args: argparse.Namespace, backend: Backend):
    """Write OUT.controls.json: how often the judge called sham and damaged answers worse."""
    rates = controls_report(outcomes)
    judge = {"judge": backend.name, "model": backend.model, "prompt_version": PROMPT_VERSION}
    judge |= {"sampling": api.sampling_settings(backend), "controls_version": CONTROLS_VERSION}
    path = controls_path(output)
    write_json(path, {"share": args.controls, "seed": args.seed, **judge, **rates})
    logger.info("%s: %s", path, report_text(rates))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.construct.verify_correctness")
    api.add_construction_flags(parser, temperature=0.0)
    parser.add_argument(
        "--controls",
        type=fraction,
        default=0.0,
        metavar="SHARE",
        help="share of the records whose chosen answer is also judged against an unchanged and a damaged version of "
        "itself, to measure the judge; the rates go to OUT.controls.json and the pairs nowhere (0.02 is a good start)",
    )
    parser.add_argument(
        "--pointwise",
        action="store_true",
        help="also ask what is wrong with each rejected answer; recorded in its verdict, decides nothing",
    )
    add_bias_file_flag(parser)
    return parser.parse_args(argv)


async def verify_record(
    record: dict, ask: Ask, backend: Backend, known: Mapping[str, Bias] = BUILT_IN, *, pointwise: bool = False
) -> dict:
    """The record with ``verify_correctness``, ``verdicts`` for what stays in ``rejected``, and ``dropped``."""
    settled = [mechanical_verdict(record, position) for position in range(len(record["rejected"]))]
    if backend.name == "rules":
        verdicts = [verdict or rules_verdict(record, position, known) for position, verdict in enumerate(settled)]
        _follow_sources(record, verdicts)
    else:
        judged = {
            position: judge_answer(record, position, ask, backend, pointwise=pointwise)
            for position, verdict in enumerate(settled)
            if verdict is None
        }
        found = dict(zip(judged, await asyncio.gather(*judged.values())))
        verdicts = [verdict or found[position] for position, verdict in enumerate(settled)]
    return with_verdicts(record, verdicts)


# --- Mechanical checks -----------------------------------------------------------------------------------------------


def mechanical_verdict(record: dict, position: int) -> dict | None:
    """A verdict that needs no judge, or None: error texts, and answers equal to the chosen or to an earlier one."""
    answer, chosen = record["rejected"][position], record["chosen"]
    if looks_like_error(chosen):
        return _mechanical(NOT_WORSE, "the chosen answer is an error text")
    if looks_like_error(answer):
        return _mechanical(NOT_WORSE, "an error text, not an answer")
    if _plain(answer) == _plain(chosen):
        return _mechanical(NOT_WORSE, "the same text as the chosen answer")
    earlier = [_plain(other) for other in record["rejected"][:position]]
    if _plain(answer) in earlier:
        return _mechanical(NOT_WORSE, f"the same text as rejected[{earlier.index(_plain(answer))}]")
    return None


def rules_verdict(record: dict, position: int, known: Mapping[str, Bias] = BUILT_IN) -> dict:
    """What the mechanical checks say about an answer: no judge reads it, and the verdict says so."""
    made = _provenance(record)[position]
    if made is None:
        bias = aligned_bias_types(record)[position]
        return _mechanical(WORSE, f"taken as given: an input answer ({bias}) without provenance; nothing was judged")
    if made.get("backend") != "rules":
        return _mechanical(SKIPPED, "an LLM wrote it, and the rules cannot judge it; verify with --backend openai")
    if made.get("command") == "gptinst":
        return _mechanical(WORSE, "it answers another record's question; nothing was judged")
    source = _source_position(record, made)
    bias = made.get("bias")
    if source is None or not isinstance(bias, str):
        return _mechanical(SKIPPED, "its provenance does not say from which answer of the record it was made, and how")
    if bias not in known:
        return _mechanical(SKIPPED, f"{bias!r} is not among the known biases; is its --bias_file missing?")
    problems = known[bias].injection_problems(record["rejected"][source], record["rejected"][position])
    if problems:
        return _mechanical(NOT_WORSE, f"more than the bias's trait may have changed: {'; '.join(problems)}")
    return _mechanical(WORSE, f"rejected[{source}] with nothing but the bias's trait added")


def _follow_sources(record: dict, verdicts: list[dict]) -> None:
    """An answer made from one that is not worse is not worse either."""
    for position, made in enumerate(_provenance(record)):
        source = _source_position(record, made) if made else None
        if source is not None and verdicts[position]["outcome"] == WORSE and verdicts[source]["outcome"] != WORSE:
            verdicts[position] = _mechanical(
                verdicts[source]["outcome"], f"made from rejected[{source}]: {verdicts[source]['reason']}"
            )


def _source_position(record: dict, made: dict) -> int | None:
    names = [source_name(answer) for answer in record["rejected"]]
    return names.index(made["source"]) if made.get("source") in names else None


def _provenance(record: dict) -> list[dict | None]:
    return record.get("provenance", [None] * len(record["rejected"]))


def _mechanical(outcome: str, reason: str) -> dict:
    return {"judge": "rules", "rules_version": RULES_VERSION, "outcome": outcome, "reason": reason}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


# --- The judge -------------------------------------------------------------------------------------------------------


async def judge_answer(record: dict, position: int, ask: Ask, backend: Backend, *, pointwise: bool = False) -> dict:
    """One rejected answer against the chosen one, in both orders, as two requests that say nothing about either."""
    rejected = record["rejected"][position]
    asked = [_judge_order(record, rejected, first, ask) for first in ("chosen", "rejected")]
    *orders, faults = await asyncio.gather(*asked, _faults(record, rejected, ask) if pointwise else _nothing())
    outcome = combined_outcome([order["better"] for order in orders])
    return {
        "judge": backend.name,
        "model": backend.model,
        "prompt_version": PROMPT_VERSION,
        "sampling": api.sampling_settings(backend),
        "outcome": outcome,
        "reason": _REASONS[outcome],
        "orders": orders,
        **({"pointwise": faults} if pointwise else {}),
    }


async def _nothing() -> None:
    return None


async def _faults(record: dict, rejected: str, ask: Ask) -> dict:
    """What a judge who sees nothing but the answer finds wrong with it; null where there is no such reply."""
    key = f"{record['id']}/faults {source_name(rejected)}/0"
    try:
        reply = (
            await ask(Call(key, fault_prompt(record["question"], rejected), {"kind": "faults"}), _faults_problem)
        ).text
    except CallFailed:
        return {"reply": None, "faults": None}
    return {"reply": reply, "faults": parse_faults(reply)}


def _faults_problem(reply: str) -> str | None:
    return None if parse_faults(reply) is not None else f"the reply lists no faults: {' '.join(reply.split())[:120]!r}"


async def judge_controls(record: dict, ask: Ask, backend: Backend, seed: int) -> list[tuple[str, str, str]]:
    """(group, kind, outcome) of the record's control pairs, judged as its rejected answers are."""
    pairs = control_pairs(record, seed)
    judged = (judge_answer({**record, "rejected": [pair.answer]}, 0, ask, backend) for pair in pairs)
    verdicts = await asyncio.gather(*judged)
    return [(pair.group, pair.kind, verdict["outcome"]) for pair, verdict in zip(pairs, verdicts)]


async def _judge_order(record: dict, rejected: str, first: str, ask: Ask) -> dict:
    """``better`` is chosen, rejected, tie, unparsable or failed."""
    chosen = record["chosen"]
    answers = (chosen, rejected) if first == "chosen" else (rejected, chosen)
    second = "rejected" if first == "chosen" else "chosen"
    row_id = str(record["id"])
    what = f"verdict {source_name(rejected)} {first} first"
    call = Call(f"{row_id}/{what}/0", verdict_prompt(record["question"], *answers), {"kind": "verdict", "first": first})
    shown = {"A": first, "B": second}
    try:
        reply = (await ask(call, _verdict_problem)).text
    except CallFailed as failure:
        unparsable = failure.kind == "check_failed"
        return {**shown, "reply": None, "better": "unparsable" if unparsable else "failed"}
    verdict = parse_verdict(reply)
    return {**shown, "reply": reply, "better": shown.get(verdict, "tie")}


def _verdict_problem(reply: str) -> str | None:
    return None if parse_verdict(reply) else f"the judge's reply is no verdict: {' '.join(reply.split())[:120]!r}"


def combined_outcome(better: Sequence[str]) -> str:
    """The outcome of the two orders: each says chosen, rejected, tie, unparsable or failed."""
    if any(order in ("unparsable", "failed") for order in better):
        return FAILED
    if better[0] != better[1]:
        return UNDECIDED
    return WORSE if better[0] == "chosen" else NOT_WORSE


_REASONS = {
    WORSE: "the judge prefers the chosen answer in both orders",
    NOT_WORSE: "the judge does not prefer the chosen answer in either order",
    UNDECIDED: "the judge's verdict depends on the order",
    FAILED: "no verdict in at least one order",
}


# --- The record ------------------------------------------------------------------------------------------------------


def record_outcome(outcomes: Sequence[str]) -> str:
    """``verify_correctness`` of a record from the outcomes of its rejected answers."""
    if WORSE in outcomes:
        return CHOSEN_IS_BEST
    if FAILED in outcomes:
        return "FAILED"
    if UNDECIDED in outcomes:
        return "UNDECIDED"
    return "SKIPPED" if SKIPPED in outcomes else "CHOSEN_NOT_BEST"


def with_verdicts(record: dict, verdicts: list[dict]) -> dict:
    """The record labelled; where an answer was found worse, those that were not move to ``dropped``."""
    outcome = record_outcome([verdict["outcome"] for verdict in verdicts])
    biases, provenance = aligned_bias_types(record), _provenance(record)
    everything = range(len(record["rejected"]))
    kept = [i for i in everything if outcome != CHOSEN_IS_BEST or verdicts[i]["outcome"] == WORSE]
    dropped = [
        {
            "position": i,
            "answer": record["rejected"][i],
            "bias_type": biases[i],
            "provenance": provenance[i],
            "reason": verdicts[i]["reason"],
            "verdict": verdicts[i],
        }
        for i in everything
        if i not in kept
    ]
    labelled = {
        **record,
        "rejected": [record["rejected"][i] for i in kept],
        "bias_type": [biases[i] for i in kept],
        "verify_correctness": outcome,
        "verdicts": [verdicts[i] for i in kept],
        "provenance": [provenance[i] for i in kept],
        **rewards_of(record, kept),
    }
    before = record.get("dropped") if isinstance(record.get("dropped"), list) else []
    return {**labelled, "dropped": [*before, *dropped]} if before or dropped else labelled


if __name__ == "__main__":
    run_main(main)
