"""Scoring each conversation once, by one process or several, ahead of time, from the store and without it."""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from codes.common.cli import RunFailed
from codes.common.records import InputError
from codes.evaluate import eval_rm
from codes.evaluate.ranks import Ranks, deal_out
from codes.evaluate.score_store import Scores, ScoreStore, open_store
from codes.evaluate.scorers import Conversation, LengthScorer
from codes.evaluate.scoring import _of_all_ranks, prepared_ahead, score_conversations
from tests.conftest import ROOT
from tests.test_eval_rm import KNOWN_LENGTH_ANSWERS, complete, read_json, result_files

SAMPLE_ROWS = 6


@pytest.fixture
def sample_data(tmp_path):
    """The first shipped rows of two biases."""
    folder = tmp_path / "data"
    folder.mkdir()
    for bias in ("length", "refinement-aware"):
        lines = (ROOT / "data" / "eval" / f"{bias}_bias.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{bias}_bias.jsonl").write_text("".join(lines[:SAMPLE_ROWS]), encoding="utf-8")
    return folder


def two_ranks(*command: object, **options) -> subprocess.Popen:
    """Start a command of this project on two ranks, as a user does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([*launcher, *map(str, command)], env=environment, **options)


@pytest.fixture
def one_thread():
    """Matrix products of ranks, which have a thread each, and of this process are then the same to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def flags(model, data, output, *more):
    where = ["--data_dir", data, "--output_dir", output, "--model_name", "m", "--device", "cpu"]
    return [*map(str, ["all", "--model_path", model, *where, "--max_length", 512, "--batch_size", 2, *more])]


def known_answers(folder, name="length"):
    found = {}
    for bias in KNOWN_LENGTH_ANSWERS:
        summary = read_json(folder / name / f"{bias}_summary_{name}.json")
        counts = summary["counts"]
        figures = (counts["original_correct"], counts["biased_correct"], counts["flipped"])
        found[bias] = (*figures, summary["total_records_evaluated"])
    return found


# --- Several ranks -----------------------------------------------------------------------------------------------


def test_two_ranks_give_the_known_answers_on_the_real_files(shared_data, tmp_path):
    run = two_ranks(
        *("-m", "codes.evaluate.eval_rm", "all", "--scorer", "length"),
        *("--data_dir", shared_data / "contrastrm-eval", "--output_dir", tmp_path),
    )
    printed, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert printed.count("all (pooled)") == 1
    assert known_answers(tmp_path) == KNOWN_LENGTH_ANSWERS


def scored_in(path):
    return sum(len(line.get("scores", ())) for line in map(json.loads, complete(path)))


def test_two_ranks_killed_and_started_again_write_what_one_process_writes_and_score_nothing_twice(
    sample_data, tiny_reward_model, tmp_path, one_thread
):
    command = ("-m", "codes.evaluate.eval_rm", *flags(tiny_reward_model, sample_data, tmp_path / "two"))
    run = two_ranks(*command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = tmp_path / "two" / "m" / "score_store"
    deadline = time.monotonic() + 200
    while sum(path.read_bytes().count(b"\n") > 2 for path in store.glob("*.jsonl")) < 2:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    killed = {path.name: scored_in(path) for path in store.iterdir()}
    assert min(killed.values()) > 0

    run = two_ranks(*command)
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path / "one"))
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert result_files(tmp_path / "two" / "m") == result_files(tmp_path / "one" / "m")
    [whole] = [scored_in(path) for path in (tmp_path / "one" / "m" / "score_store").iterdir()]
    finished = {path.name: scored_in(path) for path in store.iterdir()}
    assert len(killed) == len(finished) == 2
    assert sum(finished.values()) == whole
    assert max(finished.values()) < whole


def test_one_process_takes_over_what_ranks_have_stored_up_to_a_torn_line(tmp_path):
    configuration = {"scorer": "model"}
    for rank in range(3):
        with ScoreStore(tmp_path, configuration, rank) as store:
            store.add(Scores({f"key {rank}": float(rank)}, {f"key {rank}"}))
    with open(store.path, "ab") as file:
        file.write(b'{"conversations": ["torn')
    with open_store(tmp_path, configuration, Ranks()) as store:
        assert store.known == Scores({f"key {rank}": float(rank) for rank in range(3)}, {"key 0", "key 1", "key 2"})
        assert list((tmp_path / "score_store").iterdir()) == [store.path]
    with open_store(tmp_path, configuration, Ranks()) as store:
        assert len(store.known.values) == 3


