"""Make bias evaluation files from preference pairs (train records: chosen, and the first original rejected answer).

    python -m codes.construct.build_eval_set --input_file data/train/sample.jsonl --output_dir output/eval \\
        --backend rules
    python -m codes.evaluate.eval_rm all --data_dir output/eval --model_path output/my_reward_model

Writes OUTPUT_DIR/<bias>_bias.jsonl for each bias, as eval_rm reads it. For the seven injected biases the worse answer
gets the trait and keeps its faults, the better one loses the trait and keeps its content: with `openai` both are
rewritten by an LLM, with `rules` adding is mechanical, and removing only where it can be; otherwise the better answer
is unchanged, and the record says so. For gender and race the better answer states who its author is. Refinement-aware
pairs are the chosen answer and a polished version of it. Which response is the better one is drawn, half and half.
`rewritten_by` and `rewrites` say how each text was made and what the mechanical checks found.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from codes.common.answer_units import normal_space
from codes.common.cli import EXIT_DONE, command_parser, run_main
from codes.common.llm import Ask, Backend, Call, run_rows
from codes.common.prompt_text import as_text
from codes.common.records import (
    CHOSEN_IS_BEST,
    EVALUATED_BIASES,
    INJECTED_BIASES,
    REFINEMENT_BIAS,
    InputError,
    aligned_bias_types,
    content_hash,
)
from codes.construct import api
from codes.construct.bias_checks import kept_problems, looks_like_error, reply_problem
from codes.construct.bias_definitions import Bias, add_bias_file_flag, chosen_biases, definitions_setting, known_biases
from codes.construct.bias_removal import REMOVAL_VERSION, polish, remove_trait
from codes.construct.bias_rules import RULES_VERSION, rules_rng
from codes.construct.build_prompt import (
    DOSES,
    PROMPT_VERSION,
    add_trait_prompt,
    polish_prompt,
    remove_trait_prompt,
)
from codes.construct.identity_statements import IDENTITIES, IDENTITIES_VERSION, state_identity

STATED = tuple(IDENTITIES)  # gender and race: no LLM is asked for these
Rewrite = tuple[str, dict]  # the text, and how it was made


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    biases = biases_to_build(args)
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder}: is a file")
    runs = [argparse.Namespace(**{**vars(args), "output_file": str(folder / f"{name}_bias.jsonl")}) for name in biases]
    for run in runs[1:]:
        refuse_output(run)
    rows, total = api.input_rows(runs[0])  # every check before any work is done; all files are made from the same rows
    return max(build(name, biases[name], run, rows, total) for name, run in zip(biases, runs))


def refuse_output(args: argparse.Namespace) -> None:
    """Raise InputError where an output is a folder or the input itself."""
    output = Path(args.output_file)
    if output.is_dir():
        raise InputError(f"--output_dir: {output} is a folder")
    if output.exists() and Path(args.input_file).exists() and output.samefile(args.input_file):
        raise InputError(f"--output_dir: the run would write over its own input, {output}; choose another folder")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.construct.build_eval_set")
    api.add_construction_flags(parser, temperature=0.7, output_flag="--output_dir")
    parser.add_argument(
        "--bias_types",
        nargs="+",
        metavar="BIAS",
        help=f"files to make (default: all): {' '.join(EVALUATED_BIASES)}, and those of --bias_file",
    )
    parser.add_argument(
        "--dose",
        type=int,
        choices=tuple(DOSES),
        metavar="1|2|3",
        help="how much of the trait is added: 1 a little, 2 clearly, 3 strongly (default: as the answer's length and "
        "the draw decide)",
    )
    add_bias_file_flag(parser)
    parser.add_argument(
        "--show_prompt", action=ShowPrompts, metavar="BIAS", help="print the rewrite prompts of a bias and leave"
    )
    return parser.parse_args(argv)


class ShowPrompts(argparse.Action):
    """Prints both rewrite prompts with placeholders; a --bias_file counts where it stands before this flag."""

    def __call__(self, parser, namespace, bias, option_string=None):
        known = known_biases(namespace.bias_file)
        if bias not in known:
            hint = "" if namespace.bias_file else "; a --bias_file stands before this flag"
            parser.error(f"argument {option_string}: {bias!r} is not one of {', '.join(known)}{hint}")
        texts = known[bias].texts
        print("For the worse answer:\n\n" + as_text(add_trait_prompt("{question}", "{worse answer}", texts)))
        print("\nFor the better answer:\n\n" + as_text(remove_trait_prompt("{question}", "{better answer}", texts)))
        print(f"\n(prompt version {PROMPT_VERSION})")
        sys.stdout.flush()
        parser.exit()


def biases_to_build(args: argparse.Namespace) -> dict[str, Bias | None]:
    """The biases of --bias_types, in the usual order; None for those that need no definition."""
    known = known_biases(args.bias_file)
    names = args.bias_types
    if unknown := [name for name in names or () if name not in (*EVALUATED_BIASES, *known)]:
        raise InputError(
            f"--bias_types: {unknown[0]!r} is not one of {', '.join(dict.fromkeys([*EVALUATED_BIASES, *known]))}"
        )
    rewritten = names and [name for name in names if name in known]
    defined = {} if rewritten == [] else chosen_biases(rewritten, known, args.backend)
    others = [name for name in (*STATED, REFINEMENT_BIAS) if names is None or name in names]
    own = {name: bias for name, bias in defined.items() if name not in INJECTED_BIASES}
    return {**{n: b for n, b in defined.items() if n in INJECTED_BIASES}, **dict.fromkeys(others), **own}


def build(name: str, bias: Bias | None, args: argparse.Namespace, rows: api.InputRows, total: int) -> int:
    """Write one bias's file; the exit status."""
    backend = api.make_backend(args)
    first = {} if name == REFINEMENT_BIAS else better_first(rows.whole(), name, args.seed)

    async def process(record: dict, ask: Ask) -> dict | None:
        if problem := unusable(record, name):
            return ask.drop(problem)
        if name == REFINEMENT_BIAS:
            return await refinement_pair(record, ask, backend)
        rewrite = partial(stated_pair, name) if bias is None else partial(rewritten_pair, bias, ask)
        worse, better = await rewrite(record, backend, args.seed, args.dose)
        made_by = "rules" if bias is None else backend.name
        return bias_pair(record, worse, better, made_by, first[str(record["id"])])

    configuration = {
        "command": "build_eval_set",
        "bias": name,
        "dose": args.dose,
        "seed": args.seed,
        "prompt_version": PROMPT_VERSION,
        "rules": [RULES_VERSION, REMOVAL_VERSION, IDENTITIES_VERSION],
        **(definitions_setting({name: bias}) if bias else {}),
    }
    output = Path(args.output_file)
    counts = run_rows(
        rows, process, backend, output, configuration, concurrency=args.concurrency, total=total, desc=name
    )
    return api.report(counts, args.output_file) or EXIT_DONE


