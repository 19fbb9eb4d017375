"""Asking a language model for every row of a file: the OpenAI-compatible client, and the runner with its journal."""

import asyncio
import ipaddress
import logging
import math
import os
import random
import time
from collections import deque
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

from codes.common.chat_replies import (
    ABOUT_THE_REQUEST,
    OVERLOADED,
    PASSING,
    Answer,
    Call,
    CallFailed,
    RunStopped,
    excerpt,
    read_error,
    read_reply,
)
from codes.common.rate_control import RateControl, Started, requested_pause
from codes.common.records import InputError, Message
from codes.common.row_runner import Ask, RunCounts, run_rows
from codes.common.run_info import redact

__all__ = ["Answer", "Ask", "Backend", "Call", "CallFailed", "OpenAIBackend", "RunCounts", "RunStopped", "run_rows"]

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 1000  # the openai client's own limit
LONGEST_PAUSE = 600.0  # seconds; a server that asks for more has closed for the day
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds
REFUSALS_PER_ATTEMPT = 8  # refusals for the rate are borne this many times as often as other failures
HOPELESS_IN_A_ROW = 20  # calls given up one after another, with no answer from the server in between
KEY_VARIABLES = ("OPENAI_API_KEY", "API_KEY")
OPENAI = "https://api.openai.com/v1"
SET_BY_US = {"model", "messages", "stream", "n"}


class Backend(Protocol):
    """What answers calls: a server, or the offline rules."""

    name: str
    model: str

    def settings(self) -> dict:
        """Everything that shapes an answer; it enters the request hash and the provenance, so it holds no secrets."""

    async def answer(self, call: Call) -> Answer:
        """One call with its retries. Raises CallFailed, or RunStopped where no call can succeed."""

    async def close(self) -> None:
        """Release connections; the backend may be used again afterwards."""