FAILING_RANK = """
import os, sys
from codes.common.cli import run_main
from codes.common.records import InputError
from codes.evaluate import eval_rm, scorers

ends = {
    "input": lambda: (_ for _ in ()).throw(InputError("pairs.jsonl:3: no such thing")),
    "killed": lambda: os.kill(os.getpid(), 9),
}
end = ends[sys.argv.pop(1)]
one = scorers.LengthScorer.score_one
scorers.LengthScorer.score_one = lambda self, c: end() if os.environ["RANK"] == "1" else one(self, c)
run_main(eval_rm.main)
"""


@pytest.mark.parametrize(
    ("end", "line", "status"),
    [
        ("input", "error: pairs.jsonl:3: no such thing", 2),
        ("killed", "", -9),  # the launcher may be first to notice, and ends the other rank before it says so
    ],
)
def test_an_error_of_one_rank_ends_all_with_one_line_and_its_status(tmp_path, end, line, status):
    script = tmp_path / "failing_rank.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{FAILING_RANK}")
    started = time.monotonic()
    run = two_ranks(script, end, "all", "--scorer", "length", "--output_dir", tmp_path / "results")
    _, errors = run.communicate(timeout=200)
    assert run.returncode != 0
    assert time.monotonic() - started < 150
    lines = [text for text in errors.splitlines() if text.startswith("error: ")]
    assert len(lines) == 1 or (end == "killed" and not lines), errors
    assert all(line in text for text in lines)
    assert f"exitcode  : {status} " in errors
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([5, 1, 1, 1, 1, 1], 2, [[0], [1, 2, 3, 4, 5]]),
        ([3, 3, 3, 3], 3, [[0, 3], [1], [2]]),
        ([7], 2, [[0], []]),
        ([], 2, [[], []]),
    ],
)
def test_parts_are_dealt_out_evenly_by_size_and_in_order(sizes, count, expected):
    assert deal_out(sizes, count) == expected


def test_a_process_on_its_own_waits_for_nobody_and_has_every_part():
    ranks = Ranks()
    ranks.wait_for_all()
    assert ranks.is_first
    assert ranks.own_part([1, 2, 3]) == [0, 1, 2]