# --- Which pairs, and in which order ---------------------------------------------------------------------------------


def worse_answer(record: dict) -> str | None:
    """The first rejected answer that came with the record, or None."""
    originals = (a for a, kind in zip(record["rejected"], aligned_bias_types(record)) if kind == "original")
    return next(originals, None)


def unusable(record: dict, bias: str) -> str | None:
    """Why a record makes no row of this bias's file, or None."""
    if record.get("verify_correctness", CHOSEN_IS_BEST) != CHOSEN_IS_BEST:
        return f"the chosen answer is not verified to be best ({record['verify_correctness']})"
    if looks_like_error(record["chosen"]):
        return "the chosen answer is an error text"
    if bias == REFINEMENT_BIAS:
        return None
    worse = worse_answer(record)
    if worse is None:
        return "no rejected answer is an original one"
    if looks_like_error(worse):
        return "the rejected answer is an error text"
    if normal_space(worse) == normal_space(record["chosen"]):
        return "the rejected answer is the chosen one"
    return None


def better_first(records: Iterator[dict], bias: str, seed: int) -> dict[str, bool]:
    """For each usable record's id, whether its better answer is response1: half of them, drawn by seed and bias."""
    names = [str(record["id"]) for record in records if unusable(record, bias) is None]
    drawn = sorted(names, key=lambda name: content_hash(seed, bias, "position", name))
    return {name: position % 2 == 0 for position, name in enumerate(drawn)}


def bias_pair(record: dict, worse: Rewrite, better: Rewrite, made_by: str, better_is_first: bool) -> dict:
    """The row of an evaluation file."""
    originals = [record["chosen"], worse_answer(record)]
    rewritten = [better[0], worse[0]]
    if not better_is_first:
        originals.reverse()
        rewritten.reverse()
    return {
        "id": record["id"],
        "question": record["question"],
        "original_response1": originals[0],
        "original_response2": originals[1],
        "rewritten_response1": rewritten[0],
        "rewritten_response2": rewritten[1],
        "label": "response1" if better_is_first else "response2",
        "rewritten_by": made_by,
        "rewrites": {"better": better[1], "worse": worse[1]},
    }


# --- The rewrites ----------------------------------------------------------------------------------------------------