class OpenAIBackend:
    """Any server that speaks the OpenAI chat protocol.

    ``timeout`` bounds the whole of one attempt in seconds, a body that drips in included. ``concurrency`` is the most
    calls in flight; how many really are follows the server's refusals. ``rpm`` and ``tpm`` are ceilings a minute.
    ``temperature``, ``top_p`` and ``max_tokens`` are not sent where None; ``extra`` holds further request fields.
    Raises InputError for a missing key or an address that is none.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = 0.7,
        top_p: float | None = None,
        max_tokens: int | None = 2048,
        extra: dict | None = None,
        timeout: float = 120.0,
        concurrency: int = 32,
        rpm: int | None = None,
        tpm: int | None = None,
        max_attempts: int = 6,
    ):
        if concurrency > MOST_CONNECTIONS:
            raise InputError(f"--concurrency {concurrency}: at most {MOST_CONNECTIONS} calls can run at once")
        self.model = model
        if clash := SET_BY_US & (extra or {}).keys():
            raise InputError(f"extra request fields: {', '.join(sorted(clash))} cannot be set")
        self._base_url = _server_address(base_url)
        self._key = _api_key(self._base_url)
        self._sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, **(extra or {})}
        self._sampling = {name: value for name, value in self._sampling.items() if value is not None}
        self._length_field = "max_tokens"
        self._timeout = timeout
        self._tpm = tpm
        self._max_attempts = max_attempts
        self.control = RateControl(concurrency, requests_per_minute=rpm, tokens_per_minute=tpm)
        self._gate = Gate(self.control)
        self._client = None
        self._given_up_in_a_row = 0

    def settings(self) -> dict:
        return {"model": self.model, **self._sampling}

    async def answer(self, call: Call) -> Answer:
        tokens = _estimated_tokens(call.messages) + self._sampling.get("max_tokens", 0)
        if self._tpm and tokens > self._tpm:
            raise CallFailed("too_large", f"about {tokens} tokens are needed and --tpm allows {self._tpm} a minute")
        attempts, refusals = 0, 0
        while True:
            length_field = self._length_field
            try:
                answer = await self._attempt(call, tokens)
            except CallFailed as failure:
                if failure.kind == "bad_request" and _wants_other_length_field(failure, length_field):
                    self._length_field = "max_completion_tokens"
                    continue
                refusals += failure.kind == "rate_limited"
                attempts += failure.kind != "rate_limited"
                tired = attempts >= self._max_attempts or refusals >= REFUSALS_PER_ATTEMPT * self._max_attempts
                if tired or failure.kind not in PASSING:
                    self._give_up(failure)
                    raise
            else:
                self._given_up_in_a_row = 0
                return answer
            await asyncio.sleep(full_jitter(attempts + refusals))

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _attempt(self, call: Call, tokens: int) -> Answer:
        """One request within the deadline; the controller hears how it ended. Raises CallFailed or RunStopped."""
        import openai  # half a second that only a run with a server need spend

        client = self._connected()
        started = await self._gate.enter(tokens)
        ended = self.control.failed
        try:
            async with asyncio.timeout(self._timeout):
                # As extra_body the messages go out as they are; as an argument the client would walk through their
                # types, which is a quarter of the processor time of a call.
                raw = await client.chat.completions.with_raw_response.create(
                    model=self.model, messages=[], extra_body={"messages": call.messages, **self._body()}
                )
            ended = self.control.succeeded
            answer = read_reply(raw.content)
            ended = partial(ended, tokens_used=answer.prompt_tokens + answer.completion_tokens or None)
            if any(key in answer.text for key in _secrets()):
                raise CallFailed("quoted_key", "the answer quotes the API key")
            return answer
        except openai.APIStatusError as error:
            if error.status_code in OVERLOADED:
                pause = requested_pause(error.response.headers, time.time())
                ended = partial(self.control.rate_limited, pause=pause)
            raise self._refusal(error) from None
        except (TimeoutError, openai.APITimeoutError):
            raise CallFailed("timeout", f"no whole reply within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise CallFailed("connection", excerpt(f"{error} {error.__cause__ or ''}")) from None
        finally:
            ended(started)
            self._gate.open()

    def _refusal(self, error) -> CallFailed | RunStopped:
        failure = read_error(error.status_code, error.body, error.message)
        pause = requested_pause(error.response.headers, time.time())
        if isinstance(failure, CallFailed) and failure.kind in PASSING and pause is not None and pause > LONGEST_PAUSE:
            return RunStopped(f"the server asks to wait {pause:.0f} s ({failure.detail}); continue then")
        return failure

    def _give_up(self, failure: CallFailed) -> None:
        """Count failures that are the server's and not the request's; stop the run where nothing else comes."""
        if failure.kind in ABOUT_THE_REQUEST:
            self._given_up_in_a_row = 0
            return
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= HOPELESS_IN_A_ROW:
            raise RunStopped(
                f"{redact(self._base_url)} answered none of {self._given_up_in_a_row} calls in a row (last: {failure})"
            ) from None

    def _connected(self):
        if self._client is None:
            from openai import AsyncOpenAI

            # Its own retries would hide refusals from the controller.
            self._client = AsyncOpenAI(api_key=self._key, base_url=self._base_url, timeout=self._timeout, max_retries=0)
        return self._client

    def _body(self) -> dict:
        body = dict(self._sampling)
        if "max_tokens" in body:
            body[self._length_field] = body.pop("max_tokens")
        return body


class Gate:
    """Lets calls through in the order they came, as the controller allows; belongs to one event loop at a time."""

    def __init__(self, control: RateControl):
        self._control = control
        self._waiting: deque[tuple[asyncio.Future, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, tokens: int) -> Started:
        """Wait until a call of ``tokens`` tokens may start."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, tokens))
        self.open()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let through and cancelled at the same moment
                self._control.failed(turn.result())
                self.open()
            raise

    def open(self) -> None:
        """Let through whoever may start now, and come back when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            turn, tokens = self._waiting[0]
            if not turn.done():
                wait = self._control.wait(tokens)
                if wait > 0:
                    if wait < math.inf:
                        self._timer = asyncio.get_running_loop().call_later(wait, self.open)
                    return
                turn.set_result(self._control.start(tokens))
            self._waiting.popleft()


def full_jitter(attempt: int) -> float:
    """Seconds to wait after the ``attempt``-th failure: uniform from 0 to a bound that doubles each time."""
    return random.uniform(0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempt - 1, 16)))


def _wants_other_length_field(failure: CallFailed, length_field: str) -> bool:
    """Whether a newer model refused ``max_tokens``, which it calls ``max_completion_tokens``."""
    return length_field == "max_tokens" and "max_completion_tokens" in failure.detail


def _estimated_tokens(messages: list[Message]) -> int:
    """At least as many tokens as most tokenizers make: one for 3 bytes, 4 for each message's frame."""
    return sum(len(message["content"].encode("utf-8")) // 3 + 4 for message in messages)


def _api_key(base_url: str) -> str:
    """The key from the environment; a server on this machine needs none."""
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise InputError(f"{name}: holds characters that no key has")  # the key itself must not be shown
            return key
    if _is_loopback(urlsplit(base_url).hostname or ""):
        return "EMPTY"
    raise InputError(
        f"no API key for {redact(base_url)}: set OPENAI_API_KEY (or API_KEY; any text for a server that asks for none)"
    )


def _server_address(base_url: str | None) -> str:
    address = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"--base_url {redact(address)}: is no address of the form http://HOST:PORT/v1")
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _secrets() -> list[str]:
    """The keys in use, placeholders such as EMPTY left out."""
    keys = [os.environ.get(name, "").strip() for name in KEY_VARIABLES]
    return [key for key in keys if len(key) >= 12 or key.startswith("sk-")]