@pytest.mark.parametrize("module", ["eval_rm", "eval_reward_bench", "eval_benchmark", "score"])
def test_only_the_first_rank_writes_results(module, tmp_path, monkeypatch, capsys):
    command = importlib.import_module(f"codes.evaluate.{module}")
    row = {"prompt": "q", "chosen": "long", "rejected": "no", "response": "r", "subset": "hep-go"}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row) + "\n")
    given = {
        "eval_rm": ["all"],
        "eval_reward_bench": ["all", "--data", str(data)],
        "eval_benchmark": ["pairs", "--data", str(data)],
        "score": ["--input_file", str(data)],
    }
    where = "--output_file" if module == "score" else "--output_dir"
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "1"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    command.main([*given[module], "--scorer", "length", where, str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    command.main([*given[module], "--scorer", "length", where, str(tmp_path / "out")])
    assert (tmp_path / "out").exists()


class RanksWithTwoStores(Ranks):
    """What two ranks would be that do not see each other's files: the other one finds what this one has found."""

    def sum(self, tensor):
        tensor *= 2


def test_ranks_that_do_not_know_the_same_scores_are_told_so():
    with pytest.raises(RunFailed, match="a common file system, or --no_cache"):
        _of_all_ranks(Scores({"a": 1.0}), ["a"], RanksWithTwoStores(0, 2))


class RanksInThreads(Ranks):
    """Ranks of this process, each in a thread of its own."""

    def __init__(self, rank, tensors, barrier):
        super().__init__(rank, len(tensors))
        self.tensors, self.barrier = tensors, barrier

    def sum(self, tensor):
        self.tensors[self.rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.tensors)
        self.barrier.wait()
        tensor.copy_(total)


def test_each_rank_gets_the_scores_of_all_to_the_last_bit_and_those_of_their_heads():
    of_all = Scores(
        {"a": 0.1, "b": -3e-300, "c": 7.0}, {"b"}, {"c"}, {"a": [0.1, 2.0], "b": [1e300, -0.0], "c": [7, 8]}
    )
    for whole in (of_all, Scores(of_all.values, of_all.prompt_cut, of_all.answer_cut)):
        tensors, barrier = [None] * 3, threading.Barrier(3)
        parts = [whole.only(["b"]), whole.only(["c", "a"]), Scores()]

        def gathered(rank, parts=parts, tensors=tensors, barrier=barrier):
            return _of_all_ranks(parts[rank], ["a", "b", "c"], RanksInThreads(rank, tensors, barrier))

        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(gathered, range(3))) == [whole] * 3


# --- The store ---------------------------------------------------------------------------------------------------


def test_the_store_keeps_the_scores_of_heads_and_reads_back_what_it_was_given(tmp_path):
    first = Scores({"a": 1.0, "b": 2.0}, {"a"}, set(), {"a": [1.0, 3.0], "b": [2.0, 4.0]})
    with ScoreStore(tmp_path, {"m": 1}) as store:
        store.add(first)
        store.add(Scores({"c": 5.0}, heads={"c": [5.0, 6.0]}))
    with ScoreStore(tmp_path, {"m": 1}) as store:
        assert store.known.only(["a", "b"]) == first
        assert store.known.heads["c"] == [5.0, 6.0]


@pytest.mark.parametrize("rows", [[[1.0]], [[1.0], 2.0], [[1.0], [2.0, 3.0]], [[], []], [[1.0], [None]], "ab", [1, 2]])
def test_head_scores_of_another_shape_are_named_with_the_line_of_the_store(tmp_path, rows):
    with ScoreStore(tmp_path, {"m": 1}) as store:
        store._file.append({"conversations": ["a", "b"], "scores": [1.0, 2.0], "head_scores": rows})
    with pytest.raises(InputError, match=r"\.jsonl:2: field 'head_scores': expected a number a head each"):
        ScoreStore(tmp_path, {"m": 1})


def test_the_length_rule_gives_the_known_answers_from_the_store(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(LengthScorer, "keeps_scores", True)
    command = ["all", "--scorer", "length", "--data_dir", str(shared_data / "contrastrm-eval"), "--output_dir"]
    eval_rm.main([*command, str(tmp_path)])
    before = result_files(tmp_path / "length")
    monkeypatch.setattr(LengthScorer, "score_one", None)  # would fail if anything were scored again
    eval_rm.main([*command, str(tmp_path)])
    assert result_files(tmp_path / "length") == before
    assert known_answers(tmp_path) == KNOWN_LENGTH_ANSWERS


def test_without_a_cache_nothing_is_stored_or_believed(sample_data, tiny_reward_model, tmp_path, monkeypatch):
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path))
    before = result_files(tmp_path / "m")
    [store] = (tmp_path / "m" / "score_store").iterdir()
    lines = store.read_text().splitlines(keepends=True)
    store.write_text(
        lines[0] + "".join(json.dumps(json.loads(line) | {"scores": [9.0, 9.0]}) + "\n" for line in lines[1:])
    )
    spoilt = store.read_bytes()
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path, "--no_cache"))
    assert result_files(tmp_path / "m") == before
    assert store.read_bytes() == spoilt


@pytest.mark.parametrize("room", [700, 9000], ids=["none for the scores", "none for the results"])
def test_a_full_disk_leaves_whole_files_and_the_scores_there_was_room_for(
    sample_data, tiny_reward_model, tmp_path, room
):
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path / "whole"))
    expected = result_files(tmp_path / "whole" / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=r"(disk is full|File too large).*: '.*\.json"):
            eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path / "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    written = result_files(tmp_path / "full" / "m")
    assert written.items() < expected.items()
    [store] = (tmp_path / "full" / "m" / "score_store").iterdir()
    assert len(complete(store)) > 1
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path / "full"))
    assert result_files(tmp_path / "full" / "m") == expected


def test_truncation_is_counted_the_same_from_the_store(tiny_reward_model, tmp_path):
    from codes.evaluate.model_scorer import ModelScorer

    conversations = [Conversation("Why? " * 40, "No. " * n) for n in (1, 40, 200)]
    counts = []
    for _ in range(2):
        scorer = ModelScorer.load(str(tiny_reward_model), batch_size=2, max_length=64, device="cpu")
        scores = score_conversations(scorer, conversations, tmp_path)
        counts.append(scores.truncation(conversation.key for conversation in conversations))
    assert counts[0] == counts[1]
    assert counts[0]["prompt_truncated"] == 3
    assert counts[0]["answer_truncated"] >= 1