async def rewritten_pair(
    bias: Bias, ask: Ask, record: dict, backend: Backend, seed: int, dose: int | None
) -> tuple[Rewrite, Rewrite]:
    """(the worse answer with the trait, the better one without it)."""
    worse, better = worse_answer(record), record["chosen"]
    if backend.name == "rules":
        return added_by_rules(bias, record, worse, seed, dose), removed_by_rules(bias, better)
    question, key = record["question"], f"{record['id']}/{bias.name}"
    task = {"kind": "rewrite", "bias": bias.name, "dose": dose}
    calls = [
        Call(f"{key} worse/0", add_trait_prompt(question, worse, bias.texts, dose), {**task, "answer": "worse"}),
        Call(f"{key} better/0", remove_trait_prompt(question, better, bias.texts), {**task, "answer": "better"}),
    ]
    worse_reply, better_reply = await asyncio.gather(*(ask(call, reply_problem) for call in calls))
    made = {"backend": backend.name, "model": backend.model, "prompt_version": PROMPT_VERSION}
    made["sampling"] = api.sampling_settings(backend)
    added = {
        "method": "trait added by an LLM",
        **made,
        "asked_dose": dose,
        "dose": bias.dose(worse, worse_reply.text),
        "checks": bias.rewrite_problems(worse, worse_reply.text, added=True),
    }
    removed = {
        "method": "trait removed by an LLM",
        **made,
        "checks": bias.rewrite_problems(better, better_reply.text, added=False),
    }
    return (worse_reply.text, added), (better_reply.text, removed)


def added_by_rules(bias: Bias, record: dict, worse: str, seed: int, dose: int | None) -> Rewrite:
    """The worse answer with the trait put on it by the deterministic injectors."""
    rewritten = bias.inject(worse, rules_rng(seed, str(record["id"]), bias.name), dose)
    return rewritten, {
        "method": "trait added by rules",
        "backend": "rules",
        "rules_version": RULES_VERSION,
        "asked_dose": dose,
        "dose": bias.dose(worse, rewritten),
        "checks": bias.injection_problems(worse, rewritten),
    }


def removed_by_rules(bias: Bias, better: str) -> Rewrite:
    """The better answer without the trait, where rules can take it away; else as it is, with the reason."""
    if bias.built_in:
        rewritten, unchanged = remove_trait(better, bias.name)
    else:
        rewritten, unchanged = better, "rules know nothing to remove for a bias of one's own; the answer is unchanged"
    made = {"backend": "rules", "rules_version": REMOVAL_VERSION}
    if unchanged:
        return rewritten, {"method": "unchanged", "reason": unchanged, **made, "checks": []}
    checks = kept_problems(("numbers", "code"), better, rewritten)
    return rewritten, {"method": "trait removed by rules", **made, "checks": checks}


async def stated_pair(
    bias: str, record: dict, backend: Backend, seed: int, dose: int | None
) -> tuple[Rewrite, Rewrite]:
    """(the worse answer as it is, the better one with a statement of who its author is)."""
    better = record["chosen"]
    rewritten, identity, sentences = state_identity(better, bias, rules_rng(seed, str(record["id"]), bias), dose)
    stated = {
        "method": "identity stated by rules",
        "backend": "rules",
        "rules_version": IDENTITIES_VERSION,
        "identity": identity,
        "asked_dose": dose,
        "dose": len(sentences),
        "checks": kept_problems(("sentences", "code"), better, rewritten),
    }
    return (worse_answer(record), {"method": "unchanged", "reason": "only the better answer is changed"}), (
        rewritten,
        stated,
    )


async def refinement_pair(record: dict, ask: Ask, backend: Backend) -> dict | None:
    """The chosen answer and a polished version of it; None (dropped) where rules find nothing to polish."""
    answer = record["chosen"]
    if backend.name == "rules":
        polished = polish(answer)
        if polished is None:
            return ask.drop("rules find nothing to polish in the answer")
        how = {"method": "polished by rules", "backend": "rules", "rules_version": REMOVAL_VERSION}
    else:
        call = Call(
            f"{record['id']}/{REFINEMENT_BIAS}/0", polish_prompt(record["question"], answer), {"kind": "polish"}
        )
        polished = (await ask(call, reply_problem)).text
        how = {"method": "polished by an LLM", "backend": backend.name, "model": backend.model}
        how |= {"prompt_version": PROMPT_VERSION, "sampling": api.sampling_settings(backend)}
    return {
        "id": record["id"],
        "question": record["question"],
        "original_response": answer,
        "rewritten_response": polished,
        "rewritten_by": backend.name,
        "rewrites": {"better": {**how, "checks": kept_problems(("numbers", "code", "length"), answer, polished)}},
    }


if __name__ == "__main__":
    run_main(main)
