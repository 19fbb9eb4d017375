"""Scoring any JSONL of conversations: what is added, what is refused, and going on after a kill."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from codes.common.records import InputError
from codes.evaluate import score
from codes.train.reward_heads import RewardHeads
from codes.train.reward_model import RewardModel
from tests.conftest import ROOT

ROWS = [
    {"prompt": "What is 6 * 7?", "response": "42", "source": "kept"},
    {
        "messages": [
            {"role": "user", "content": "What is 6 * 7?"},
            {"role": "assistant", "content": "42"},
        ]
    },
    {"prompt": [{"role": "user", "content": "水的沸点？"}], "response": "一百摄氏度。", "id": "zh-1"},
    {"prompt": "Count.", "response": "one two three " * 20},
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run_score(tmp_path, tiny_reward_model):
    """Score rows in this process; returns the rows written."""

    def run(rows, *flags, output="out.jsonl", scorer=None):
        source = write_rows(tmp_path / "in.jsonl", rows)
        scorer = scorer or ("--model_path", str(tiny_reward_model), "--device", "cpu")
        score.main(["--input_file", str(source), "--output_file", str(tmp_path / output), *scorer, *map(str, flags)])
        return read_rows(tmp_path / output)

    return run


def test_rows_keep_fields_and_order_and_gain_a_score(run_score):
    written = run_score(ROWS)
    assert [{k: v for k, v in row.items() if k != "score"} for row in written] == ROWS
    assert written[0]["score"] == pytest.approx(written[1]["score"], abs=1e-4)
    assert len({row["score"] for row in written}) >= 3


def test_scores_do_not_depend_on_batches_or_on_how_many_rows_are_in_memory(run_score):
    whole = [row["score"] for row in run_score(ROWS, output="a/out.jsonl")]
    apart = run_score(ROWS, "--rows_in_memory", 1, "--batch_size", 1, output="b/out.jsonl")
    assert [row["score"] for row in apart] == pytest.approx(whole, abs=1e-4)


def test_the_length_scorer_needs_no_model(run_score):
    assert [row["score"] for row in run_score(ROWS[:3], scorer=("--scorer", "length"))] == [2.0, 2.0, 6.0]


def test_heads_of_a_model_add_their_scores_and_disagreement_where_asked_for_and_change_nothing_else(
    run_score, tiny_ensemble, tmp_path, monkeypatch
):
    scorer = ("--model_path", str(tiny_ensemble), "--device", "cpu")
    plain = run_score(ROWS, output="a/out.jsonl", scorer=scorer)
    monkeypatch.setattr("codes.evaluate.model_scorer.ModelScorer.score", None)  # what is stored suffices
    (tmp_path / "a/out.jsonl").unlink()
    with_heads = run_score(ROWS, "--head_scores", output="a/out.jsonl", scorer=scorer)
    for before, row in zip(plain, with_heads):
        heads, spread = row.pop("head_scores"), row.pop("disagreement")
        assert row == before
        assert list(heads) == ["head_1", "head_2", "head_3"]
        assert row["score"] == min(heads.values())
        assert spread == pytest.approx(statistics.pstdev(heads.values()))
    with pytest.raises(InputError, match=r"another configuration.*head_scores"):
        run_score(ROWS, output="a/out.jsonl", scorer=scorer)


def test_heads_of_objectives_have_no_disagreement(run_score, tiny_model, tmp_path):
    heads = RewardHeads(("helpful", "safe"), "weighted", weights={"helpful": 1.0, "safe": -2.0})
    RewardModel.from_pretrained(str(tiny_model), new_head=True, heads=heads).save_pretrained(tmp_path / "m")
    scorer = ("--model_path", str(tmp_path / "m"), "--device", "cpu", "--self_check")
    for row in run_score(ROWS, "--head_scores", scorer=scorer):
        assert "disagreement" not in row
        assert row["score"] == pytest.approx(row["head_scores"]["helpful"] - 2 * row["head_scores"]["safe"], abs=1e-6)
    assert json.loads((tmp_path / "out.jsonl.run_info.json").read_text())["heads"]["weights"] == heads.weights


def test_head_scores_are_refused_where_there_are_none_or_their_field_is_taken(run_score, tiny_ensemble, tmp_path):
    scorer = ("--model_path", str(tiny_ensemble), "--device", "cpu")
    for row, more, scored_by, problem in (
        (ROWS[0], [], None, "tiny-reward has one head"),
        (ROWS[0], [], ("--scorer", "length"), "goes with --scorer model, not with length"),
        ({**ROWS[0], "head_scores": 1}, [], scorer, r"in\.jsonl:1: field 'head_scores': is there already; remove it"),
        ({**ROWS[0], "disagreement": 1}, [], scorer, r"in\.jsonl:1: field 'disagreement': is there already; remove it"),
        (ROWS[0], ["--score_field", "head_scores"], scorer, "--score_field head_scores: is a field that is added"),
    ):
        with pytest.raises(InputError, match=problem):
            run_score([row], "--head_scores", *more, scorer=scored_by)
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    run_score([{**ROWS[0], "head_scores": 1}])  # a field like any other to who does not ask for them


def test_an_empty_answer_is_scored(run_score):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
    rows = [{"prompt": "q", "response": ""}, {"messages": turns}, {"prompt": "q", "response": "a"}]
    assert [row["score"] for row in run_score(rows, scorer=("--scorer", "length"))] == [0.0, 0.0, 1.0]
    scored = [row["score"] for row in run_score(rows, output="by_model.jsonl")]
    assert scored[0] == pytest.approx(scored[1], abs=1e-4)


def test_running_again_changes_nothing_and_another_configuration_is_refused(run_score, tmp_path):
    run_score(ROWS)
    before = (tmp_path / "out.jsonl").read_bytes()
    run_score(ROWS, "--batch_size", 2)
    for rows, flags, named in ((ROWS, ["--max_length", 64], "max_length"), (ROWS[:2], [], "data_sha256")):
        with pytest.raises(InputError, match=f"another configuration.*{named}"):
            run_score(rows, *flags)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_from_the_scores_it_has(tmp_path, tiny_reward_model, monkeypatch):
    from codes.evaluate.model_scorer import ModelScorer

    rows = [{"prompt": f"Say {i}.", "response": f"{i} " * (1 + i % 50)} for i in range(160)]
    source = write_rows(tmp_path / "in.jsonl", rows)

    def flags(folder):
        where = ["--input_file", str(source), "--output_file", str(tmp_path / folder / "out.jsonl")]
        return [*where, "--model_path", str(tiny_reward_model), "--device", "cpu", "--batch_size", "4"]

    run = subprocess.Popen([sys.executable, "-m", "codes.evaluate.score", *flags("killed")], cwd=ROOT, env=os.environ)
    deadline = time.monotonic() + 120
    while not any(path.read_bytes().count(b"\n") > 10 for path in tmp_path.glob("killed/score_store/*")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["score_store"]
    scored = []
    forward = ModelScorer.score
    monkeypatch.setattr(ModelScorer, "score", lambda self, batch: scored.extend(batch.ids) or forward(self, batch))
    score.main(flags("killed"))
    assert 0 < len(scored) <= 160 - 40
    score.main(flags("whole"))
    assert (tmp_path / "killed" / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p"}, r"in\.jsonl:2: field 'response': is missing"),
        ({"prompt": 3, "response": "r"}, r"in\.jsonl:2: field 'prompt': expected a string or a list"),
        ({"prompt": "p", "response": None}, r"in\.jsonl:2: field 'response': expected a string, found null"),
        ({"messages": "hello"}, r"in\.jsonl:2: field 'messages': expected a list"),
        ({"messages": [{"role": "user", "content": "q"}]}, r"in\.jsonl:2: field 'messages': must be a conversation"),
        ({"prompt": "p", "response": "r", "score": 1.0}, r"in\.jsonl:2: field 'score': is there already"),
        ({"prompt": "p", "response": "r", "id": "x"}, r"in\.jsonl:2: field 'id': 'x' stands already on line 1"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_written(run_score, tmp_path, row, problem):
    with pytest.raises(InputError, match=problem):
        run_score([{**ROWS[0], "id": "x"}, row])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_another_field_name_can_be_given_where_score_is_taken(run_score):
    [row] = run_score([{**ROWS[0], "score": 3}], "--score_field", "reward", scorer=("--scorer", "length"))
    assert (row["score"], row["reward"]) == (3, 2.0)


def test_the_input_and_foreign_files_are_never_overwritten(run_score, tmp_path):
    with pytest.raises(InputError, match="is the input file"):
        run_score(ROWS, output="in.jsonl", scorer=("--scorer", "length"))
    write_rows(tmp_path / "out.jsonl", [{"theirs": 1}])
    with pytest.raises(InputError, match=r"out\.jsonl: is there already"):
        run_score(ROWS, scorer=("--scorer", "length"))
    assert read_rows(tmp_path / "out.jsonl") == [{"theirs": 1}]
