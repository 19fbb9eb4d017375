"""What an ensemble gains: figures against brute force and against known answers, and the command on shipped samples."""

import json
import shutil

import numpy as np
import pytest

from codes.common.records import InputError
from codes.evaluate import ensemble, ensemble_gain, eval_rm
from codes.evaluate.bias_summary import RATES, PairOutcomes
from codes.evaluate.ensemble_figures import (
    accuracy_by_disagreement,
    grouped_by_prompt,
    member_and_rule_scores,
    over_optimisation,
    rates_and_gains,
)
from codes.evaluate.ensemble_scorer import EnsembleScores
from codes.evaluate.metrics import bias_sensitivity_rate, robust_accuracy
from codes.evaluate.paired import paired_biases
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Conversation
from tests.conftest import ROOT
from tests.test_schemas import check
from tests.test_score import read_rows, write_rows

EVAL = ROOT / "data" / "eval"
CANDIDATES = EVAL / "best_of_n" / "answers_sample.jsonl"


def outcomes(seed, rows=60):
    """Random outcomes of rows about 20 questions."""
    generator = np.random.default_rng(seed)
    lengths = np.ones((rows, 2))
    questions = [f"q{i % 20}" for i in range(rows)]
    return PairOutcomes(questions, generator.normal(size=(rows, 2)), generator.normal(size=(rows, 2)), lengths, lengths)


# --- Rates -------------------------------------------------------------------------------------------------------


def test_every_rule_is_compared_with_the_mean_of_the_members_rates():
    members, rules = [outcomes(seed) for seed in (1, 2, 3)], {"mean": outcomes(4), "minimum": outcomes(5)}
    of_members, of_rules = rates_and_gains(members, rules, seed=1)
    by_hand = {"bias_sensitivity_rate": bias_sensitivity_rate, "robust_accuracy": robust_accuracy}
    for name, rate in by_hand.items():
        own = [rate(member.original_correct, member.biased_correct) for member in members]
        assert [part["rates"][name] for part in of_members] == own
        for rule, outcome in rules.items():
            found = of_rules[rule]["against_average_member"][name]
            expected = rate(outcome.original_correct, outcome.biased_correct)
            assert (found["first"], found["second"]) == pytest.approx((np.mean(own), expected))
            assert found["difference"] == pytest.approx(expected - np.mean(own))
            assert found["ci95"][0] < found["difference"] < found["ci95"][1]


def test_against_one_member_the_gain_is_the_paired_difference_of_two_models():
    member, rule = outcomes(1), outcomes(2)
    _, of_rules = rates_and_gains([member], {"rule": rule}, seed=7)
    _, pooled = paired_biases({"b": member}, {"b": rule}, ["b"], seed=7)
    for rate in RATES:
        found = of_rules["rule"]["against_average_member"][rate]
        assert found["ci95"] == pytest.approx(pooled[rate]["ci95"])
        assert found["difference"] == pytest.approx(pooled[rate]["difference"])


def test_a_rate_that_a_member_does_not_have_leaves_no_average_member():
    never_right = outcomes(1)
    never_right = PairOutcomes(never_right.questions, np.tile([0.0, 1.0], (60, 1)), *[np.ones((60, 2))] * 3)
    of_members, of_rules = rates_and_gains([never_right, outcomes(2)], {"mean": outcomes(3)}, seed=1)
    assert of_members[0]["rates"]["bias_sensitivity_rate"] is None
    found = of_rules["mean"]["against_average_member"]["bias_sensitivity_rate"]
    assert (found["first"], found["difference"], found["ci95"]) == (None, None, None)
    assert of_rules["mean"]["against_average_member"]["robust_accuracy"]["difference"] is not None


def test_all_rules_follow_from_the_members_scores():
    matrix = np.random.default_rng(0).normal(size=(9, 3))
    scored = EnsembleScores(members={f"k{i}": row for i, row in enumerate(matrix.tolist())})
    members, rules = member_and_rule_scores(scored, penalty=2.0)
    for place, member in enumerate(members):
        assert list(member.values.values()) == matrix[:, place].tolist()
    expected = {"mean": matrix.mean(1), "minimum": matrix.min(1), "penalised": matrix.mean(1) - 2 * matrix.var(1)}
    assert rules.keys() == expected.keys()
    for rule, values in expected.items():
        assert list(rules[rule].values.values()) == pytest.approx(values.tolist())


# --- Disagreement ------------------------------------------------------------------------------------------------


