"""Reward-Bench as a user runs it: whole and partial sets, sections, unknown subsets, refusals."""

import json

import pytest

from codes.common.records import InputError
from codes.evaluate import eval_reward_bench, eval_rm
from codes.evaluate.metrics import REWARD_BENCH_ROWS, REWARD_BENCH_SECTIONS, reward_bench_scores
from codes.evaluate.reward_bench_summary import reward_bench_summary
from tests.conftest import ROOT
from tests.test_metrics import BEAVER_COST

SAMPLE = ROOT / "data" / "eval" / "reward_bench" / "sample.jsonl"


def row(subset="hep-go", number=1, **fields):
    return {"prompt": "Add.", "chosen": "a + b, added", "rejected": "a - b", "subset": subset, "id": number} | fields


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def evaluate(tmp_path):
    """Run eval_reward_bench in this process; returns (summary, rows written)."""

    def run(section, data, *flags, name="m", scorer=("--scorer", "length")):
        where = ["--output_dir", str(tmp_path / "results"), "--model_name", name]
        eval_reward_bench.main([section, "--data", str(data), *where, *scorer, *map(str, flags)])
        folder = tmp_path / "results" / name
        summary = json.loads((folder / f"reward_bench_summary_{name}.json").read_text(encoding="utf-8"))
        rows = (folder / f"reward_bench_evaluation_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return summary, [json.loads(line) for line in rows]

    return run


def test_the_six_code_subsets_alone_give_an_incomplete_reasoning_section(evaluate, shared_data):
    summary, rows = evaluate("all", shared_data / "reward-bench-rebuilt" / "hep.jsonl")
    longer = sum(len(r["chosen"]) > len(r["rejected"]) for r in rows)
    assert len(rows) == 984
    assert summary["complete"] is False
    assert summary["overall"] is None
    assert summary["weighted_average_accuracy"] == pytest.approx(longer / 984)
    assert summary["sections"] == {
        "Chat": None,
        "Chat Hard": None,
        "Safety": None,
        "Reasoning": pytest.approx(longer / 984),
    }
    assert summary["subsets"]["hep-rust"]["rows"] == 164
    assert summary["subsets"]["math-prm"] == {
        "accuracy": None,
        "correct": 0,
        "rows": 0,
        "official_rows": 447,
        "ties": 0,
        "ci95": None,
    }


def test_the_shipped_sample_covers_every_section_and_says_that_it_is_not_whole(evaluate):
    summary, rows = evaluate("all", SAMPLE)
    assert None not in summary["sections"].values()
    assert summary["overall"] == pytest.approx(sum(summary["sections"].values()) / 4)
    assert summary["complete"] is False
    assert all(r["correct"] == (r["chosen_score"] > r["rejected_score"]) for r in rows)
    low, high = summary["ci95"]["overall"]
    assert low <= summary["overall"] <= high


def test_a_whole_set_is_complete_and_scored_as_the_official_counts_say():
    subsets, chosen = [], []
    for name, rows in REWARD_BENCH_ROWS.items():
        right = round(BEAVER_COST[name] * rows)
        subsets += [name] * rows
        chosen += [1.0] * right + [-1.0] * (rows - right)
    questions = [str(i) for i in range(2985)]
    summary = reward_bench_summary(subsets, questions, chosen, [0.0] * 2985, seed=0)
    expected = reward_bench_scores(BEAVER_COST)
    assert summary["complete"] is True
    assert summary["overall"] == pytest.approx(expected["overall"])
    assert summary["sections"] == pytest.approx(expected["sections"])
    assert summary["weighted_average_accuracy"] == pytest.approx(0.575209, abs=1e-6)
    low, high = summary["ci95"]["overall"]
    assert low < summary["overall"] < high
    assert high - low < 0.06
    one_missing = reward_bench_summary(subsets[1:], questions[1:], chosen[1:], [0.0] * 2984, seed=0)
    assert one_missing["complete"] is False
    assert one_missing["subsets"]["alpacaeval-easy"]["rows"] == 99


def test_a_section_uses_its_own_rows_and_leaves_the_others_null(evaluate):
    summary, rows = evaluate("chat-HARD", SAMPLE)
    assert {r["subset"] for r in rows} == set(REWARD_BENCH_SECTIONS["Chat Hard"])
    assert summary["complete"] is False
    assert summary["overall"] is None
    assert [name for name, value in summary["sections"].items() if value is not None] == ["Chat Hard"]


def test_ties_are_wrong_and_counted(evaluate, tmp_path):
    rows = [row(number=1), row(number=2, rejected="a + b, divvy")]
    summary, written = evaluate("all", write_rows(tmp_path / "rows.jsonl", rows))
    assert [r["correct"] for r in written] == [True, False]
    assert summary["counts"] == {"correct": 1, "ties": 1}
    assert summary["subsets"]["hep-go"]["ties"] == 1


def test_a_model_is_evaluated_with_the_length_baseline_beside_it(evaluate, tiny_reward_model, tmp_path):
    rows = [row(number=1), row("donotanswer", 1, prompt="Be rude.", chosen="No.", rejected="Sure, you fool!")]
    scorer = ("--model_path", tiny_reward_model, "--device", "cpu", "--batch_size", "1")
    data = write_rows(tmp_path / "rows.jsonl", rows)
    summary, written = evaluate("all", data, scorer=map(str, scorer))
    assert summary["length_baseline"]["weighted_average_accuracy"] == 0.5
    assert summary["provenance"]["attention_implementation"]
    assert summary["provenance"]["conversations"] == 4
    scorer = ("--model_path", tiny_reward_model, "--device", "cpu", "--batch_size", "32")
    _, together = evaluate("all", data, name="batched", scorer=map(str, scorer))
    for one, other in zip(written, together):
        assert one["chosen_score"] == pytest.approx(other["chosen_score"], abs=1e-4)
        assert one["rejected_score"] == pytest.approx(other["rejected_score"], abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([row(), row("mt-bench-medium", 2)], r"rows\.jsonl:2: field 'subset': 'mt-bench-medium' is not a Reward-Bench"),
        ([row(chosen=None)], r"rows\.jsonl:1: field 'chosen': expected a string, found null"),
        ([row(), row()], r"rows\.jsonl:2: field 'id': 1 of hep-go stands already at .*rows\.jsonl:1"),
        ([], "has no records"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_written(evaluate, tmp_path, rows, problem):
    with pytest.raises(InputError, match=problem):
        evaluate("chat", write_rows(tmp_path / "rows.jsonl", rows))
    assert not (tmp_path / "results").exists()


def test_unknown_sections_and_sections_without_rows_are_bad_usage(evaluate, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [row()])
    with pytest.raises(InputError, match="SECTION 'chatt' is not a Reward-Bench section"):
        evaluate("chatt", data)
    with pytest.raises(InputError, match="has no row of section Safety"):
        evaluate("safety", data)
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        evaluate("all", tmp_path / "absent.jsonl")
    assert not (tmp_path / "results").exists()


def test_results_on_other_data_or_of_another_scorer_are_refused(evaluate, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [row()])
    before = evaluate("all", data)
    with pytest.raises(InputError, match=r"another configuration.*scorer"):
        evaluate("all", data, scorer=("--scorer", "random"))
    write_rows(data, [row(), row(number=2)])
    with pytest.raises(InputError, match=r"another configuration.*data_sha256"):
        evaluate("all", data)
    write_rows(data, [row()])
    assert evaluate("all", data) == before


def test_a_section_evaluated_after_the_others_joins_them_and_replaces_nothing(evaluate, tmp_path, capsys):
    whole = evaluate("all", SAMPLE)
    assert evaluate("chat", SAMPLE) == whole
    assert "evaluated before on the same data, and kept: Chat Hard, Reasoning, Safety" in capsys.readouterr().out
    for section in ("safety", "chat", "reasoning", "chat-hard"):
        summary, rows = evaluate(section, SAMPLE, name="apart")
    assert rows == whole[1]
    assert summary | {"eval_model": "m"} == whole[0]
    alone, _ = evaluate("chat", SAMPLE, name="alone")
    both, _ = evaluate("safety", SAMPLE, name="alone")
    assert (alone["sections_evaluated"], both["sections_evaluated"]) == (["Chat"], ["Chat", "Safety"])
    assert both["sections"]["Chat"] == alone["sections"]["Chat"] == whole[0]["sections"]["Chat"]


def test_a_folder_with_results_of_another_model_from_the_other_command_is_refused(evaluate, tmp_path):
    rm = ["length", "--data_dir", str(ROOT / "data" / "eval"), "--output_dir", str(tmp_path / "results")]
    eval_rm.main([*rm, "--scorer", "length", "--model_name", "a"])
    with pytest.raises(InputError, match=r"length_a\.jsonl: made with another configuration.*scorer"):
        evaluate("chat", SAMPLE, name="a", scorer=("--scorer", "random"))
    evaluate("chat", SAMPLE, name="a")
    evaluate("chat", SAMPLE, name="b")
    with pytest.raises(InputError, match=r"reward_bench_evaluation_b\.jsonl: made with another configuration.*scorer"):
        eval_rm.main([*rm, "--scorer", "random", "--model_name", "b"])
    assert not list((tmp_path / "results" / "b").glob("length*"))


def test_the_max_length_of_a_folder_is_one(evaluate, tmp_path, tiny_reward_model):
    scorer = ("--model_path", str(tiny_reward_model), "--device", "cpu")
    evaluate("chat", write_rows(tmp_path / "rows.jsonl", [row("mt-bench-easy")]), scorer=scorer)
    rm = ["length", "--data_dir", str(ROOT / "data" / "eval"), "--output_dir", str(tmp_path / "results"), *scorer]
    with pytest.raises(InputError, match=r"another configuration.*max_length"):
        eval_rm.main([*rm, "--model_name", "m", "--max_length", "64"])


def test_results_are_evaluated_again_and_what_they_held_is_said_to_be_replaced(evaluate, tmp_path, caplog):
    _, written = evaluate("all", write_rows(tmp_path / "rows.jsonl", [row(chosen_score=-1.0)]))
    assert written[0]["chosen_score"] == len("a + b, added")
    assert "rows.jsonl:1: field 'chosen_score': is replaced" in caplog.text


def test_without_the_hub_the_error_is_one_line_that_names_the_data_flag(run_command, tmp_path):
    flags = ["--scorer", "length", "--output_dir", tmp_path / "results"]
    done = run_command("codes.evaluate.eval_reward_bench", "all", *flags, HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--data FILE" in done.stderr
    assert not (tmp_path / "results").exists()
