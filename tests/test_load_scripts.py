"""The three scripts under data/ that fetch the real sets once, against a loopback server and local folders."""

import hashlib
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
import time
import types
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from codes.common import download
from codes.common.cli import RunFailed
from codes.common.download import PinnedFile, fetch_pinned_file
from codes.common.records import EVALUATED_BIASES, InputError, read_jsonl
from codes.evaluate.metrics import REWARD_BENCH_ROWS
from tests.conftest import ROOT


def script(path):
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load_bias_eval = script("data/eval/load_bias_eval.py")
load_reward_bench = script("data/eval/reward_bench/load_reward_bench.py")
load_data = script("data/train-unified-feedback/load_data.py")

BODY = b"".join(b'{"question": "number %d"}\n' % i for i in range(5000))
FILE = PinnedFile("length_bias.jsonl", 5000, hashlib.sha256(BODY).hexdigest())


@pytest.fixture
def server():
    """A loopback file server; ``behaviour`` says how it answers, ``asked`` keeps the Range headers and bytes sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state, wanted = self.server, self.headers.get("Range")
            body = state.files.get(self.path)
            step = state.behaviour.pop(0) if state.behaviour else {}
            if "status" in step or body is None:
                state.asked.append((wanted, 0))
                return self.send_error(step.get("status", 404))
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and not step.get("no_range") else 0
            if start and start >= len(body):
                state.asked.append((wanted, 0))
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                shown = step.get("content_range", start)
                self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            sent = body[start : start + step.get("cut", len(body))]
            state.asked.append((wanted, len(sent)))
            self.wfile.write(sent)
            if "hang" in step:
                self.wfile.flush()
                time.sleep(step["hang"])

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.files, running.behaviour, running.asked = {f"/eval/{FILE.name}": BODY}, [], []
    running.url = f"http://127.0.0.1:{running.server_address[1]}/eval"
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=lambda seconds: None))


# --- pinned files -------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_and_then_found(tmp_path, server):
    assert fetch_pinned_file(server.url, FILE, tmp_path / "new") is True
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE.name]
    assert (tmp_path / "new" / FILE.name).read_bytes() == BODY
    assert fetch_pinned_file(server.url + "/", FILE, tmp_path / "new") is False
    assert len(server.asked) == 1


def test_a_truncated_transfer_continues_with_the_missing_bytes_alone(tmp_path, server):
    server.behaviour = [{"cut": 1000}, {"cut": 500}, {}]
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    assert server.asked == [(None, 1000), ("bytes=1000-", 500), ("bytes=1500-", len(BODY) - 1500)]
    assert (tmp_path / FILE.name).read_bytes() == BODY


def test_the_next_run_continues_what_a_failed_one_left(tmp_path, server):
    server.behaviour = [{"cut": 1000}]
    with pytest.raises(RunFailed, match=r"ended early.*run the same command again"):
        fetch_pinned_file(server.url, FILE, tmp_path, attempts=1)
    assert not (tmp_path / FILE.name).exists()
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    assert server.asked[-1] == ("bytes=1000-", len(BODY) - 1000)
    assert [path.name for path in tmp_path.iterdir()] == [FILE.name]


def test_a_run_killed_in_the_middle_is_continued(tmp_path, server):
    server.behaviour = [{"cut": 20_000, "hang": 30}]
    code = (
        "import sys; from pathlib import Path; from codes.common.download import *;"
        "fetch_pinned_file(sys.argv[1], PinnedFile(sys.argv[2], 5000, sys.argv[3]), Path(sys.argv[4]))"
    )
    arguments = [server.url, FILE.name, FILE.sha256, str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / f".{FILE.name}.part", time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    process.kill()
    process.wait()
    have = part.stat().st_size
    assert 0 < have <= 20_000
    assert not (tmp_path / FILE.name).exists()
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    assert server.asked[-1] == (f"bytes={have}-", len(BODY) - have)
    assert (tmp_path / FILE.name).read_bytes() == BODY


def test_a_server_without_ranges_is_read_from_the_start(tmp_path, server):
    server.behaviour = [{"cut": 1000}, {"no_range": True}]
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    assert (tmp_path / FILE.name).read_bytes() == BODY


def test_a_range_other_than_the_one_asked_for_is_not_appended(tmp_path, server):
    server.behaviour = [{"cut": 1000}, {"content_range": 900}, {}]
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    assert (tmp_path / FILE.name).read_bytes() == BODY


def test_a_left_over_part_of_another_file_is_thrown_away(tmp_path, server):
    for left_over in (b"x" * 1000, BODY + b"more", BODY):
        (tmp_path / f".{FILE.name}.part").write_bytes(left_over)
        assert fetch_pinned_file(server.url, FILE, tmp_path)
        assert (tmp_path / FILE.name).read_bytes() == BODY
        (tmp_path / FILE.name).unlink()
    assert not any(tmp_path.iterdir())


def test_a_wrong_body_is_reported_with_both_hashes_and_leaves_nothing(tmp_path, server):
    server.files[f"/eval/{FILE.name}"] = wrong = BODY.replace(b"number 77", b"number 78")
    with pytest.raises(RunFailed) as caught:
        fetch_pinned_file(server.url, FILE, tmp_path)
    assert {FILE.name, FILE.sha256, hashlib.sha256(wrong).hexdigest()} <= set(
        str(caught.value).replace("/", " ").replace(",", "").replace(";", "").replace(":", "").split()
    )
    assert not any(tmp_path.iterdir())


def test_server_errors_are_retried_and_absent_files_are_not(tmp_path, server):
    server.behaviour = [{"status": 503}, {"status": 429}, {}]
    assert fetch_pinned_file(server.url, FILE, tmp_path)
    asked = len(server.asked)
    with pytest.raises(RunFailed, match="the server answered 404"):
        fetch_pinned_file(server.url, PinnedFile("absent.jsonl", 1, "0" * 64), tmp_path)
    assert len(server.asked) == asked + 1


def test_an_unreachable_server_and_a_broken_url_fail_in_one_line(tmp_path):
    with pytest.raises(RunFailed, match=r"\[credentials\]@127.*could not be fetched.*--from DIR") as caught:
        fetch_pinned_file("http://me:secret@127.0.0.1:1", FILE, tmp_path, attempts=2)
    assert "secret" not in str(caught.value)
    with pytest.raises((InputError, RunFailed)):
        fetch_pinned_file("http://[", FILE, tmp_path, attempts=1)
    assert not any(tmp_path.iterdir())


def test_a_body_without_end_is_given_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "LARGEST_FILE", 70_000)
    with pytest.raises(RunFailed, match="more than 70000 bytes"):
        fetch_pinned_file(server.url, FILE, tmp_path)
    assert not (tmp_path / FILE.name).exists()


def test_a_differing_file_is_never_overwritten(tmp_path, server):
    (tmp_path / FILE.name).write_text("mine")
    with pytest.raises(InputError, match=FILE.sha256):
        fetch_pinned_file(server.url, FILE, tmp_path)
    assert (tmp_path / FILE.name).read_text() == "mine"
    assert server.asked == []


def test_a_wrong_number_of_rows_is_refused(tmp_path, server):
    with pytest.raises(RunFailed, match="5000 rows, expected 4999"):
        fetch_pinned_file(server.url, PinnedFile(FILE.name, 4999, FILE.sha256), tmp_path)
    assert not any(tmp_path.iterdir())


# --- load_bias_eval.py --------------------------------------------------------------------------------------------


def test_the_table_names_the_ten_files_of_the_pinned_commit():
    assert [file.name for file in load_bias_eval.PUBLIC_FILES] == [f"{bias}_bias.jsonl" for bias in EVALUATED_BIASES]
    assert sum(file.rows for file in load_bias_eval.PUBLIC_FILES) == 3004 + 499
    assert len({file.sha256 for file in load_bias_eval.PUBLIC_FILES}) == 10
    assert all(len(file.sha256) == 64 for file in load_bias_eval.PUBLIC_FILES)
    assert load_bias_eval.COMMIT in load_bias_eval.SOURCE


def test_bias_files_come_from_a_server_or_a_folder_alike(tmp_path, server, capsys):
    other = PinnedFile("race_bias.jsonl", 1, hashlib.sha256(b'{"a": 1}\n\n').hexdigest())
    server.files["/eval/race_bias.jsonl"] = b'{"a": 1}\n\n'
    assert load_bias_eval.fetch_files(server.url, tmp_path / "a", [FILE, other]) == 2
    assert load_bias_eval.fetch_files(str(tmp_path / "a"), tmp_path / "b", [FILE, other]) == 2
    assert load_bias_eval.fetch_files(str(tmp_path / "a"), tmp_path / "b", [FILE, other]) == 0
    for name in (FILE.name, other.name):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert capsys.readouterr().out.count("was there already") == 2
    assert (
        json.loads((tmp_path / "b" / "run_info.json").read_text())["configuration"]["files"][FILE.name]["rows"] == 5000
    )


def test_the_shared_subset_is_recognised_as_other_files(tmp_path, shared_data):
    run = subprocess.run(
        [
            sys.executable,
            "data/eval/load_bias_eval.py",
            "--from",
            shared_data / "contrastrm-eval",
            "--output_dir",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    length = shared_data / "contrastrm-eval" / "length_bias.jsonl"
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert f"{length}: sha256 is {hashlib.sha256(length.read_bytes()).hexdigest()}, expected c7eb0598" in run.stderr
    assert not any(tmp_path.iterdir())


def test_a_source_that_is_no_folder_and_no_url_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a URL nor a folder"):
        load_bias_eval.main(["--from", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(InputError, match=r"length_bias\.jsonl: no such file"):
        load_bias_eval.main(["--from", str(tmp_path), "--output_dir", str(tmp_path / "out")])


# --- load_reward_bench.py -----------------------------------------------------------------------------------------


def reward_bench_rows(expected):
    names = [name for name, rows in expected.items() for _ in range(rows)]
    return [
        {
            "prompt": f"p{i}",
            "chosen": "c",
            "chosen_model": "m",
            "rejected": "r",
            "rejected_model": "n",
            "subset": name,
            "id": i,
        }
        for i, name in enumerate(names)
    ]


def test_a_whole_reward_bench_folder_is_written_with_its_seven_fields(tmp_path):
    rows = reward_bench_rows(REWARD_BENCH_ROWS)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub/data/filtered-00000-of-00001.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows[:9]), tmp_path / "hub/data/train-00000-of-00001.parquet")
    output = tmp_path / "filtered.jsonl"
    assert load_reward_bench.main(["--from", str(tmp_path / "hub"), "--output_file", str(output)]) == 0
    written = read_jsonl(output)
    assert written == rows
    assert len(written) == 2985
    assert list(written[0]) == ["prompt", "chosen", "rejected", "subset", "id", "chosen_model", "rejected_model"]
    before = output.read_bytes()
    assert load_reward_bench.main(["--from", str(output), "--output_file", str(output)]) == 0
    assert output.read_bytes() == before
    output.write_text("mine")
    (tmp_path / "filtered.jsonl.run_info.json").unlink()
    with pytest.raises(InputError, match="not replaced"):
        load_reward_bench.main(["--from", str(tmp_path / "hub"), "--output_file", str(output)])
    assert output.read_text() == "mine"


def test_an_incomplete_or_misnamed_reward_bench_is_refused(tmp_path, shared_data):
    expected = {"hep-go": 2, "math-prm": 3}
    source, output = tmp_path / "filtered.jsonl", tmp_path / "out.jsonl"
    rows = reward_bench_rows(expected)
    for broken, message in (
        (rows[1:], "4 rows, expected 5; rows by subset: hep-go 1 of 2"),
        ([*rows[:4], rows[4] | {"subset": "math_prm"}], "math-prm 2 of 3, math_prm 1 of 0"),
        ([*rows[:4], rows[4] | {"chosen": None}], f"{source}:5: field 'chosen': expected a string, found null"),
    ):
        source.write_text("".join(json.dumps(row) + "\n" for row in broken))
        with pytest.raises(InputError) as caught:
            load_reward_bench.main(["--from", str(source), "--output_file", str(output)], expected)
        assert message in str(caught.value)
        assert not output.exists()
    with pytest.raises(InputError, match="alpacaeval-easy 0 of 100"):
        load_reward_bench.main(
            ["--from", str(shared_data / "reward-bench-rebuilt/hep.jsonl"), "--output_file", str(output)]
        )


# --- load_data.py -------------------------------------------------------------------------------------------------


def test_unified_feedback_comes_from_a_local_folder_of_the_hub_layout(tmp_path):
    sample = read_jsonl(ROOT / "data/train-unified-feedback/sample.jsonl")
    (tmp_path / "hub" / "all").mkdir(parents=True)
    for split, rows in (("train", sample), ("val", sample[:1])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"hub/all/{split}-00000-of-00001.parquet")
    output = tmp_path / "train.jsonl"
    assert load_data.main(["--from", str(tmp_path / "hub"), "--output_file", str(output)]) == 0
    ties = sum(row["conv_A_rating"] == row["conv_B_rating"] for row in sample)
    records = read_jsonl(output)
    assert len(records) == len(sample) - ties
    assert Counter(record["source"] for record in records).keys() <= {row["source"] for row in sample}
    limited = tmp_path / "few.jsonl"
    assert load_data.main(["--from", str(tmp_path / "hub"), "--output_file", str(limited), "--limit", "2"]) == 0
    assert read_jsonl(limited) == records[:2]


def test_without_internet_the_hub_scripts_say_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub.constants
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in (load_reward_bench, load_data):
        with pytest.raises(RunFailed, match="give its folder or files instead"):
            module.main(["--output_file", str(tmp_path / "out.jsonl")])
    assert not any(tmp_path.iterdir())
