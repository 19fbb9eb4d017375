"""The concurrency controller under a fake clock: what it always keeps to, and where it settles."""

import heapq
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes.common.rate_control import CUT, Budget, RateControl, requested_pause


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SimulatedServer:
    """Answers ``allowed`` calls at once after ``latency`` seconds and refuses others after a tenth of that.

    Everything is refused in ``bursts`` ([start, end) seconds), and the last ``refused_of_500`` of every 500 calls;
    refusals name ``pause`` seconds, or nothing if None.
    """

    def __init__(self, control, clock, allowed, latency=1.0, bursts=(), pause=None, refused_of_500=0):
        self.control, self.clock = control, clock
        self.refused_of_500 = refused_of_500
        self.allowed, self.latency, self.bursts, self.pause = allowed, latency, bursts, pause
        self.serving, self.answered, self.refused = 0, 0, 0
        self.ends = []  # (time, number, ok, started)
        self.limits = []  # (time, limit) after every event

    def run(self, seconds: float) -> None:
        """An endless supply of work for ``seconds``."""
        number = 0
        while self.clock.now < seconds:
            wait = self.control.wait()
            if wait == 0:
                started = self.control.start()
                burst = any(start <= self.clock.now < end for start, end in self.bursts)
                burst = burst or number % 500 >= 500 - self.refused_of_500
                accepted = not burst and self.serving < self.allowed
                self.serving += accepted
                end = self.clock.now + self.latency * (1 if accepted else 0.1)
                heapq.heappush(self.ends, (end, number := number + 1, accepted, started))
            elif self.ends and self.ends[0][0] <= self.clock.now + wait:
                self._end_one()
            else:
                assert wait < math.inf, "nothing runs and nothing may start"
                self.clock.now += wait
            self.limits.append((self.clock.now, self.control.limit))

    def _end_one(self) -> None:
        end, _, accepted, started = heapq.heappop(self.ends)
        self.clock.now = max(self.clock.now, end)
        self.serving -= accepted
        self.answered += accepted
        self.refused += not accepted
        if accepted:
            self.control.succeeded(started)
        else:
            self.control.rate_limited(started, self.pause)


