"""What the construction commands share: the backends that answer (`openai`, `rules`), their flags, and their input."""

import argparse
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codes.common.batch_api import BatchCounts
from codes.common.chat_replies import Answer, Call
from codes.common.cli import EXIT_DONE, EXIT_SOME_ITEMS_FAILED, positive_int, random_seed, require_files
from codes.common.llm import Ask, Backend, RunCounts, RunOptions, run_rows
from codes.common.records import (
    FieldError,
    InputError,
    aligned_bias_types,
    check_train_record,
    iter_jsonl,
    iter_train_records,
    rewards_of,
)
from codes.common.row_runner import failures_path, journal_path
from codes.common.server_flags import (
    add_price_flags,
    add_sampling_flags,
    add_server_flags,
    chat_backend,
    spending_allowed,
)
from codes.common.shards import Shard
from codes.common.survey import Survey
from codes.construct.bias_rules import RULES_VERSION, inject, rules_rng

logger = logging.getLogger(__name__)


class RulesBackend:
    """Answers offline and deterministically from ``call.task``; no language model is involved, and nothing claims so.

    Tasks: ``{"kind": "inject", "id", "seed", "bias", "answer"}`` puts a trait on an answer, and
    ``{"kind": "quote", "text"}`` gives back a text that the command chose from the input.
    """

    name = "rules"

    def __init__(self, model: str = "rules", options: RunOptions | None = None):
        self.model = model
        self.options = options or RunOptions()

    def settings(self) -> dict:
        return {"model": self.model, "rules_version": RULES_VERSION}

    def worst_case(self, call: Call) -> tuple[int, int]:
        return 0, 0

    async def answer(self, call: Call) -> Answer:
        task = call.task
        if task["kind"] == "inject":
            rng = rules_rng(task["seed"], task["id"], task["bias"])
            return Answer(inject(task["answer"], task["bias"], rng))
        if task["kind"] == "quote":
            return Answer(task["text"])
        raise ValueError(f"the rules backend has no task {task['kind']!r}")

    async def close(self) -> None:
        """Nothing is held open."""


def add_construction_flags(
    parser: argparse.ArgumentParser, *, temperature: float, output_flag: str = "--output_file"
) -> None:
    """Input, output, backend and sampling flags, the same for every construction command.

    A command that writes several files has ``output_flag`` "--output_dir"; it sets ``args.output_file`` for each.
    """
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, metavar="IN", help="train records, JSONL")
    files.add_argument(output_flag, required=True, metavar="OUT", help="where the output goes; journals are beside it")
    files.add_argument("--limit", type=positive_int, metavar="N", help="use the first N records only (default: all)")
    files.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N of the rows, into an output of its own; codes.construct.merge joins them",
    )
    backend = parser.add_argument_group("backend")
    backend.add_argument(
        "--backend",
        choices=("openai", "rules"),
        default="openai",
        help="who answers: an OpenAI-compatible server, or offline rules",
    )
    backend.add_argument(
        "--model_name", metavar="M", help="the server's model name (with rules the default is 'rules')"
    )
    add_server_flags(backend)
    add_sampling_flags(backend, temperature=temperature, max_tokens=2048)
    backend.add_argument(
        "--batch",
        choices=("submit", "poll", "collect"),
        help="use the server's Batch API: submit what is to be asked, look how far it is, or collect the results; "
        "where requests follow from answers (gptinst), submit and collect again until nothing is left",
    )
    money = parser.add_argument_group("money and progress")
    add_price_flags(money)
    money.add_argument(
        "--dry_run", action="store_true", help="print what the run would ask and cost at most; ask nothing"
    )
    money.add_argument(
        "--status", action="store_true", help="print what is done, failed, dropped and left, and its cost"
    )
    parser.add_argument(
        "--seed", type=random_seed, default=42, help="decides every draw, together with the record's id"
    )


def run_options(args: argparse.Namespace) -> RunOptions:
    """Mode and prices of a run. Raises InputError for flags that do not go together."""
    spending = spending_allowed(args)
    if args.dry_run + args.status + bool(args.batch) > 1:
        raise InputError("--dry_run, --status and --batch: choose one")
    if args.batch and args.backend != "openai":
        raise InputError("--batch: needs --backend openai")
    mode = "estimate" if args.dry_run else "status" if args.status else args.batch or "ask"
    shard = str(Shard.parse(args.shard)) if args.shard else None
    return RunOptions(mode=mode, shard=shard, spending=spending)


