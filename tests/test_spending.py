"""Money: the ceiling holds against a server that bills the worst case; estimates and status touch nothing."""

import asyncio
import json
from pathlib import Path

import pytest

from codes.common import llm
from codes.common.chat_replies import RunStopped
from codes.common.llm import OpenAIBackend, RunOptions, run_rows
from codes.common.records import InputError
from codes.common.row_runner import journal_path
from codes.common.spending import Prices, Spending
from codes.construct import gptout
from tests.loopback_server import HANG, LoopbackServer, Reply, completion
from tests.test_llm import answer_row, make_rows, read

SAMPLE = Path(__file__).parent.parent / "data" / "train" / "sample.jsonl"
PRICES = Prices(prompt=2.0, completion=10.0)


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch):
    for name in ("OPENAI_API_KEY", "API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llm, "FIRST_BACKOFF", 0.01)


def backend_for(server, mode="ask", max_cost=None, **options):
    run_options = RunOptions(mode=mode, spending=Spending(PRICES, max_cost))
    return OpenAIBackend("m", base_url=server.base_url, options=run_options, **({"timeout": 5.0} | options))


def run(rows, output, backend, concurrency=16):
    return run_rows(
        lambda: iter(rows), answer_row, backend, output, {}, concurrency=concurrency, total=len(rows), desc="test"
    )


def billed(words, prompt_tokens):
    """An answer of so many tokens."""
    reply = json.loads(completion("x " * words).body)
    reply["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": words}
    return Reply(body=json.dumps(reply).encode(), delay=0.01)


def test_a_cost_is_tokens_times_prices_a_million():
    assert PRICES.cost(1_000_000, 500_000) == 7.0
    assert Spending().cost is None


def test_max_cost_is_never_passed_by_a_server_that_bills_the_worst_case_and_nearly_used_up(tmp_path):
    rows, output = make_rows(60), tmp_path / "out.jsonl"
    with LoopbackServer(lambda request: billed(100, 9)) as server:
        backend = backend_for(server, max_cost=0.03, max_tokens=100)
        with pytest.raises(RunStopped, match=r"--max_cost 0\.03: 0\.02\d+ is spent"):
            run(rows, output, backend)
        paid = PRICES.cost(9, 100) * len(server.requests)
        assert 0.03 - 0.0011 < paid <= 0.03
        assert backend.spending.cost == pytest.approx(paid)
        again = backend_for(server, max_cost=0.03, max_tokens=100)
        with pytest.raises(RunStopped, match="is spent"):
            run(rows, output, again)
        assert PRICES.cost(9, 100) * len(server.requests) == pytest.approx(paid), "earlier runs count"
        counts = run(rows, output, backend_for(server, max_cost=1.0, max_tokens=100))
        assert counts.cost == pytest.approx(PRICES.cost(9, 100) * 120)
        assert len(server.requests) == 120
    assert "cost" not in output.read_text()
    assert "max_cost" not in journal_path(output).read_text()


def test_unusable_replies_and_those_that_never_came_are_paid_for_too(tmp_path):
    def script(request):
        if request.attempt == 0 and request.prompt.startswith("r1 "):
            return Reply(delay=HANG)
        return completion(None) if request.attempt == 0 else completion("one two three")

    with LoopbackServer(script) as server:
        backend = backend_for(server, timeout=0.5, max_tokens=50)
        counts = run(make_rows(2), tmp_path / "out.jsonl", backend)
    hung = backend.worst_case(llm.Call("", [{"role": "user", "content": "r1 second"}], {}))
    assert hung[1] == 50
    assert counts.prompt_tokens == 7 * 3 + hung[0] + 7 * 4
    assert counts.completion_tokens == 50 + 3 * 4
    assert counts.cost == PRICES.cost(counts.prompt_tokens, counts.completion_tokens)


def test_a_waiting_reservation_starts_when_a_cheaper_answer_leaves_room_for_it():
    async def scenario():
        spending = Spending(Prices(1e6, 1e6), max_cost=10)
        first = await spending.reserve(6, 0)
        second = asyncio.create_task(spending.reserve(6, 0))
        await asyncio.sleep(0)
        assert not second.done()
        spending.settle(first, 2, 0)
        assert await second == 6
        third = asyncio.create_task(spending.reserve(6, 0))
        await asyncio.sleep(0)
        spending.settle(6, 6, 0)
        with pytest.raises(RunStopped):
            await third

    asyncio.run(scenario())


# --- Looking -----------------------------------------------------------------------------------------------------


def test_an_estimate_and_a_status_ask_and_write_nothing_and_add_up(tmp_path):
    rows, output = make_rows(20), tmp_path / "sub" / "out.jsonl"
    with LoopbackServer() as server:
        survey = run(rows, output, backend_for(server, "estimate", max_tokens=30))
        assert (survey.rows, survey.left, survey.calls, survey.completion_tokens) == (20, 20, 40, 40 * 30)
        assert server.requests == []
        assert not output.parent.exists()
        run(rows[:12], output, backend_for(server, max_tokens=30))
        asked = sum(len(request.prompt.encode()) // 3 + 4 for request in server.requests)
        before = {path: path.read_bytes() for path in output.parent.iterdir()}
        survey = run(rows, output, backend_for(server, "status", max_tokens=30))
        assert (survey.done, survey.failed, survey.dropped, survey.left, survey.calls) == (12, 0, 0, 8, 16)
        assert survey.spending.prompt_tokens == 7 * 24
        assert len(server.requests) == 24
        whole = run(rows, tmp_path / "other.jsonl", backend_for(server, "estimate", max_tokens=30))
        assert whole.prompt_tokens - survey.prompt_tokens == asked
        with pytest.raises(InputError, match=r"another configuration \(max_tokens: 30 there, 31 now\)"):
            run(rows, output, backend_for(server, "status", max_tokens=31))
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


def test_status_tells_failed_and_dropped_rows_apart_and_counts_failed_calls_as_to_do(tmp_path):
    async def process(row, ask):
        if row["id"] == "r2":
            return ask.drop("not wanted")
        return await answer_row(row, ask)

    def look(server, mode):
        backend = backend_for(server, mode, max_attempts=1)
        return run_rows(
            lambda: iter(make_rows(4)), process, backend, tmp_path / "o", {}, concurrency=2, total=4, desc=""
        )

    broken = {"r1 second": completion("half", "length")}
    with LoopbackServer(lambda request: broken.get(request.prompt) or completion("fine")) as server:
        look(server, "ask")
        survey = look(server, "status")
    assert (survey.done, survey.failed, survey.dropped, survey.left, survey.calls) == (2, 1, 1, 0, 1)


def test_commands_estimate_and_report_without_a_key_and_store_sampling_settings(tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    flags = ["--input_file", str(SAMPLE), "--output_file", str(output), "--model_name", "m", "--limit", "5"]
    flags += ["--price_in", "2", "--price_out", "10", "--max_tokens", "100"]
    flags += ["--top_p", "0.9", "--extra", '{"repetition_penalty": 1.1}']
    far = ["--base_url", "https://models.example.com/v1"]
    assert gptout.main([*flags, *far, "--dry_run"]) == 0
    assert "to do: 10 requests, about " in (text := capsys.readouterr().out)
    assert "cost at most 0.0" in text
    assert list(tmp_path.iterdir()) == []
    with LoopbackServer() as server:
        assert gptout.main([*flags, "--base_url", server.base_url, "--max_cost", "1"]) == 0
        assert (server.requests[0].body["top_p"], server.requests[0].body["repetition_penalty"]) == (0.9, 1.1)
    sampling = read(output)[0]["provenance"][-1]["sampling"]
    assert sampling == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 100, "repetition_penalty": 1.1}
    assert gptout.main([*flags, *far, "--status"]) == 0
    text = capsys.readouterr().out
    assert "5 rows: 5 done, 0 failed, 0 dropped, 0 left\nso far: 70 + " in text
    assert "to do: 0 requests" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max_cost", "1"], "--max_cost: needs --price_in and --price_out"),
        (["--price_in", "1"], "--price_in and --price_out: both are needed"),
        (["--dry_run", "--status"], "--dry_run, --status and --batch: choose one"),
        (["--extra", '{"model": "other"}'], "--extra: model cannot be set"),
    ],
)
def test_flags_that_do_not_go_together_are_bad_usage(tmp_path, flags, says):
    given = ["--input_file", str(SAMPLE), "--output_file", str(tmp_path / "o"), "--model_name", "m"]
    with pytest.raises(InputError, match=says):
        gptout.main([*given, "--base_url", "http://127.0.0.1:1/v1", *flags])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", [["--extra", "[1]"], ["--extra", "{"], ["--extra", '{"a": NaN}'], ["--top_p", "0"], ["--price_in", "-1"]]
)
def test_values_that_are_none_are_bad_usage(tmp_path, flags):
    with pytest.raises(InputError, match=rf"{flags[0]}.*--help lists every flag"):
        gptout.main(["--input_file", str(SAMPLE), "--output_file", str(tmp_path / "o"), *flags])