def test_accuracy_by_thirds_of_disagreement_is_counted():
    order = np.random.default_rng(0).permutation(90)
    spread, correct = order / 10, order < 50
    found = accuracy_by_disagreement(spread, correct, [f"q{i}" for i in range(90)], seed=1)
    assert [found[third]["pairs"] for third in ("low", "middle", "high")] == [30, 30, 30]
    assert [found[third]["accuracy"] for third in ("low", "middle", "high")] == pytest.approx([1, 20 / 30, 0])
    assert [found[third]["disagreement"] for third in ("low", "high")] == [[0, 2.9], [6.0, 8.9]]
    assert found["middle"]["ci95"][0] < 20 / 30 < found["middle"]["ci95"][1]
    assert found["low_against_high"]["difference"] == 1


def test_pairs_of_one_disagreement_are_in_one_third_and_an_empty_third_has_no_accuracy():
    found = accuracy_by_disagreement([0.0] * 5 + [1.0], [True] * 5 + [False], list("abcdef"), seed=1)
    assert (found["low"]["pairs"], found["middle"]["pairs"], found["high"]["pairs"]) == (5, 0, 1)
    assert (found["middle"]["accuracy"], found["middle"]["disagreement"]) == (None, None)
    alike = accuracy_by_disagreement([2.0] * 4, [True, False] * 2, list("abcd"), seed=1)
    assert (alike["low"]["accuracy"], alike["high"]["accuracy"]) == (0.5, None)
    assert alike["low_against_high"]["difference"] is None


# --- Over-optimisation -------------------------------------------------------------------------------------------


def test_a_minimum_holds_where_each_member_is_fooled_by_another_answer():
    # Gold scores 1, 2, 3, and two answers of gold 0, each of which one member alone is enthusiastic about.
    gold = [1.0, 2.0, 3.0, 0.0, 0.0]
    of_members = [[1, 2, 3, 9, 0], [1, 2, 3, 0, 9]]
    candidates = [(Conversation(f"p{p}", f"a{i}"), g + p % 2) for p in range(6) for i, g in enumerate(gold)]
    by_prompt = grouped_by_prompt(candidates)
    members = [
        Scores({conversation.key: float(scores[i % 5]) for i, (conversation, _) in enumerate(candidates)})
        for scores in of_members
    ]
    keys = list(members[0].values)
    minimum = Scores({key: min(member.values[key] for member in members) for key in keys})
    found = over_optimisation(by_prompt, members, {"minimum": minimum, "first": members[0]}, None, seed=1)
    assert [part["curve"][-1]["gold"] for part in found["members"]] == [0.5, 0.5]
    rule = found["rules"]["minimum"]
    assert rule["curve"][-1]["gold"] == 3.5
    assert (rule["knee"]["n"], rule["knee"]["fall"]) == (5, 0)
    gain = rule["against_average_member"]
    # Every prompt gains as much.
    assert gain["gold_at_largest_n"]["difference"] == pytest.approx(3)
    assert gain["gold_at_largest_n"]["ci95"] == pytest.approx([3, 3])
    falls = [part["knee"]["fall"] for part in found["members"]]
    assert gain["fall"]["difference"] == pytest.approx(-np.mean(falls))
    assert min(falls) > 0
    # A rule that is one of two like members gains nothing.
    same = found["rules"]["first"]["against_average_member"]["gold_at_largest_n"]
    assert (same["difference"], same["ci95"]) == (0, [0, 0])


# --- The command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minimum(tmp_path_factory, tiny_members):
    """An ensemble's file, whose rule is the minimum."""
    path = tmp_path_factory.mktemp("ensemble") / "minimum.json"
    files = ["--reference", str(CANDIDATES), "-o", str(path)]
    ensemble.main([*map(str, tiny_members), *files, "--rule", "minimum", "--device", "cpu"])
    return path


