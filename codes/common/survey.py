"""Looking at a run without asking or writing anything: what is done, what is left, and what it would cost at most."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codes.common.chat_replies import Answer, Call, CallFailed
from codes.common.journal import Journal
from codes.common.row_runner import Process, RowAsk, Run, journal_path, run_configuration
from codes.common.spending import Spending

if TYPE_CHECKING:
    from codes.common.llm import Backend

# Stands for an answer that nobody has given yet, so that the calls that follow from it are estimated too.
PLACEHOLDER = "A text that stands for the answer until there is one."


@dataclass
class Survey:
    """rows = done + failed + dropped + left; a row is left while a call of it has no outcome in the journal.

    ``calls`` are those that a run would make now (failed ones are asked for again), with the tokens that they may
    need at most; calls that follow from answers still to come are counted as far as a typical answer leads.
    """

    mode: str
    spending: Spending
    rows: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    left: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waiting: int = 0  # calls in a batch that is not collected yet, and what they may need at most
    waiting_prompt_tokens: int = 0
    waiting_completion_tokens: int = 0

    def text(self, output_file: str) -> str:
        """For people, a line each."""
        done, to_do = self.spending, f"{self.calls} requests, about {self.prompt_tokens} + at most "
        lines = [
            f"{output_file}: {self.rows} rows: {self.done} done, {self.failed} failed, {self.dropped} dropped, "
            f"{self.left} left",
            f"so far: {done.prompt_tokens} + {done.completion_tokens} tokens",
            f"to do: {to_do}{self.completion_tokens} tokens",
        ]
        if done.prices is not None:
            lines[1] += f", cost {done.cost:.4f}"
            lines[2] += f", cost at most {done.prices.cost(self.prompt_tokens, self.completion_tokens):.4f}"
        if self.waiting:
            lines.append(f"in batches: {self.waiting} requests (--batch poll, then --batch collect)")
        return "\n".join(lines)


class AskSurvey(RowAsk):
    """Answers from the journal; other calls are noted in ``missing`` and fail, or get a ``placeholder``."""

    def __init__(self, row: dict, run: Run, *, redo_failures: bool, placeholder: str | None = None):
        super().__init__(row, run)
        self.redo_failures, self.placeholder = redo_failures, placeholder
        self.missing: list[Call] = []
        self.waiting: list[Call] = []

    async def __call__(self, call: Call, check: Callable[[str], str | None] | None = None) -> Answer:
        known = self.run.journal.find(call.key, self.run.request_hash(call))
        if known is not None and ("answer" in known or "failure" in known):
            try:
                return self.known_outcome(call, known, check)
            except CallFailed:
                if not self.redo_failures:
                    raise
                self.failures.pop()
        elif known is not None and self.run.is_waiting(known):
            self.waiting.append(call)
            raise CallFailed("waiting", "in a batch that is not collected yet")
        self.missing.append(call)
        if self.placeholder is not None:
            return Answer(self.placeholder)
        raise CallFailed("not_asked", "no outcome yet")


def survey_rows(
    rows: Callable[[], Iterator[dict]],
    process: Process,
    backend: "Backend",
    output_file: Path,
    configuration: dict,
) -> Survey:
    """Where the run of ``ask_rows`` with the same arguments stands. Raises InputError for another configuration."""
    options = backend.options
    configuration = run_configuration(backend, configuration)
    run = Run(backend)
    with Journal(journal_path(Path(output_file)), configuration, seen=run.saw, read_only=True) as run.journal:
        return asyncio.run(surveyed(rows, process, run, Survey(options.mode, options.spending)))


async def surveyed(rows: Callable[[], Iterator[dict]], process: Process, run: Run, survey: Survey) -> Survey:
    """``survey``, filled in from the run's journal."""
    status = survey.mode == "status"
    for row in rows():
        ask = AskSurvey(row, run, redo_failures=False)
        outcome = await outcome_of(row, process, ask)
        survey.rows += 1
        setattr(survey, outcome, getattr(survey, outcome) + 1)
        for call in ask.waiting:
            prompt, completion = run.backend.worst_case(call)
            survey.waiting += 1
            survey.waiting_prompt_tokens += prompt
            survey.waiting_completion_tokens += completion
        if not (status and outcome in ("done", "dropped")):
            ask = AskSurvey(row, run, redo_failures=True, placeholder=PLACEHOLDER)
            await outcome_of(row, process, ask)
            for call in ask.missing:
                _add(survey, run, call)
        await asyncio.sleep(0)  # let Ctrl-C in
    return survey


async def outcome_of(row: dict, process: Process, ask: AskSurvey) -> str:
    """ "done", "failed", "dropped" or "left", as the journal has it."""
    try:
        record = await process(row, ask)
    except CallFailed as failure:
        if not ask.failures and not ask.missing and not ask.waiting:
            ask.failed("row", failure.kind, failure.detail)
        record = None
    if ask.missing or ask.waiting:
        return "left"
    if ask.failures:
        return "failed"
    return "dropped" if record is None else "done"


def _add(survey: Survey, run: Run, call: Call) -> None:
    prompt, completion = run.backend.worst_case(call)
    survey.calls += 1
    survey.prompt_tokens += prompt
    survey.completion_tokens += completion
