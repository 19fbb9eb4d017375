"""How many calls may run at once, and when: pure objects driven by the clock they are given.

``RateControl`` follows what the server lets through. It starts fast (one more call in flight for each success), cuts
once per rate-limit episode, and grows back along a cubic: quickly to near the level that was refused, slowly past it.
"""

import datetime
import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CUT = 0.8  # of the number of calls in flight that the server refused
# A round is as many successes as calls are in flight. Each refusal at the level that is known already doubles the
# rounds until the next try, because every try may cost a pause.
ROUNDS_TO_RECOVER, MOST_ROUNDS_TO_RECOVER = 8, 32
SAME_LEVEL = 0.15  # relative difference
REGAINED = 0.99  # of the known level: from here on it is tried again
OUTGROWN = 1.5  # times a refused level without a new refusal: the start is fast again
FIRST_LIMIT = 8


@dataclass(frozen=True)
class Started:
    """What the controller remembers of one running attempt: the episode it began in, and its estimated tokens."""

    episode: int
    tokens: int


class RateControl:
    """Adaptive limit on concurrent calls, with optional ceilings on requests and tokens a minute.

    ``clock`` gives seconds and never runs backwards. A 429 cuts the limit only if its request was started after the
    last cut and the server has let a request through since: the rest of a burst belongs to the same episode.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.ceiling = ceiling
        self.limit = float(min(FIRST_LIMIT, ceiling))
        self.in_flight = 0
        self.episode = 0  # the number of cuts so far
        self._clock = clock
        self._paused_until = -math.inf
        self._refused_level: float | None = None  # None: never cut, still in the fast start
        self._rounds = 0.0  # since the last cut
        self._rounds_to_recover = ROUNDS_TO_RECOVER
        self._fell_short = False  # the last refusal came on the way back to the known level
        self._recovering = False  # cut, and nothing let through since
        self._was_full = False  # the limit, not a lack of work, has held calls back lately
        self._requests = Budget(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Budget(tokens_per_minute, clock) if tokens_per_minute else None

    def wait(self, tokens: int = 0) -> float:
        """Seconds until a call of ``tokens`` tokens may start: 0 for now, infinity for when another has ended."""
        if self.in_flight >= int(self.limit):
            self._was_full = True
            return math.inf
        waits = [self._paused_until - self._clock(), 0.0]
        if self._requests:
            waits.append(self._requests.wait(1))
        if self._tokens:
            waits.append(self._tokens.wait(tokens))
        return max(waits)

    def start(self, tokens: int = 0) -> Started:
        """A call starts now; ``wait`` has said that it may. It ends with exactly one of the methods below."""
        self.in_flight += 1
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(tokens)
        return Started(self.episode, tokens)

    def succeeded(self, started: Started, tokens_used: int | None = None) -> None:
        """The server answered; ``tokens_used`` corrects the estimate given at the start."""
        self._end()
        if self._tokens and tokens_used is not None:
            self._tokens.take(tokens_used - started.tokens)
        if started.episode != self.episode:
            return
        self._recovering = False
        if self._was_full:
            self._grow()

    def failed(self, started: Started) -> None:
        """The call ended in a way that says nothing about the rate."""
        self._end()

    def rate_limited(self, started: Started, pause: float | None = None) -> None:
        """The server refused the call as one too many; nothing starts for ``pause`` seconds where it named some."""
        level = min(self.limit, float(self.in_flight))
        self._end()
        if pause is not None:
            self._paused_until = max(self._paused_until, self._clock() + pause)
        if started.episode != self.episode or self._recovering:
            return
        self.episode += 1
        self._recovering = True
        self._rounds = 0.0
        self._learn(level)
        self.limit = max(1.0, CUT * self._refused_level)

    def _learn(self, level: float) -> None:
        """Take in that the server refused a call when ``level`` were in flight."""
        before = self._refused_level
        known = before is not None and abs(level / before - 1) <= SAME_LEVEL
        if known and level < REGAINED * before and not self._fell_short:
            # On the way back to the known level: perhaps a burst that has nothing to do with the number of calls.
            # Such bursts must not wear the level down, so it takes two in a row to lower it.
            self._fell_short = True
            self._rounds_to_recover = max(self._rounds_to_recover / 2, ROUNDS_TO_RECOVER)
            return
        self._fell_short = False
        self._rounds_to_recover = (
            min(2 * self._rounds_to_recover, MOST_ROUNDS_TO_RECOVER) if known else ROUNDS_TO_RECOVER
        )
        self._refused_level = level

    def _end(self) -> None:
        self.in_flight -= 1
        if self.in_flight < self.limit / 2:
            self._was_full = False

    def _grow(self) -> None:
        if self._refused_level is None:
            grown = self.limit + 1
        else:
            self._rounds += 1 / self.limit
            # CUBIC (RFC 9438) with rounds for seconds: CUT times the refused level after 0 rounds, all of it after
            # as many as it takes to recover, and flat around there.
            distance = self._rounds / self._rounds_to_recover - 1
            grown = max(self.limit, self._refused_level * (1 + (1 - CUT) * distance**3))
            if grown > OUTGROWN * self._refused_level:
                self._refused_level = None  # that refusal had another reason than the number of calls
        self.limit = min(float(self.ceiling), grown)


class Budget:
    """A ceiling on amounts (requests or tokens) a minute, spent evenly: at most a second's worth is saved up.

    An amount may start once the budget holds it, or holds a second's worth if it is larger; the budget then goes into
    debt. So any minute spends at most ``per_minute`` plus a second's worth plus one amount.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]):
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._clock = clock
        self._seen = clock()

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` may be taken; 0 for now."""
        self._refill()
        missing = min(amount, self._capacity) - self._level
        # Rounding of times may leave a billionth; waiting for that could last for ever.
        return missing / self._rate if missing > 1e-9 * self._capacity else 0.0

    def take(self, amount: float) -> None:
        """Spend ``amount``; a negative one gives back what an estimate took too much."""
        self._refill()
        self._level = min(self._capacity, self._level - amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._seen) * self._rate)
        self._seen = now


# --- What a server says about waiting ----------------------------------------------------------------------------

_GO_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def requested_pause(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a refusing server asks to wait; None where it says nothing that can be read.

    ``headers`` has lower-case names (or ignores case); ``now`` is the wall clock in seconds since 1970. Retry-After
    goes first. Of x-ratelimit-reset-requests and -tokens, those whose remaining count is 0 decide; else the later one.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if (pause := _seconds(headers.get(name), now)) is not None:
            return pause * unit
    resets, exhausted = [], []
    for kind in ("-requests", "-tokens", ""):
        pause = _seconds(headers.get(f"x-ratelimit-reset{kind}"), now)
        if pause is not None:
            resets.append(pause)
            if (headers.get(f"x-ratelimit-remaining{kind}") or "").strip() == "0":
                exhausted.append(pause)
    return max(exhausted or resets, default=None)


def _seconds(text: str | None, now: float) -> float | None:
    """Seconds from now, of a number of seconds, an epoch (s or ms), a Go duration ("1m2.5s", "6ms") or a date."""
    text = (text or "").strip()
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        value = float(text)
        if not math.isfinite(value):
            return None
        if value > 1e11:
            value /= 1000  # an epoch in milliseconds
        return max(0.0, value - now) if value > 1e8 else value
    parts = _GO_DURATION.findall(text)
    if parts and "".join(parts) == text:
        return sum(float(re.match(r"[\d.]+", part)[0]) * _UNIT_SECONDS[part.lstrip("0123456789.")] for part in parts)
    for read in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            moment = read(text)
            return max(0.0, moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() - now)
        except (ValueError, OverflowError):
            continue
    return None