def run(
    args: argparse.Namespace,
    process: Callable[[dict, Ask], Awaitable[dict | None]],
    backend: Backend,
    configuration: dict,
    rows: "InputRows",
    total: int | None,
) -> RunCounts | BatchCounts | Survey:
    """``run_rows`` over the input into ``--output_file``, as the flags say; ``configuration`` names the command."""
    return run_rows(
        rows,
        process,
        backend,
        Path(args.output_file),
        configuration,
        concurrency=args.concurrency,
        total=total,
        desc=configuration["command"],
    )


def make_backend(args: argparse.Namespace) -> Backend:
    """The backend that the flags name. Raises InputError for a missing model name or key."""
    options = run_options(args)
    if args.backend == "rules":
        return RulesBackend(args.model_name or "rules", options)
    if not args.model_name:
        raise InputError("--model_name: is needed with --backend openai (the name of the server's model)")
    return chat_backend(args, args.model_name, options)


def sampling_settings(backend: Backend) -> dict:
    """The backend's settings besides its model, for the provenance of one answer."""
    return {name: value for name, value in backend.settings().items() if name != "model"}


# --- Input and result ------------------------------------------------------------------------------------------------


def input_rows(args: argparse.Namespace) -> tuple["InputRows", int]:
    """A function that streams the checked input records (each with an id), and how many there are.

    The whole input is read before this returns, so that a bad line stops the run before any work is done.
    """
    require_files([args.input_file], "--input_file")
    output = Path(args.output_file)
    if output.is_dir():
        raise InputError(f"--output_file {output}: is a folder")
    for path in (output, journal_path(output), failures_path(output)):
        if path.exists() and path.samefile(args.input_file):
            raise InputError(f"--output_file {output}: the run would write over its own input; choose another name")
    for _ in iter_jsonl(args.input_file, check_construction_record):
        pass
    for _ in iter_train_records(args.input_file):
        pass
    rows = InputRows(args.input_file, args.limit, Shard.parse(args.shard) if args.shard else None)
    return rows, sum(1 for _ in rows())


@dataclass(frozen=True)
class InputRows:
    """Called, it streams the rows that a run is about; ``whole`` streams those of all shards."""

    input_file: str
    limit: int | None
    shard: Shard | None

    def __call__(self) -> Iterator[dict]:
        return (row for row in self.whole() if self.shard is None or self.shard.holds(str(row["id"])))

    def whole(self) -> Iterator[dict]:
        return itertools.islice(iter_train_records(self.input_file), self.limit)


def check_construction_record(record: dict) -> None:
    """A train record whose ``provenance``, where present, has an object or null for every rejected answer."""
    check_train_record(record)
    if "provenance" in record:
        entries = record["provenance"]
        if not isinstance(entries, list) or len(entries) != len(record["rejected"]):
            raise FieldError("provenance", "expected a list as long as 'rejected'")
        if not all(entry is None or isinstance(entry, dict) for entry in entries):
            raise FieldError("provenance", "every entry must be an object or null")


def with_rejected(record: dict, answers: list[str], biases: list[str], provenance: list[dict], **fields) -> dict:
    """The record with answers appended to ``rejected``, and its aligned lists extended with them."""
    known = record.get("provenance", [None] * len(record["rejected"]))
    if isinstance(record.get("verdicts"), list):  # of an earlier verification, which has not seen the new answers
        record = {**record, "verdicts": [*record["verdicts"], *[None] * len(answers)]}
    return {
        **record,
        "rejected": [*record["rejected"], *answers],
        "bias_type": [*aligned_bias_types(record), *biases],
        **rewards_of(record, [*range(len(record["rejected"])), *[None] * len(answers)]),
        **fields,
        "provenance": [*known, *provenance],
    }


def report(counts: RunCounts | Survey | BatchCounts, output_file: str) -> int:
    """Say how the run went or where it stands; the command's exit status."""
    if isinstance(counts, BatchCounts):
        print(counts.text)
        if counts.counts is None:
            return EXIT_SOME_ITEMS_FAILED if counts.unfinished else EXIT_DONE
        counts = counts.counts
    if isinstance(counts, Survey):
        print(counts.text(output_file))
        return EXIT_DONE
    logger.info(
        "%s: %d records written of %d%s; %d requests made, %d + %d tokens",
        output_file,
        counts.written,
        counts.rows,
        f", {counts.dropped} dropped" if counts.dropped else "",
        counts.asked,
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    if counts.cost is not None:
        logger.info("%s: cost %.4f so far, over all of its runs", output_file, counts.cost)
    if not counts.failed:
        return EXIT_DONE
    logger.warning(
        "%d records are not complete; what failed is in %s, and the same command again asks for just that",
        counts.failed,
        failures_path(Path(output_file)),
    )
    return EXIT_SOME_ITEMS_FAILED
