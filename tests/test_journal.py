"""The journal: what is written is found again, through kills, and nothing else is taken for a journal."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codes.common.journal import Journal, OffsetTable
from codes.common.records import InputError

SETTINGS = {"model": "m", "temperature": 0.7}


def record(key, text="text", request="r"):
    return {"key": key, "request": request, "answer": text}


def test_what_was_appended_is_found_by_key_and_request_also_after_reopening(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS) as journal:
        for number in range(1200):
            journal.append(record(f"row{number}", "é" * number))
        journal.append(record("row7", "newer"))
        journal.append(record("row7", "other", request="r2"))
        assert journal.find("row7", "r")["answer"] == "newer"
    with Journal(path, SETTINGS) as journal:
        assert journal.find("row7", "r")["answer"] == "newer"
        assert journal.find("row7", "r2")["answer"] == "other"
        assert journal.find("row1199", "r")["answer"] == "é" * 1199
        assert journal.find("row1200", "r") is None
        assert journal.find("row1199", "r2") is None


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**6)), max_size=200),
    st.sampled_from([1, 3, 2**64 - 1]),
)
@settings(deadline=None)
def test_the_offset_table_is_a_dict_even_where_short_fingerprints_collide(puts, spread):
    offsets_taken = {}

    def fingerprint(key):
        return (key % spread).to_bytes(8, "big") + key.to_bytes(24, "big")

    table, expected = OffsetTable(lambda offset: offsets_taken[offset], slots=4), {}
    for offset, (key, _) in enumerate(puts):
        offsets_taken[offset] = fingerprint(key)
        table.put(fingerprint(key), offset)
        expected[key] = offset
    assert {key: table.find(fingerprint(key)) for key in range(41)} == {key: expected.get(key) for key in range(41)}
    assert len(table) == len(expected)


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS) as journal:
        for key in "abc":
            journal.append(record(key))
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, SETTINGS) as journal:
        assert journal.find("b", "r") == record("b")
        assert journal.find("c", "r") is None
        journal.append(record("c", "again"))
    assert [json.loads(line).get("key") for line in path.read_text().splitlines()] == [None, "a", "b", "c"]


@pytest.mark.parametrize("left", [0, 1, 12, 30])
def test_a_journal_killed_while_its_first_line_was_written_is_begun_again(tmp_path, left):
    path = tmp_path / "j.jsonl"
    Journal(path, SETTINGS).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    Journal(path, SETTINGS).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (b'{"key": "b", "request": "r", "answ\n', "invalid JSON at column"),
        (b"\0\0\0\0\0\n", "invalid JSON"),
        (b"\xff\xfe\n", "invalid UTF-8"),
        (b'{"request": "r"}\n', "field 'key': is missing"),
        (b"\n", "invalid JSON"),
    ],
)
def test_a_line_damaged_in_the_middle_is_named_and_nothing_is_changed(tmp_path, damage, problem):
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append(record("a"))
        journal.append(record("c"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, lines[2]]))
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"j\.jsonl:3: the journal is damaged .*{problem}"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == before


def test_another_configuration_is_refused_with_the_difference_named(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, SETTINGS).close()
    with pytest.raises(InputError, match=r"another configuration \(temperature: 0.7 there, 1.0 now\)"):
        Journal(path, SETTINGS | {"temperature": 1.0})
    with pytest.raises(InputError, match=r"\(top_p: null there, 0.9 now\)"):
        Journal(path, SETTINGS | {"top_p": 0.9})
    Journal(path, dict(reversed(SETTINGS.items()))).close()


@pytest.mark.parametrize("content", [b'{"id": 1, "question": "whose?"}\n{"torn', b"no newline at the end", b"[1]\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a journal"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_a_second_user_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS), pytest.raises(InputError, match="another process is writing"):
        Journal(path, SETTINGS)
    Journal(path, SETTINGS).close()


def test_a_record_that_could_not_be_written_whole_leaves_no_part_behind(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    real_write = os.write
    with Journal(path, SETTINGS) as journal:
        journal.append(record("a"))
        monkeypatch.setattr(os, "write", lambda handle, data: real_write(handle, data[:9]))
        with pytest.raises(OSError, match="disk is full"):
            journal.append(record("b"))
        monkeypatch.undo()
        journal.append(record("c"))
    with Journal(path, SETTINGS) as journal:
        assert (journal.find("b", "r"), journal.find("c", "r")) == (None, record("c"))


WRITER = """
import sys
from codes.common.journal import Journal
with Journal(sys.argv[1], {}) as journal:
    number = int(sys.argv[2])
    while True:
        journal.append({"key": f"row{number}", "request": "r", "answer": "x" * (number % 5000)})
        print(number, flush=True)
        number += 1