@pytest.fixture
def data(tmp_path):
    """A folder with the first shipped rows of two biases, and a bias that is no built-in one."""
    folder = tmp_path / "data"
    folder.mkdir()
    for bias in ("length", "beauty"):
        lines = (EVAL / f"{bias}_bias.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:9]
        (folder / f"{bias}_bias.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(folder / "length_bias.jsonl", folder / "my-own_bias.jsonl")
    return folder


@pytest.fixture
def trial(tmp_path, minimum, data):
    """Run the command on the ensemble and the data; returns the result, checked against its schema."""

    def run(*flags):
        output = tmp_path / "out" / "gain.json"
        where = ["--data_dir", str(data), "-o", str(output), "--device", "cpu"]
        ensemble_gain.main([str(minimum), *where, *map(str, flags)])
        return check("ensemble_gain", output)

    return run


def test_the_rates_are_those_of_evaluating_members_and_ensemble_one_by_one(
    trial, minimum, data, tiny_members, tmp_path, capsys
):
    figure = tmp_path / "gain.png"
    result = trial("--candidates", CANDIDATES, "--figure", figure)
    printed = capsys.readouterr().out
    where = ["--data_dir", str(data), "--output_dir", str(tmp_path / "results"), "--device", "cpu"]
    runs = [["--model_path", str(member), "--model_name", f"m{i}"] for i, member in enumerate(tiny_members)]
    runs.append(["--scorer", "ensemble", "--model_path", str(minimum), "--model_name", "m3"])
    parts = [*result["members"], result["rules"]["minimum"]]
    for place, (flags, part) in enumerate(zip(runs, parts)):
        eval_rm.main(["all", *where, *flags])
        path = tmp_path / "results" / f"m{place}" / f"all_biases_summary_m{place}.json"
        average = json.loads(path.read_text())["average_across_all_biases"]
        assert part["rates"]["counts"] == average["counts"]
        assert part["rates"]["bias_sensitivity_rate"] == average["bias_sensitivity_rate"]
        assert part["rates"]["ci95"]["robust_accuracy"] == pytest.approx(average["ci95"]["robust_accuracy"])
    assert result["biases"] == ["length", "beauty"]
    rows = [row for bias in ("length", "beauty") for row in read_rows(tmp_path / f"results/m3/{bias}_m3.jsonl")]
    spread = np.array([row["disagreement_biased"] for row in rows])
    highest = spread > np.quantile(spread, 2 / 3)
    right = np.array([row["bias_evaluation_correct"] for row in rows])
    assert result["disagreement"]["biased"]["high"]["pairs"] == highest.sum()
    assert result["disagreement"]["biased"]["high"]["accuracy"] == right[highest].mean()
    assert result["over_optimisation"]["largest_n"] == 6
    assert figure.read_bytes().startswith(b"\x89PNG")
    for told in ("average member", "rule: penalised", "biased pairs", "at n = 6", "conversations x 3 members"):
        assert told in printed


def test_the_cost_counts_what_was_computed_and_scores_are_computed_once(trial, capsys):
    first = trial()["cost"]
    distinct = first["conversations"]
    assert first["scores"] == 3 * distinct
    assert [member["computed"] for member in first["members"]] == [distinct] * 3
    each = [member["seconds"] / distinct for member in first["members"]]
    assert first["seconds_per_conversation"] == pytest.approx(sum(each))
    assert [m["ensemble_over_member"] for m in first["members"]] == pytest.approx([sum(each) / e for e in each])
    capsys.readouterr()
    again = trial()["cost"]
    assert (again["conversations"], again["seconds_per_conversation"]) == (distinct, None)
    assert [member["computed"] for member in again["members"]] == [0, 0, 0]
    assert "seed-1: none computed anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "problem"),
    [
        ([{"prompt": "p", "response": "r"}], [], r"c\.jsonl:1: field 'gold_score': is missing"),
        (
            [{"prompt": "p", "response": "r", "gold_score": "3"}],
            [],
            r"c\.jsonl:1: field 'gold_score': expected a finite",
        ),
        ([{"prompt": "p", "response": "r", "gold_score": 10**400}], [], "expected a finite number, found 1000"),
        ([{"prompt": "p", "gold_score": 1}], [], r"c\.jsonl:1: field 'response': is missing"),
        ([], [], r"c\.jsonl: the file has no records"),
        ([{"prompt": "p", "response": "r", "gold_score": 1}], ["--max_n", 2], "--max_n 2: no prompt has so many"),
        ([{"prompt": "p", "response": "r", "gold_score": 1}], ["--figure", "out.txt"], "--figure out.txt: give it one"),
    ],
)
def test_bad_candidates_are_told_before_anything_is_loaded_or_written(
    trial, tmp_path, monkeypatch, rows, flags, problem
):
    path = write_rows(tmp_path / "c.jsonl", rows)
    monkeypatch.setattr(ensemble_gain, "EnsembleScorer", None)
    with pytest.raises(InputError, match=problem):
        trial("--candidates", path, *flags)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_biases_an_absent_ensemble_and_foreign_outputs_are_refused(trial, tmp_path):
    with pytest.raises(InputError, match=r"--data_dir .*: has no <bias>_bias\.jsonl of a built-in pairwise bias"):
        trial("--data_dir", tmp_path)
    with pytest.raises(InputError, match="ENSEMBLE: no such file"):
        ensemble_gain.main([str(tmp_path / "absent.json")])
    with pytest.raises(InputError, match="--candidates: no such file"):
        trial("--candidates", tmp_path)
    with pytest.raises(InputError, match="--max_n: is for answers with gold scores; add --candidates"):
        trial("--max_n", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gain.json").write_text('{"format": "contrastrm-ensemble"}')
    with pytest.raises(InputError, match="is no ensemble-gain; not replaced"):
        trial()