def test_scores_know_which_of_them_were_cut():
    scores = Scores({"a": 1.0, "b": 2.0}, {"a"}, {"b"})
    assert scores.only(["b", "c"]) == Scores({"b": 2.0}, set(), {"b"})


# --- Preparing ahead ---------------------------------------------------------------------------------------------


def test_what_is_prepared_comes_in_order_and_in_another_thread():
    threads = set()

    def prepare(item):
        threads.add(threading.current_thread())
        return -item

    assert list(prepared_ahead(prepare, range(10))) == [-item for item in range(10)]
    assert threads.isdisjoint({threading.main_thread()})


def test_the_next_items_are_prepared_while_one_is_used():
    prepared = []
    items = prepared_ahead(lambda item: prepared.append(item) or item, range(10))
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while prepared != [0, 1, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    items.close()
    assert prepared == [0, 1, 2]


def test_an_error_of_preparing_is_raised_where_its_item_is_taken():
    def prepare(item):
        if item == 2:
            raise InputError("item 2")
        return item

    items = prepared_ahead(prepare, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(InputError, match="item 2"):
        next(items)


# --- Checking itself ---------------------------------------------------------------------------------------------


def test_the_self_check_puts_the_largest_differences_into_every_summary(
    sample_data, tiny_reward_model, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path, "--self_check"))
    assert "self-check of 16 scores, largest differences: alone " in caplog.text
    for bias in ("length", "refinement-aware"):
        checked = read_json(tmp_path / "m" / f"{bias}_summary_m.json")["self_check"]
        assert checked.keys() == {"sample", "tolerance", "alone", "left_padded", "unshared"}
        assert (checked["sample"], checked["tolerance"]) == (16, 1e-4)
        assert 0 < max(checked["alone"], checked["left_padded"], checked["unshared"]) < 1e-4


def test_the_self_check_finds_scores_that_depend_on_the_padding_and_names_the_conversation(
    sample_data, tiny_reward_model, tmp_path, monkeypatch
):
    from codes.train import reward_model

    # The error of many libraries: the last position is taken for the last token.
    monkeypatch.setattr(reward_model, "last_attended", lambda mask: torch.full((len(mask),), mask.shape[1] - 1))
    command = flags(tiny_reward_model, sample_data, tmp_path, "--self_check")
    with pytest.raises(RunFailed, match=r"_bias\.jsonl:\d+: field '\w+': --self_check: .* scored unshared"):
        eval_rm.main(command)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["score_store"]


def test_the_self_check_finds_a_store_whose_scores_are_not_the_model_s(sample_data, tiny_reward_model, tmp_path):
    eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path))
    [store] = (tmp_path / "m" / "score_store").iterdir()
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    for line in lines[1:]:
        line["scores"] = [score + 0.01 for score in line["scores"]]
    store.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunFailed, match=r"1\.0e-02 apart where 1\.0e-04 may be"):
        eval_rm.main(flags(tiny_reward_model, sample_data, tmp_path, "--self_check"))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--scorer", "length", "--self_check"], "--self_check: there is nothing to check"),
        (["--model_path", "m", "--device_map", "auto", "--device", "cpu"], "contradict each other"),
        (["--scorer", "length", "--tokens_per_batch", "0"], "--tokens_per_batch"),
    ],
)
def test_flags_that_make_no_sense_are_refused(sample_data, tmp_path, given, problem):
    with pytest.raises(InputError, match=problem):
        eval_rm.main(["all", "--data_dir", str(sample_data), "--output_dir", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out").exists()


def test_a_model_spread_over_devices_is_refused_on_several_ranks(monkeypatch):
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="without torchrun"):
        eval_rm.main(["all", "--model_path", "m", "--device_map", "auto"])


def test_a_model_spread_over_devices_scores_alike(tiny_reward_model, tmp_path):
    from codes.evaluate.model_scorer import ModelScorer

    conversations = [Conversation("Why?", "No. " * n) for n in (1, 4, 20)]
    options = {"batch_size": 2, "max_length": 512, "dtype": "fp32"}
    spread = ModelScorer.load(str(tiny_reward_model), device_map="auto", **options)
    plain = ModelScorer.load(str(tiny_reward_model), device="cpu", **options)
    found = [score_conversations(scorer, conversations, None).values for scorer in (spread, plain)]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