"""


def test_kill_9_loses_no_record_that_was_reported_written(tmp_path):
    path, generator, written = tmp_path / "j.jsonl", random.Random(0), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(path), str(written)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        reported = [int(line) for line in process.communicate()[0].splitlines() if line]
        written = max([written, *reported]) + 1
    with Journal(path, {}) as journal:
        for number in range(written):
            assert len(journal.find(f"row{number}", "r")["answer"]) == number % 5000


def test_outcomes_committed_together_share_syncs_and_are_on_disk_and_found_when_commit_returns(tmp_path, monkeypatch):
    path, syncs, real_fsync = tmp_path / "j.jsonl", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (syncs.append(handle), time.sleep(0.005), real_fsync(handle)))

    async def commit(journal, key):
        await journal.commit(record(key, "é" * 50))
        assert journal.find(key, "r") == record(key, "é" * 50)
        assert f'"{key}"' in path.read_text(encoding="utf-8")

    async def run(journal):
        await asyncio.gather(*(commit(journal, f"row{number}") for number in range(200)))

    with Journal(path, SETTINGS) as journal:
        syncs.clear()
        asyncio.run(run(journal))
    assert len(syncs) <= 3
    with Journal(path, SETTINGS) as journal:
        assert all(journal.find(f"row{number}", "r") for number in range(200))


def test_an_outcome_whose_caller_was_cancelled_is_written_all_the_same(tmp_path):
    async def run(journal):
        task = asyncio.create_task(journal.commit(record("a")))
        await asyncio.sleep(0)
        task.cancel()
        await journal.settle()

    with Journal(tmp_path / "j.jsonl", SETTINGS) as journal:
        asyncio.run(run(journal))
        assert journal.find("a", "r") == record("a")


def test_a_full_disk_fails_every_commit_of_the_batch_and_leaves_no_part_behind(tmp_path, monkeypatch):
    path, real_write = tmp_path / "j.jsonl", os.write

    async def run(journal):
        return await asyncio.gather(*(journal.commit(record(key)) for key in "abc"), return_exceptions=True)

    with Journal(path, SETTINGS) as journal:
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda handle, data: real_write(handle, data[:-9]) if handle > 2 else 0)
        outcomes = asyncio.run(run(journal))
        monkeypatch.undo()
        assert [type(outcome) for outcome in outcomes] == [OSError] * 3
        assert path.read_bytes() == before
        assert journal.find("a", "r") is None


def test_a_journal_is_read_without_touching_it_while_another_process_writes(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append(record("a"))
        with open(path, "ab") as file:
            file.write(b'{"key": "torn')
        before, seen = path.read_bytes(), []
        with Journal(path, SETTINGS, read_only=True, seen=seen.append) as reading:
            assert (reading.find("a", "r"), reading.find("torn", "r")) == (record("a"), None)
        assert path.read_bytes() == before
        assert seen == [record("a")]
    with Journal(tmp_path / "none.jsonl", SETTINGS, read_only=True) as absent:
        assert absent.find("a", "r") is None
    assert not (tmp_path / "none.jsonl").exists()
