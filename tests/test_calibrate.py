"""Calibration: temperatures and errors that are known, held-out figures, and the temperature beside a model."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from codes.common.folds import held_out_folds
from codes.common.records import InputError
from codes.evaluate import calibrate, eval_benchmark
from codes.evaluate.calibration import (
    ERRORS,
    calibration_figures,
    fit_temperatures,
    loss_intervals,
    preference_probability,
    temperature_interval,
    temperatures_without_fold,
)
from codes.evaluate.scored_pairs import pairs_of, read_scored_pairs
from tests.conftest import ROOT
from tests.test_schemas import check


def simulated_margins(pairs, temperature, seed=0):
    """Margins of a model whose P(A > B) = sigmoid(difference / temperature) is true."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(0, 2 * temperature, pairs)
    first_is_better = generator.random(pairs) < preference_probability(differences, temperature)
    return np.where(first_is_better, differences, -differences)


def fitted(margins):
    return fit_temperatures(np.array(margins, dtype=float), np.ones((1, len(margins))))[0]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_margins(path, margins, pairs_a_question=1):
    rows = (
        {"prompt": f"question {i // pairs_a_question}", "chosen_score": 5 + margin, "rejected_score": 5}
        for i, margin in enumerate(map(float, margins))
    )
    return write_rows(path, rows)


# --- The temperature ---------------------------------------------------------------------------------------------


