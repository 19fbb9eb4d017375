"""The servers that a run asks: address, key, limits and connections of each, and which of them takes the next call."""

import asyncio
import ipaddress
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from codes.common.rate_control import RateControl, Started
from codes.common.records import InputError
from codes.common.run_info import redact

logger = logging.getLogger(__name__)

KEY_VARIABLES = ("OPENAI_API_KEY", "API_KEY")
OPENAI = "https://api.openai.com/v1"
MOST_CONNECTIONS = 1000  # the openai client's own limit
# One of several servers is left out for a while after so many attempts in a row that found no server, or no answer.
UNREACHABLE_IN_A_ROW, UNANSWERED_IN_A_ROW = 3, 20
LEFT_OUT = 30.0  # seconds


class Server:
    """One server with a controller of its own; it belongs to one event loop at a time."""

    def __init__(self, address: str, key: str, control: RateControl, timeout: float):
        self.address, self.control = address, control
        self.out_until = -math.inf
        self._key, self._timeout = key, timeout
        self._client = None
        self._unreachable = self.unanswered = 0  # attempts in a row

    @property
    def load(self) -> float:
        """Calls in flight as a share of what the server takes at once."""
        return self.control.in_flight / self.control.limit

    def client(self):
        """The connected ``AsyncOpenAI``."""
        if self._client is None:
            from openai import AsyncOpenAI  # half a second that only a run with a server need spend

            # Its own retries would hide refusals from the controller.
            self._client = AsyncOpenAI(api_key=self._key, base_url=self.address, timeout=self._timeout, max_retries=0)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def answered(self) -> None:
        self._unreachable = self.unanswered = 0

    def gave_no_answer(self, reachable: bool) -> None:
        """Count an attempt in vain; from some number on the server is left out for a while."""
        self._unreachable = 0 if reachable else self._unreachable + 1
        self.unanswered += 1
        if self._unreachable >= UNREACHABLE_IN_A_ROW or self.unanswered >= UNANSWERED_IN_A_ROW:
            self.out_until = time.monotonic() + LEFT_OUT


class Servers:
    """All servers of a run. Raises InputError for an address that is none, or one without a key."""

    def __init__(
        self,
        base_urls: str | None,
        *,
        concurrency: int,
        timeout: float,
        rpm: int | None = None,
        tpm: int | None = None,
        need_key: bool = True,
    ):
        if concurrency > MOST_CONNECTIONS:
            raise InputError(f"--concurrency {concurrency}: at most {MOST_CONNECTIONS} calls can run at once")
        self.all: list[Server] = []
        for address, limit in server_addresses(base_urls):
            control = RateControl(
                min(limit or concurrency, concurrency), requests_per_minute=rpm, tokens_per_minute=tpm
            )
            self.all.append(Server(address, api_key(address) if need_key else "", control, timeout))
        self.gate = Gate(self._next)
        self._said_out: set[str] = set()

    def _next(self, tokens: int) -> tuple[Server, float]:
        """The server for the next call and the seconds until it may start there.

        Those left out come back when their time is over, or when there is no other.
        """
        now = time.monotonic()
        usable = [server for server in self.all if server.out_until <= now] or self.all
        if len(usable) < len(self.all):
            self._announce(now)
        waits = [(server.control.wait(tokens), server) for server in usable]
        soonest = min(wait for wait, _ in waits)
        ready = [server for wait, server in waits if wait == soonest]
        # First to one that answers: what failed at another is not asked there again while this one has room.
        return min(ready, key=lambda server: (server.unanswered, server.load)), soonest

    def _announce(self, now: float) -> None:
        out = {server.address for server in self.all if server.out_until > now}
        for address in out - self._said_out:
            logger.warning("%s: gives no answers; left out, and tried again every %.0f s", redact(address), LEFT_OUT)
        self._said_out |= out

    async def close(self) -> None:
        for server in self.all:
            await server.close()


class Gate:
    """Lets calls through in the order they came, to the server chosen for each; for one event loop at a time."""

    def __init__(self, next_server: Callable[[int], tuple[Server, float]]):
        self._next_server = next_server
        self._waiting: deque[tuple[asyncio.Future, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, tokens: int) -> tuple[Server, Started]:
        """Wait until a call of ``tokens`` tokens may start, and where."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, tokens))
        self.open()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let through and cancelled at the same moment
                server, started = turn.result()
                server.control.failed(started)
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
                server, wait = self._next_server(tokens)
                if wait > 0:
                    if wait < math.inf:
                        self._timer = asyncio.get_running_loop().call_later(wait, self.open)
                    return
                turn.set_result((server, server.control.start(tokens)))
            self._waiting.popleft()


def server_addresses(base_urls: str | None) -> list[tuple[str, int | None]]:
    """(address, calls at once or None) of each server in "URL" or "URL[=LIMIT],URL[=LIMIT],..."."""
    given = (base_urls or os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()
    found = []
    for part in (part.strip() for part in given.split(",")):
        limit = re.fullmatch(r"(.*)=(\d{1,6})", part)
        address, most = (limit[1], int(limit[2])) if limit else (part, None)
        if most == 0:
            raise InputError(f"--base_url {redact(part)}: the limit must be at least 1")
        found.append((_checked_address(address), most))
    if len({address for address, _ in found}) < len(found):
        raise InputError(f"--base_url {redact(given)}: a server stands there twice")
    return found


def _checked_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"--base_url {redact(address)}: is no address of the form http://HOST:PORT/v1")
    return address


def api_key(base_url: str) -> str:
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def secrets() -> list[str]:
    """The keys in use, placeholders such as EMPTY left out."""
    keys = [os.environ.get(name, "").strip() for name in KEY_VARIABLES]
    return [key for key in keys if len(key) >= 12 or key.startswith("sk-")]
