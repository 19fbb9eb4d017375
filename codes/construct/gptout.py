"""Inject biases: append wrong but attractive answers to the rejected answers of train records.

    python -m codes.construct.gptout --input_file data/train/sample.jsonl --output_file output/biased.jsonl \\
        --backend rules --biases_per_item 2

Each record gets --biases_per_item biases, drawn from the seed and its id alone. With `openai`, an LLM writes each
answer: plausible, flawed in a drawn way, carrying the bias. With `rules`, the record's first rejected answer gets the
bias's trait and stays as wrong as it was. Input answers stay first; `bias_type` and `provenance` are aligned with
`rejected`. Stopped or failed runs are completed by the same command.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from codes.common.cli import command_parser, positive_int, run_main
from codes.common.llm import Answer, Ask, Backend, Call, CallFailed, run_rows
from codes.common.records import INJECTED_BIASES, InputError
from codes.construct import api
from codes.construct.bias_checks import (
    check_injection,
    dose,
    looks_like_error,
    reply_problem,
    source_name,
    trait_problems,
)
from codes.construct.bias_rules import rules_rng
from codes.construct.build_prompt import FLAWS, PROMPT_VERSION, as_text, generate_prompt


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.biases_per_item > len(args.bias_types):
        raise InputError(
            f"--biases_per_item {args.biases_per_item}: only {len(args.bias_types)} different --bias_types to draw from"
        )
    rows, total = api.input_rows(args)
    backend = api.make_backend(args)

    async def process(record: dict, ask: Ask) -> dict:
        return await inject_biases(record, ask, backend, args.bias_types, args.biases_per_item, args.seed)

    configuration = {
        "command": "gptout",
        "prompt_version": PROMPT_VERSION,
        "bias_types": args.bias_types,
        "biases_per_item": args.biases_per_item,
        "seed": args.seed,
    }
    counts = run_rows(
        rows,
        process,
        backend,
        Path(args.output_file),
        configuration,
        concurrency=args.concurrency,
        total=total,
        desc="gptout",
    )
    return api.report(counts, args.output_file)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.construct.gptout")
    api.add_construction_flags(parser, temperature=0.7)
    parser.add_argument("--biases_per_item", type=positive_int, default=2, metavar="N", help="biased answers a record")
    parser.add_argument(
        "--bias_types",
        nargs="+",
        choices=INJECTED_BIASES,
        default=list(INJECTED_BIASES),
        metavar="BIAS",
        help=f"biases to draw from: {' '.join(INJECTED_BIASES)}",
    )
    parser.add_argument(
        "--show_prompt", action=ShowPrompt, choices=INJECTED_BIASES, help="print the prompt for one bias and leave"
    )
    args = parser.parse_args(argv)
    args.bias_types = [bias for bias in INJECTED_BIASES if bias in args.bias_types]  # the order given must not matter
    return args


class ShowPrompt(argparse.Action):
    """Prints the prompt with placeholders where the record's texts go, once, with every flaw that may be drawn."""

    def __call__(self, parser, namespace, bias, option_string=None):
        messages = generate_prompt("{question}", "{chosen}", bias, next(iter(FLAWS)))
        print(as_text(messages))
        print("\nThe way to be worse is drawn for each record and bias from:")
        print("\n".join(f"- {name}: {text}" for name, text in FLAWS.items()))
        print(f"(prompt version {PROMPT_VERSION})")
        sys.stdout.flush()
        parser.exit()


def draw_biases(seed: int, row_id: str, bias_types: Sequence[str], count: int) -> list[str]:
    """``count`` different biases; the draw depends on the seed, the row's id and the list alone."""
    return rules_rng(seed, row_id, "biases").sample(list(bias_types), count)


def draw_flaw(seed: int, row_id: str, bias: str) -> str:
    """The way to be wrong that an LLM is asked for."""
    return rules_rng(seed, row_id, f"flaw of {bias}").choice(sorted(FLAWS))


async def inject_biases(
    record: dict, ask: Ask, backend: Backend, bias_types: Sequence[str], count: int, seed: int
) -> dict:
    """The record with a biased answer appended for each drawn bias; one whose call failed is left to a rerun."""
    row_id = str(record["id"])
    biases = draw_biases(seed, row_id, bias_types, count)
    source = next((answer for answer in record["rejected"] if not looks_like_error(answer)), record["rejected"][0])
    flaws = {bias: None if backend.name == "rules" else draw_flaw(seed, row_id, bias) for bias in biases}
    calls = [injection_call(record, source, bias, flaws[bias], seed) for bias in biases]
    outcomes = await asyncio.gather(*(_answer_or_none(ask, call) for call in calls))
    answered = [(bias, outcome.text) for bias, outcome in zip(biases, outcomes) if outcome is not None]
    provenance = [injection_provenance(record, source, text, bias, flaws[bias], backend) for bias, text in answered]
    return api.with_rejected(record, [text for _, text in answered], [bias for bias, _ in answered], provenance)


def injection_call(record: dict, source: str, bias: str, flaw: str | None, seed: int) -> Call:
    """The request for one biased answer: the prompt for an LLM, or (``flaw`` None) the task of the rules backend."""
    row_id = str(record["id"])
    task = {"kind": "inject", "id": row_id, "seed": seed, "bias": bias, "flaw": flaw}
    if flaw is None:
        return Call(f"{row_id}/{bias}/0", [], {**task, "answer": source})
    return Call(f"{row_id}/{bias}/0", generate_prompt(record["question"], record["chosen"], bias, flaw), task)


async def _answer_or_none(ask: Ask, call: Call) -> Answer | None:
    try:
        return await ask(call, reply_problem if call.messages else None)
    except CallFailed:  # listed by the runner
        return None


def injection_provenance(record: dict, source: str, answer: str, bias: str, flaw: str | None, backend: Backend) -> dict:
    """Who made a biased answer, how, and what the mechanical checks found; ``source`` only where one was rewritten."""
    rewritten = flaw is None
    plain = source if rewritten else record["chosen"]
    problems = check_injection(bias, source, answer) if rewritten else trait_problems(bias, answer, plain)
    return {
        "command": "gptout",
        "backend": backend.name,
        "model": backend.model,
        "prompt_version": None if rewritten else PROMPT_VERSION,
        "bias": bias,
        "flaw": flaw,
        "sampling": api.sampling_settings(backend),
        "source": source_name(source) if rewritten else None,
        "dose": dose(bias, plain, answer),
        "checks": problems,
    }


if __name__ == "__main__":
    run_main(main)