def test_the_temperature_of_three_equal_margins_of_which_one_is_wrong_is_one_over_log_two():
    assert fitted([1, 1, -1]) == pytest.approx(1 / math.log(2), rel=1e-9)
    assert fitted([50, 50, -50]) == pytest.approx(50 / math.log(2), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_temperature_is_the_one_that_scipy_finds(seed):
    generator = np.random.default_rng(seed)
    margins = generator.normal(0.3, 1, 200) * 10.0 ** generator.uniform(-3, 4)
    weights = generator.integers(0, 4, (5, 200)).astype(float)
    found = fit_temperatures(margins, weights)
    for temperature, weight in zip(found, weights):
        scaled = margins / np.abs(margins).mean()
        best = minimize_scalar(
            lambda inverse, scaled=scaled, weight=weight: weight @ np.logaddexp(0, -inverse * scaled),
            bracket=(0, 1),
            tol=1e-14,
        )
        assert temperature == pytest.approx(np.abs(margins).mean() / best.x, rel=1e-5)


def test_a_sample_s_temperature_does_not_depend_on_its_neighbours():
    margins = np.random.default_rng(3).normal(0.4, 1, 100)
    weights = np.random.default_rng(4).integers(0, 3, (40, 100)).astype(float)
    alone = [fit_temperatures(margins, row[None])[0] for row in weights]
    assert fit_temperatures(margins, weights) == pytest.approx(alone, rel=1e-6)


def test_without_a_wrong_pair_the_temperature_falls_to_0_and_without_a_signal_it_is_infinite():
    assert fitted([1, 2, 3]) == 0
    assert fitted([1, 0, 0]) == 0
    assert fitted([0, 0]) == math.inf
    assert fitted([-1, -2]) == math.inf
    assert fitted([1, -1]) == math.inf
    assert fitted([3, -1, -1]) == pytest.approx(minimize_scalar(
        lambda t: np.logaddexp(0, -3 / t) + 2 * np.logaddexp(0, 1 / t), bounds=(1e-3, 1e3), method="bounded",
        options={"xatol": 1e-10},
    ).x, rel=1e-4)  # fmt: skip


@pytest.mark.parametrize("temperature", [0.05, 1, 40])
def test_the_temperature_of_a_simulated_calibrated_model_is_recovered(temperature):
    margins = simulated_margins(4000, temperature)
    low, high = temperature_interval(margins, [str(i) for i in range(4000)], seed=1, resamples=400)
    assert low < temperature < high
    assert high / low < 1.25
    assert low < fitted(margins) < high


def test_the_interval_is_wider_where_pairs_of_a_question_agree_and_absent_where_it_has_no_end():
    margins = np.repeat(simulated_margins(150, 1.0), 4)
    by_pair = temperature_interval(margins, [str(i) for i in range(600)], seed=1, resamples=400)
    by_question = temperature_interval(margins, [str(i // 4) for i in range(600)], seed=1, resamples=400)
    assert by_question[1] - by_question[0] > 1.6 * (by_pair[1] - by_pair[0])
    assert temperature_interval(np.array([3, -1, -1, -0.5]), list("abcd"), seed=1) is None
    assert temperature_interval(np.array([3.0, -1]), ["a", "a"], seed=1) is None
    assert temperature_interval(np.array([3.0] * 7 + [-1]), list("abcdefgh"), seed=1)[0] == 0


# --- Errors ------------------------------------------------------------------------------------------------------


def logit(probability):
    return math.log(probability / (1 - probability))


def figures_of(logits, bins, pairs_a_question=1):
    return calibration_figures(logits, [str(i // pairs_a_question) for i in range(len(logits))], bins, seed=1)


def test_errors_and_losses_of_a_hand_computed_example():
    # Confidence 0.83 five times, right four times; confidence 0.61 twice, right once.
    logits = [logit(0.83)] * 4 + [-logit(0.83)] + [logit(0.61), -logit(0.61)]
    found = figures_of(np.array(logits), 10)
    assert found["expected_calibration_error"] == pytest.approx((5 * 0.03 + 2 * 0.11) / 7)
    assert found["maximum_calibration_error"] == pytest.approx(0.11)
    assert found["brier_score"] == pytest.approx((4 * 0.17**2 + 0.83**2 + 0.39**2 + 0.61**2) / 7)
    logs = 4 * math.log(0.83) + math.log(0.17) + math.log(0.61) + math.log(0.39)
    assert found["log_loss"] == pytest.approx(-logs / 7)
    assert [(part["pairs"], part["accuracy"]) for part in found["bins"]] == [(2, 0.5), (5, 0.8)]
    assert [part["confidence"] for part in found["bins"]] == pytest.approx([0.61, 0.83])


def test_a_bin_of_pairs_that_repeat_their_question_s_outcome_is_as_uncertain_as_its_questions():
    once = figures_of(np.array([2.0] * 12 + [-2.0] * 8), 10)["bins"][0]
    thrice = figures_of(np.array([2.0] * 36 + [-2.0] * 24), 10, pairs_a_question=3)["bins"][0]
    assert (once["pairs"], thrice["pairs"], once["accuracy"], thrice["accuracy"]) == (20, 60, 0.6, 0.6)
    assert thrice["ci95"] == pytest.approx(once["ci95"])
    assert figures_of(np.array([2.0, -2.0]), 10, pairs_a_question=2)["bins"][0]["ci95"] is None


def test_bins_of_equal_mass_hold_as_many_pairs_each():
    # Of two bins by mass the lower has confidences 0.6 and 0.7 (one right), the upper 0.8 and 0.9 (both right).
    logits = np.array([logit(0.6), -logit(0.7), logit(0.8), logit(0.9)])
    found = figures_of(logits, 2)
    assert found["adaptive_calibration_error"] == pytest.approx(((1.3 - 1) + (2 - 1.7)) / 4)
    # By width the border is 0.75, which makes the same two bins.
    assert found["expected_calibration_error"] == pytest.approx(found["adaptive_calibration_error"])


def test_equal_confidences_share_a_bin_so_that_the_order_of_pairs_does_not_count():
    logits = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 2.0])
    one = figures_of(logits, 3)
    other = figures_of(logits[[1, 5, 4, 0, 2, 3]], 3)
    assert [one[name] for name in ERRORS] == pytest.approx([other[name] for name in ERRORS])


def test_a_model_that_is_certain_and_wrong_half_the_time_is_not_calibrated_though_its_chosen_answers_are_all_better():
    found = figures_of(np.array([1e6, -1e6] * 20), 10)
    assert found["expected_calibration_error"] == found["maximum_calibration_error"] == 0.5
    assert found["if_calibrated"]["expected_calibration_error"]["quantile95"] == 0


def test_a_tie_is_a_coin_flip_of_which_nothing_is_left_to_chance():
    found = figures_of(np.zeros(7), 10)
    assert [found[name] for name in ERRORS] == [0, 0, 0]
    assert found["log_loss"] == pytest.approx(math.log(2))
    assert found["brier_score"] == 0.25
    assert found["if_calibrated"]["maximum_calibration_error"]["quantile95"] == 0


def test_errors_of_a_calibrated_model_stay_within_what_sampling_gives_and_those_of_others_do_not():
    above = 0
    for seed in range(40):
        found = figures_of(simulated_margins(500, 1.0, seed), 10)
        above += found[ERRORS[0]] > found["if_calibrated"][ERRORS[0]]["quantile95"]
    assert above <= 6  # 2 of 40 are expected; 7 or more have probability 0.003
    over_confident = figures_of(simulated_margins(500, 1.0) * 3, 10)
    for name in ERRORS:
        assert over_confident[name] > over_confident["if_calibrated"][name]["quantile95"]


def test_the_probability_is_the_logistic_function_and_never_overflows():
    assert preference_probability(2.0, 4.0) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert preference_probability(np.array([-1e9, 0, 1e9])).tolist() == [0, 0.5, 1]
    assert preference_probability(1.2) + preference_probability(-1.2) == pytest.approx(1)


def test_intervals_of_losses_are_of_the_means_and_of_their_difference():
    margins = simulated_margins(400, 1.0) * 3
    found = loss_intervals(margins, margins / 3, [str(i) for i in range(400)], seed=1)
    assert found["difference"]["log_loss"][1] < 0
    assert found["before"]["log_loss"][0] > found["after"]["log_loss"][1]


# --- Held out ----------------------------------------------------------------------------------------------------


def test_folds_hold_whole_questions_and_a_pair_has_no_part_in_its_own_temperature():
    questions = [f"q{i // 3}" for i in range(90)]
    fold_of = held_out_folds(questions, 5, seed=1)
    assert sorted(np.bincount(fold_of)) == [18] * 5
    assert all(len({fold_of[i] for i in range(3 * q, 3 * q + 3)}) == 1 for q in range(30))
    margins = simulated_margins(90, 1.0)
    before = temperatures_without_fold(margins, fold_of)
    changed = np.where(fold_of == 2, 100 * margins, margins)
    after = temperatures_without_fold(changed, fold_of)
    assert after[2] == pytest.approx(before[2], rel=1e-6)
    assert all(after[i] != pytest.approx(before[i], rel=0.01) for i in (0, 1, 3, 4))
    assert before[2] == pytest.approx(fitted(margins[fold_of != 2]), rel=1e-6)


# --- Reading -----------------------------------------------------------------------------------------------------

BIAS_ROW = {
    "question": "q",
    "original_response1": "a",
    "original_response2": "b",
    "rewritten_response1": "c",
    "rewritten_response2": "d",
    "label": "response2",
    "scores_original": [1.0, 3.0],
    "scores_biased": [4.0, 3.5],
}


def test_margins_are_the_better_answer_s_score_minus_the_worse_one_s_in_every_kind_of_row():
    def margins(row, kind="original"):
        return [margin for _, margin in pairs_of(row, kind)]

    assert margins(BIAS_ROW) == [2.0]
    assert margins(BIAS_ROW, "both") == [2.0, -0.5]
    assert margins({"prompt": "q", "chosen_score": 1, "rejected_score": 2.5}) == [-1.5]
    rows = {"chosen": ["a", "b"], "rejected": ["c"], "chosen_scores": [1.0, 2.0], "rejected_scores": [0.5]}
    assert margins(rows) == [0.5, 1.5]


def test_a_pair_that_several_files_repeat_counts_once(tmp_path):
    swapped = BIAS_ROW | {
        "original_response1": "b",
        "original_response2": "a",
        "label": "response1",
        "scores_original": [3.0, 1.0],
    }
    files = [write_rows(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate((BIAS_ROW, swapped))]
    found = read_scored_pairs(files, "original")
    assert (found.margins.tolist(), found.repeated, len(found.questions)) == ([2.0], 1, 1)
    other_question = write_rows(tmp_path / "other.jsonl", [BIAS_ROW | {"question": "another"}])
    assert len(read_scored_pairs([files[0], other_question], "original").margins) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "rejected_score": 1}, r"in\.jsonl:2: field 'chosen_score': is missing"),
        ({"prompt": "q", "chosen_score": "1", "rejected_score": 1}, r":2: field 'chosen_score': expected a finite"),
        ({"prompt": "q", "chosen_score": True, "rejected_score": 1}, r":2: field 'chosen_score': expected a finite"),
        ({"comparisons": [[[1, 0]]]}, r":2: field 'comparisons': are a judge's"),
        ({"chosen_scores": [], "rejected_scores": [1]}, r":2: field 'chosen_scores': expected a list"),
        ({"chosen_scores": [1], "rejected_scores": [None]}, r":2: field 'rejected_scores\[0\]': expected a finite"),
        (BIAS_ROW | {"scores_original": [1]}, r":2: field 'scores_original': expected a list of 2"),
        (BIAS_ROW | {"label": "A"}, r":2: field 'label'"),
    ],
)
def test_a_row_without_scored_pairs_is_named(tmp_path, row, problem):
    good = {"prompt": "q", "chosen_score": 1, "rejected_score": 2}
    path = write_rows(tmp_path / "in.jsonl", [good, row])
    with pytest.raises(InputError, match=problem):
        calibrate.main([str(path), "-o", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


# --- The command -------------------------------------------------------------------------------------------------


def test_the_command_reports_held_out_figures_a_diagram_and_json_as_its_schema_says(tmp_path, capsys):
    path = write_margins(tmp_path / "in.jsonl", [*(3 * simulated_margins(598, 1.0)), 0, 0], pairs_a_question=2)
    calibrate.main([str(path), "-o", str(tmp_path / "out.json"), "--figure", str(tmp_path / "diagram.svg")])
    result = check("calibration", tmp_path / "out.json")
    assert result["temperature"] == pytest.approx(3, rel=0.2)
    assert result["counts"] == {"pairs": 600, "questions": 300, "correct": result["counts"]["correct"], "ties": 2,
                                "repeated": 0}  # fmt: skip
    assert len(result["fold_temperatures"]) == 5
    assert result["after"]["expected_calibration_error"] < 0.06 < result["before"]["expected_calibration_error"]
    assert result["difference"]["ci95"]["log_loss"][1] < 0
    assert (tmp_path / "diagram.svg").read_bytes().startswith(b"<?xml")
    printed = capsys.readouterr().out
    assert "600 pairs of 300 questions" in printed
    assert "expected calibration error" in printed
    first = (tmp_path / "out.json").read_bytes()
    calibrate.main([str(path), "-o", str(tmp_path / "out.json")])
    assert (tmp_path / "out.json").read_bytes() == first


@pytest.mark.parametrize(("scale", "warned"), [(1, True), (3, False)])
def test_a_temperature_that_does_not_help_on_held_out_questions_is_told(tmp_path, caplog, scale, warned):
    path = write_margins(tmp_path / "in.jsonl", scale * simulated_margins(600, 1.0))
    calibrate.main([str(path), "-o", str(tmp_path / "out.json")])
    difference = json.loads((tmp_path / "out.json").read_text())["difference"]["log_loss"]
    assert (difference >= 0) == warned
    assert ("keep T = 1" in caplog.text) == warned


@pytest.mark.parametrize(
    ("margins", "flags", "problem"),
    [
        ([1] * 20, [], "no temperature above 0.*without bound as T falls"),
        ([1] * 19 + [-0.1], [], "without one of the folds have no temperature above 0"),
        ([1, -2] * 10, [], "no finite temperature: the better answers do not score higher"),
        ([0] * 10, [], "no finite temperature"),
        ([1], [], "1 questions make no 5 folds"),
        ([1, -0.5], ["--folds", "1"], "--folds 1: leaves no pairs"),
        ([1, -0.5], ["--store", "nowhere"], "--store nowhere: is not a folder"),
        ([1, -0.5], ["--figure", "x.gif"], "give it one of the suffixes"),
    ],
)
def test_pairs_that_no_temperature_fits_are_refused_with_the_reason(tmp_path, margins, flags, problem):
    path = write_margins(tmp_path / "in.jsonl", margins)
    with pytest.raises(InputError, match=problem):
        calibrate.main([str(path), "-o", str(tmp_path / "out.json"), *flags])
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_foreign_files_are_not_replaced(tmp_path):
    path = write_margins(tmp_path / "in.jsonl", simulated_margins(50, 1.0))
    (tmp_path / "out.json").write_text('{"theirs": 1}')
    with pytest.raises(InputError, match="is no calibration; not replaced"):
        calibrate.main([str(path), "-o", str(tmp_path / "out.json")])
    (tmp_path / "out.png").write_text("text")
    with pytest.raises(InputError, match="is no png figure"):
        calibrate.main([str(path), "--figure", str(tmp_path / "out.png")])


# --- Beside the model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_by_model(tmp_path_factory, tiny_reward_model):
    """(a copy of the tiny model, a file of pairs that it gets right three times of four, how to evaluate it)."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = folder / "model"
    shutil.copytree(tiny_reward_model, model)
    rows = [
        {"prompt": f"Count to {i}.", "chosen": "one two " * (1 + i % 7), "rejected": f"{i} three" * (1 + i % 4)}
        for i in range(24)
    ]

    def evaluate(*flags, path=model):
        data, output = folder / "pairs.jsonl", folder / "results"
        flags = ["--data", str(data), "--model_path", str(path), "--output_dir", str(output), "--device", "cpu", *flags]
        eval_benchmark.main(["pairs", *flags])
        return output / path.name / f"pairs_pairs_evaluation_{path.name}.jsonl"

    write_rows(folder / "pairs.jsonl", rows)
    scored = [json.loads(line) for line in evaluate().read_text().splitlines()]
    shutil.rmtree(folder / "results")
    scored.sort(key=lambda row: abs(row["chosen_scores"][0] - row["rejected_scores"][0]))
    by_prompt = {row["prompt"]: row for row in rows}
    for place, result in enumerate(scored):
        row = by_prompt[result["prompt"]]
        if result["correct"] == (place < 6):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_rows(folder / "pairs.jsonl", rows)
    return model, evaluate


def test_a_stored_temperature_gives_probabilities_in_results_of_its_model_and_refuses_another(
    scored_by_model, tmp_path, capsys, caplog
):
    model, evaluate = scored_by_model
    rows = evaluate()
    assert "preference_probability" not in rows.read_text()
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match="was scored by another model"):
        calibrate.main([str(rows), "--store", str(other)])
    assert not (other / "calibration.json").exists()

    calibrate.main([str(rows), "--store", str(model), "--folds", "3"])
    assert "stored:" in capsys.readouterr().out
    stored = check("stored_temperature", model / "calibration.json")
    again = [json.loads(line) for line in evaluate().read_text().splitlines()]
    for row in again:
        margin = row["chosen_scores"][0] - row["rejected_scores"][0]
        expected = 1 / (1 + math.exp(-margin / stored["temperature"]))
        assert row["preference_probability"] == pytest.approx(expected, abs=1e-9)
    info = json.loads(rows.with_name(f"{rows.name}.run_info.json").read_text())
    assert info["preference_temperature"] == stored["temperature"]
    assert "preference_temperature" not in info["configuration"]

    shutil.copy(model / "calibration.json", other / "calibration.json")
    with pytest.raises(InputError, match="belongs to another model"):
        evaluate(path=other)
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    bare = evaluate("--chat_template", str(template), "--model_name", "bare").parents[1] / "bare"
    assert "preference_probability" not in (bare / "pairs_pairs_evaluation_bare.jsonl").read_text()
    assert "was fitted with another template_hash" in caplog.text


def test_nothing_is_stored_from_rows_that_do_not_say_what_scored_them(scored_by_model, tmp_path):
    model, _ = scored_by_model
    before = (model / "calibration.json").read_bytes() if (model / "calibration.json").exists() else None
    path = write_margins(tmp_path / "in.jsonl", simulated_margins(50, 1.0))
    with pytest.raises(InputError, match=r"has no in\.jsonl\.run_info\.json that says which reward model"):
        calibrate.main([str(path), "--store", str(model)])
    assert ((model / "calibration.json").read_bytes() if before else None) == before


def test_files_of_two_models_are_not_mixed(tmp_path):
    paths = []
    for name, weights in (("a", "1"), ("b", "2")):
        paths.append(write_margins(tmp_path / f"{name}.jsonl", simulated_margins(50, 1.0)))
        info = {"configuration": {"scorer": "model", "weights_sha256": weights}}
        (tmp_path / f"{name}.jsonl.run_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"b\.jsonl: was not scored like .*a\.jsonl \(weights_sha256"):
        calibrate.main([str(path) for path in paths])


def test_every_better_answer_of_a_benchmark_row_is_paired_with_every_worse_one(tmp_path):
    sample = str(ROOT / "data/eval/benchmarks/rm_bench_sample.jsonl")
    eval_benchmark.main(["rm-bench", "--data", sample, "--scorer", "length", "--output_dir", str(tmp_path)])
    found = read_scored_pairs([tmp_path / "length" / "rm_bench_evaluation_length.jsonl"], "original")
    assert len(found.margins) == 5 * 9
    assert len(set(found.questions)) == 5