def test_bursts_that_have_nothing_to_do_with_the_number_of_calls_do_not_wear_the_limit_down():
    clock = Clock()
    control = RateControl(128, clock=clock)
    server = SimulatedServer(control, clock, allowed=32, latency=0.2, pause=0.1, refused_of_500=100)
    server.run(200)
    late = sorted(limit for time, limit in server.limits if time > 100)
    assert 0.8 * 32 - 1 <= late[len(late) // 2] <= 1.2 * 32 + 1
    assert server.answered >= 32 / 0.2 * 200 / 1.5, "two thirds of an ideal client's"


events = st.lists(
    st.tuples(
        st.sampled_from(["start", "succeeded", "failed", "rate_limited"]),
        st.integers(0, 50),  # which of the running calls ends
        st.floats(0, 5),  # seconds that pass first
        st.one_of(st.none(), st.floats(0, 100)),  # the pause a refusal names
    ),
    max_size=200,
)


@given(ceiling=st.integers(1, 100), events=events)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_the_limits_hold_and_work_can_go_on(ceiling, events):
    clock = Clock()
    control, running, paused_until = RateControl(ceiling, clock=clock), [], 0.0
    for what, which, seconds, pause in events:
        clock.now += seconds
        if what == "start":
            wait = control.wait()
            if len(running) >= int(control.limit):
                assert wait == math.inf
            else:
                assert wait == pytest.approx(max(0.0, paused_until - clock.now))
            if wait == 0:
                running.append(control.start())
        elif running:
            started = running.pop(which % len(running))
            if what == "rate_limited":
                episode = control.episode
                control.rate_limited(started, pause)
                paused_until = max(paused_until, clock.now + (pause or 0))
                assert control.episode - episode <= (started.episode == episode)
            else:
                getattr(control, what)(started)
        assert 1 <= control.limit <= ceiling
        assert control.in_flight == len(running)
    for started in running:
        control.failed(started)
    clock.now = max(clock.now, paused_until)
    assert control.wait() == 0, "with nothing running and no pause, a call may start"


@given(allowed=st.integers(4, 100), latency=st.floats(0.05, 20))
@settings(max_examples=20, deadline=None)
def test_it_settles_within_a_fifth_of_what_the_server_allows_and_uses_nine_tenths_of_it(allowed, latency):
    clock = Clock()
    control = RateControl(400, clock=clock)
    server = SimulatedServer(control, clock, allowed, latency)
    server.run(100 * latency)
    warm, answered = 100 * latency, server.answered
    server.run(200 * latency)
    late = [limit for time, limit in server.limits if time > warm]
    assert 0.8 * allowed - 1 <= min(late)
    assert max(late) <= 1.2 * allowed + 2
    assert server.answered - answered >= 0.9 * allowed * 100 - allowed


def test_the_start_is_fast_one_more_in_flight_for_each_success():
    clock = Clock()
    control = RateControl(256, clock=clock)
    SimulatedServer(control, clock, allowed=10_000).run(6.5)
    assert control.limit == 256, "8, 16, ..., 256: five round trips"


def test_without_waiting_work_the_limit_stays_where_it_was_tried():
    control = RateControl(256, clock=Clock())
    for _ in range(500):
        assert control.wait() == 0
        control.succeeded(control.start())
    assert control.limit == 8


def full(control):
    started = []
    while control.wait() == 0:
        started.append(control.start())
    return started


def test_refusals_of_calls_from_before_the_cut_belong_to_its_episode():
    control = RateControl(64, clock=Clock())
    control.limit = 50.0
    running = full(control)
    for started in reversed(running):
        control.rate_limited(started)
    assert control.episode == 1
    assert control.limit == pytest.approx(CUT * 50)


def test_refusals_after_the_cut_cut_again_only_once_something_was_let_through():
    control = RateControl(64, clock=Clock())
    control.limit = 50.0
    control.rate_limited(full(control)[-1])
    for _ in range(20):
        control.in_flight = 0
        control.rate_limited(full(control)[-1])
    assert control.episode == 1, "a server that refuses everything says no more than it said at first"
    control.in_flight = 0
    *_, first, second = full(control)
    control.succeeded(first)
    control.rate_limited(second)
    assert control.episode == 2


def test_a_limit_cut_for_another_reason_than_concurrency_is_soon_outgrown():
    clock = Clock()
    control = RateControl(256, clock=clock)
    SimulatedServer(control, clock, allowed=10_000, bursts=[(0, 0.05)], pause=1.0).run(30)
    assert control.episode == 1
    assert control.limit == 256


@pytest.mark.parametrize("pause", [None, 1.0])
def test_throughput_recovers_after_bursts(pause):
    clock = Clock()
    control = RateControl(100, clock=clock)
    bursts = [(start, start + 1) for start in range(20, 100, 10)]
    server = SimulatedServer(control, clock, allowed=40, latency=0.2, bursts=bursts, pause=pause)
    server.run(100)
    assert control.episode <= 8 + 40, "one cut per burst, and one for each time the server's own limit was probed"
    server.run(120)
    assert 0.8 * 40 - 1 <= control.limit <= 1.2 * 40 + 2
    answered = server.answered
    server.run(140)
    assert server.answered - answered >= 0.75 * 40 / 0.2 * 20, "three quarters of an ideal client's"


def test_a_pause_holds_every_start_and_the_longest_one_counts():
    clock = Clock()
    control = RateControl(8, clock=clock)
    first, second = control.start(), control.start()
    control.rate_limited(first, 30.0)
    control.rate_limited(second, 2.0)
    assert control.wait() == pytest.approx(30)
    clock.now = 29.0
    assert control.wait() == pytest.approx(1)
    clock.now = 30.0
    assert control.wait() == 0


@given(
    per_minute=st.integers(1, 3000),
    amounts=st.lists(st.tuples(st.integers(1, 200), st.floats(0, 5)), min_size=1, max_size=150),
)
@settings(max_examples=150, deadline=None)
def test_no_minute_spends_more_than_the_budget_a_seconds_worth_and_one_amount(per_minute, amounts):
    clock = Clock()
    budget = Budget(per_minute, clock)
    spent = []
    for amount, idle in amounts:
        clock.now += idle
        clock.now += budget.wait(amount)
        assert budget.wait(amount) == 0, "having waited as told, it may start"
        budget.take(amount)
        spent.append((clock.now, amount))
    for start, _ in spent:
        minute = [amount for time, amount in spent if start <= time < start + 60]
        assert sum(minute) <= per_minute + max(1, per_minute / 60) + max(minute) + 1e-6


def test_a_budget_in_steady_use_is_spent_to_the_last():
    clock = Clock()
    control = RateControl(100, requests_per_minute=600, tokens_per_minute=10**9, clock=clock)
    server = SimulatedServer(control, clock, allowed=100, latency=0.5)
    server.run(60)
    assert 590 <= server.answered <= 610
    budget, count = Budget(600, clock), 0
    end = clock.now + 60
    while (wait := budget.wait(1)) + clock.now < end:
        clock.now += wait
        budget.take(1)
        count += 1
    assert 600 <= count <= 611


def test_tokens_that_an_estimate_took_too_much_are_given_back():
    clock = Clock()
    control = RateControl(8, tokens_per_minute=60, clock=clock)
    started = control.start(31)
    assert control.wait(1) == pytest.approx(31)
    control.succeeded(started, tokens_used=1)
    assert control.wait(1) == pytest.approx(1)


NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 18 Nov 2026 11:07:10 GMT"}, 30),
        ({"retry-after": "Wed, 18 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "2", "x-ratelimit-reset-requests": "1h"}, 2),
        ({"x-ratelimit-reset-requests": "1m2.5s"}, 62.5),
        ({"x-ratelimit-reset-tokens": "6ms"}, 0.006),
        ({"x-ratelimit-reset-tokens": "8h3m0.25s"}, 8 * 3600 + 180.25),
        ({"x-ratelimit-reset-requests": "750µs"}, 750e-6),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "4s"}, 4),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "4s",
                "x-ratelimit-remaining-tokens": "900",
            },
            1,
        ),
        ({"x-ratelimit-reset": "1795000012000"}, 12),
        ({"x-ratelimit-reset": "1795000012"}, 12),
        ({"x-ratelimit-reset-requests": "2026-11-18T11:07:00Z"}, 20),
        ({"retry-after": "soon", "x-ratelimit-reset-requests": "3s"}, 3),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"x-ratelimit-reset-requests": "1x2s"}, None),
        ({}, None),
    ],
)
def test_what_a_server_asks_to_wait_is_read_in_every_form_in_use(headers, seconds):
    pause = requested_pause(headers, NOW)
    assert pause == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


@given(st.text(max_size=30), st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]))
def test_no_header_text_breaks_the_reading(text, name):
    pause = requested_pause({name: text}, NOW)
    assert pause is None or 0 <= pause < math.inf
