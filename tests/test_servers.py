"""Several servers: each filled to its own limit, a dead one left out, an address that is none refused."""

import asyncio
import logging

import pytest

from codes.common import llm
from codes.common.llm import Call, OpenAIBackend
from codes.common.records import InputError
from codes.common.servers import server_addresses
from tests.loopback_server import HANG, LoopbackServer, Reply, completion, error


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch):
    for name in ("OPENAI_API_KEY", "API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llm, "FIRST_BACKOFF", 0.01)


def slow(request):
    return completion("fine", delay=0.02)


def ask_many(base_url, count, timeout=0.5, **options):
    async def run():
        backend = OpenAIBackend("m", base_url=base_url, timeout=timeout, **options)
        messages = [{"role": "user", "content": "hello"}]
        try:
            answers = await asyncio.gather(*(backend.answer(Call(f"{n}", messages, {})) for n in range(count)))
        finally:
            await backend.close()
        return backend, answers

    return asyncio.run(run())


def test_each_server_is_filled_to_its_own_limit_and_no_further():
    with LoopbackServer(slow) as one, LoopbackServer(slow) as two:
        backend, answers = ask_many(f"{one.base_url}=3, {two.base_url}=12", 300, concurrency=40)
    assert len(answers) == 300
    assert (one.most_in_flight, two.most_in_flight) == (3, 12)
    assert 2.5 < len(two.requests) / len(one.requests) < 6
    assert [server.control.in_flight for server in backend.servers.all] == [0, 0]


def test_a_server_that_refuses_is_cut_and_the_other_takes_more():
    def strict(request):
        return error(429, retry_after="0.2") if request.in_flight > 4 else slow(request)

    with LoopbackServer(strict) as one, LoopbackServer(slow) as two:
        backend, _ = ask_many(f"{one.base_url},{two.base_url}", 400, concurrency=32)
    assert backend.servers.all[0].control.episode >= 1
    assert backend.servers.all[1].control.episode == 0
    assert sum(two.served().values()) > 1.5 * sum(one.served().values())


@pytest.mark.parametrize("fault", ["gone", "hangs", "breaks"])
def test_a_dead_server_is_left_out_and_said_so_once(fault, caplog):
    replies = {"gone": None, "hangs": Reply(delay=HANG), "breaks": error(500)}
    with LoopbackServer(lambda request: replies[fault]) as dead, LoopbackServer(slow) as alive:
        address = "http://127.0.0.1:9/v1" if fault == "gone" else dead.base_url
        with caplog.at_level(logging.WARNING):
            # Long enough that the other one is not given up where the machine stalls, and calls enough to outlast it.
            _, answers = ask_many(f"{address},{alive.base_url}", 3000, timeout=1, concurrency=16)
    assert len(answers) == 3000
    assert sum(alive.served().values()) == 3000
    assert len(dead.requests) <= 40
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        f"{address}: gives no answers; left out, and tried again every 30 s"
    ]


def test_what_a_server_did_not_answer_is_asked_of_the_other_also_at_the_end_of_a_run():
    with LoopbackServer(lambda request: Reply(delay=HANG)) as dead, LoopbackServer(slow) as alive:
        _, answers = ask_many(f"{dead.base_url},{alive.base_url}", 40, timeout=1, concurrency=16)
    assert len(answers) == 40
    assert len(dead.requests) <= 16, "each no more than once"


def test_addresses_and_limits_are_read_and_bad_ones_refused():
    assert server_addresses("http://a:1/v1=8,https://b/v1") == [("http://a:1/v1", 8), ("https://b/v1", None)]
    assert server_addresses(None) == [("https://api.openai.com/v1", None)]
    for given, says in [
        ("http://a/v1,,http://b/v1", "is no address"),
        ("http://a/v1=0", "at least 1"),
        ("http://a/v1,http://a/v1=3", "stands there twice"),
        ("http://a/v1=x,b", "is no address"),
    ]:
        with pytest.raises(InputError, match=says):
            server_addresses(given)
