"""What the construction commands share: the backends that answer (`openai`, `rules`), their flags, and their input."""

import argparse
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codes.common.batch_api import BatchCounts
from codes.common.chat_replies import Answer, Call
from codes.common.cli import EXIT_DONE, EXIT_SOME_ITEMS_FAILED, positive_float, positive_int, random_seed, require_files
from codes.common.llm import Ask, Backend, OpenAIBackend, RunCounts, RunOptions, run_rows
from codes.common.records import (
    FieldError,
    InputError,
    aligned_bias_types,
    check_train_record,
    iter_jsonl,
    iter_train_records,
    parse_record,
)
from codes.common.row_runner import failures_path, journal_path
from codes.common.shards import Shard
from codes.common.spending import Prices, Spending
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
    backend.add_argument(
        "--base_url",
        metavar="URL",
        help="the server (default: OPENAI_BASE_URL, else api.openai.com); several with the same model as "
        "URL[=LIMIT],URL[=LIMIT],... with a limit on the requests in flight at each; the key comes from OPENAI_API_KEY "
        "or API_KEY",
    )
    backend.add_argument(
        "--concurrency", type=positive_int, default=32, metavar="N", help="requests in flight, at most"
    )
    backend.add_argument(
        "--rpm", type=positive_int, metavar="N", help="requests a minute at each server, at most (default: no ceiling)"
    )
    backend.add_argument(
        "--tpm", type=positive_int, metavar="N", help="tokens a minute at each server, at most (default: no ceiling)"
    )
    backend.add_argument(
        "--temperature", type=temperature_value, default=temperature, help="sampling temperature, 0 to 2"
    )
    backend.add_argument("--top_p", type=top_p_value, help="nucleus sampling, above 0 to 1 (default: the server's)")
    backend.add_argument("--max_tokens", type=positive_int, default=2048, help="longest answer, tokens")
    backend.add_argument("--timeout", type=positive_float, default=120.0, help="seconds for the whole of one attempt")
    backend.add_argument(
        "--extra",
        type=json_object,
        metavar="JSON",
        help="further fields of every request, such as '{\"repetition_penalty\": 1.1}'; part of the provenance",
    )
    backend.add_argument(
        "--batch",
        choices=("submit", "poll", "collect"),
        help="use the server's Batch API: submit what is to be asked, look how far it is, or collect the results; "
        "where requests follow from answers (gptinst), submit and collect again until nothing is left",
    )
    money = parser.add_argument_group("money and progress")
    for name, what in (("--price_in", "prompt"), ("--price_out", "answer")):
        money.add_argument(
            name, type=price, metavar="P", help=f"price of a million {what} tokens, in any currency (default: unknown)"
        )
    money.add_argument(
        "--max_cost",
        type=positive_float,
        metavar="C",
        help="stop before this output has cost more, over all of its runs; requests in flight count in full",
    )
    money.add_argument(
        "--dry_run", action="store_true", help="print what the run would ask and cost at most; ask nothing"
    )
    money.add_argument(
        "--status", action="store_true", help="print what is done, failed, dropped and left, and its cost"
    )
    parser.add_argument(
        "--seed", type=random_seed, default=42, help="decides every draw, together with the record's id"
    )


def temperature_value(text: str) -> float:
    """Argument type: a number from 0 to 2."""
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 2):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 2")
    return value


def top_p_value(text: str) -> float:
    """Argument type: a number above 0, to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, to 1")
    return value


def price(text: str) -> float:
    """Argument type: a finite number of at least 0."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def json_object(text: str) -> dict:
    """Argument type: a JSON object without NaN, infinities and double fields."""
    try:
        return parse_record(text.encode("utf-8", "surrogateescape"))
    except FieldError as error:
        raise argparse.ArgumentTypeError(f"is no JSON object of request fields ({error})") from None


def run_options(args: argparse.Namespace) -> RunOptions:
    """Mode and prices of a run. Raises InputError for flags that do not go together."""
    if (args.price_in is None) != (args.price_out is None):
        raise InputError("--price_in and --price_out: both are needed to know a cost")
    if args.max_cost is not None and args.price_in is None:
        raise InputError("--max_cost: needs --price_in and --price_out")
    if args.dry_run + args.status + bool(args.batch) > 1:
        raise InputError("--dry_run, --status and --batch: choose one")
    if args.batch and args.backend != "openai":
        raise InputError("--batch: needs --backend openai")
    prices = None if args.price_in is None else Prices(args.price_in, args.price_out)
    mode = "estimate" if args.dry_run else "status" if args.status else args.batch or "ask"
    shard = str(Shard.parse(args.shard)) if args.shard else None
    return RunOptions(mode=mode, shard=shard, spending=Spending(prices, args.max_cost))


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
    return OpenAIBackend(
        args.model_name,
        base_url=args.base_url,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        extra=args.extra,
        timeout=args.timeout,
        concurrency=args.concurrency,
        rpm=args.rpm,
        tpm=args.tpm,
        options=options,
    )


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
        "%s: %d records written of %d; %d requests made, %d + %d tokens",
        output_file,
        counts.written,
        counts.rows,
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
