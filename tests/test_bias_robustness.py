"""experiments.bias_robustness: what each arm trains on, and the tables that its results become."""

import json
from pathlib import Path

import numpy as np
import pytest

from codes.common.records import InputError
from experiments.bias_robustness import run, tables
from experiments.bias_robustness.arms import (
    ARMS,
    TRANSFER_BIASES,
    all_answers,
    named_arms,
    one_biased_answer,
    original_answers,
    share_of_biased,
    without_bias,
)

RECORDS = [
    {
        "question": f"q{n}",
        "chosen": "c",
        "rejected": [f"o{n}", f"a{n}", f"b{n}", f"l{n}"],
        "bias_type": ["original", "authority", "beauty", "length"],
    }
    for n in range(200)
]


def test_original_answers_leave_no_biased_one():
    assert all(record["rejected"] == [f"o{n}"] for n, record in enumerate(original_answers(RECORDS, 1)))


def test_all_answers_are_all():
    assert all_answers(RECORDS, 1) == RECORDS


def test_a_left_out_bias_goes_and_every_other_answer_stays():
    for n, record in enumerate(without_bias("beauty")(RECORDS, 1)):
        assert record["rejected"] == [f"o{n}", f"a{n}", f"l{n}"]
        assert record["bias_type"] == ["original", "authority", "length"]


def test_one_biased_answer_is_drawn_by_the_seed_from_all_biases():
    drawn = [record["bias_type"] for record in one_biased_answer(RECORDS, 1)]
    assert {tuple(types) for types in drawn} == {("original", bias) for bias in ("authority", "beauty", "length")}
    assert drawn == [record["bias_type"] for record in one_biased_answer(RECORDS, 1)]
    assert drawn != [record["bias_type"] for record in one_biased_answer(RECORDS, 2)]


def test_a_share_of_the_biased_answers_is_kept_and_every_original_one():
    kept = share_of_biased(0.5)(RECORDS, 1)
    biased = sum(len(record["rejected"]) - 1 for record in kept)
    assert [record["rejected"][0] for record in kept] == [f"o{n}" for n in range(200)]
    assert 250 < biased < 350, "of 600, within four standard deviations"


def test_every_bias_of_the_data_is_left_out_once():
    assert [arm.left_out for arm in ARMS.values() if arm.left_out] == list(TRANSFER_BIASES)


@pytest.mark.parametrize(
    ("flags", "epochs"), [([], 1), (["--backbone", "decoder"], 4), (["--backbone", "decoder", "--epochs", "0.5"], 0.5)]
)
def test_the_arms_of_twice_the_epochs_train_twice_as_long_whatever_the_backbone(tmp_path, flags, epochs):
    args = run._parse([str(tmp_path), *flags])
    for name, times in (("contrast-original-0.6", 1), ("contrast-original-0.6-2-epochs", 2)):
        given = run.arm_settings(ARMS[name], 1, args)["flags"]
        last = max(place for place, flag in enumerate(given) if flag == "--num_train_epochs")
        assert float(given[last + 1]) == times * epochs


def test_arms_are_chosen_by_name_or_group_and_none_twice():
    assert [arm.name for arm in named_arms(["transfer"])] == [f"without-{bias}" for bias in TRANSFER_BIASES]
    assert [arm.name for arm in named_arms(["without-length", "main", "contrast", "without-length"])] == [
        *(arm.name for arm in ARMS.values() if arm.group == "main"),
        "without-length",
    ]


# --- Tables --------------------------------------------------------------------------------------------------------

OUTCOMES = {
    "length": {
        "questions": ["a", "b", "c", "d"],
        "original": "1110",
        "biased": "1001",
        "better_longer": "1100",
        "better_shorter": "0011",
    },
    "beauty": {
        "questions": ["a", "e"],
        "original": "11",
        "biased": "10",
        "better_longer": "10",
        "better_shorter": "01",
    },
}


def result(arm: str, seed: int, outcomes: dict = OUTCOMES) -> dict:
    return {
        "settings": {"arm": arm, "seed": seed},
        "training": {"tokens_seen": 1000, "eval_accuracy": 0.5},
        "overall": {"length_correlation": {"score": {"spearman": 0.25}}},
        "reward_bench": {},
        "outcomes": outcomes,
    }


def figures_of(runs: dict) -> dict:
    return {name: tables.figures_of(parts, 0) for name, parts in runs.items()}


def test_rates_over_rows_and_seeds_are_those_counted_by_hand():
    figures = tables.figures_of([result("contrast", 1), result("contrast", 2)], seed=0)
    rates = {name: figure["rate"] for name, figure in figures.items()}
    assert rates == pytest.approx(
        {
            "original": 5 / 6,
            "biased": 3 / 6,
            "bsr": 3 / 5,
            "robust": 2 / 6,
            "length_balanced": (3 / 3 + 2 / 3) / 2,
            "better_shorter": 2 / 3,
        }
    )
    assert figures["bsr"]["seeds"] == [3 / 5, 3 / 5]
    low, high = figures["bsr"]["ci95"]
    assert low <= 3 / 5 <= high


def test_rates_of_one_bias_take_its_rows_alone():
    assert tables.figures_of([result("contrast", 1)], 0, ["beauty"])["bsr"]["rate"] == 1 / 2


def test_tables_stand_between_the_marks_and_say_which_aims_are_reached(tmp_path: Path):
    perfect = {
        bias: part | {"original": "1" * len(part["questions"]), "biased": "1" * len(part["questions"])}
        for bias, part in OUTCOMES.items()
    }
    for name, outcomes in (("bt-original", OUTCOMES), ("contrast", perfect), ("without-length", OUTCOMES)):
        for seed in (1, 2):
            path = tmp_path / "results" / "minilm" / f"seed-{seed}" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result(name, seed, outcomes)))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    arguments = ["--results_dir", str(tmp_path / "results"), "--readme", str(readme)]
    tables.main(arguments)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "pooled BSR at most 5%: 0.0%, reached" in text
    assert "robust accuracy at least 60%: 100.0%, reached" in text
    assert "lowered by a third or more: 66.7% to 66.7% (+0%) over 1 biases, seeds 1 2, **not reached**" in text
    assert (tmp_path / "robustness.svg").read_bytes().startswith(b"<?xml")
    tables.main(arguments)
    assert readme.read_text() == text


def test_an_ablation_stands_beside_the_contrastive_arm_of_its_own_seeds():
    runs = {"contrast": [result("contrast", seed) for seed in (1, 2, 3)], "temperature-1": [result("temperature-1", 2)]}
    runs["tokens-512"] = [result("tokens-512", seed) for seed in (1, 2, 3)]
    lines = tables.tables(runs, figures_of(runs), 0)
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[lines.index("**Ablations**") + 4 :]]
    assert rows[:4] == [
        ["contrastive", "1 2 3"],
        [ARMS["tokens-512"].says, "1 2 3"],
        ["contrastive", "2"],
        [ARMS["temperature-1"].says, "2"],
    ]


def test_the_table_by_bias_has_every_bias_of_the_data_also_those_that_no_arm_leaves_out():
    outcomes = OUTCOMES | {"sycophancy": OUTCOMES["beauty"], "race": OUTCOMES["length"]}
    lines = tables.tables(runs := {"contrast": [result("contrast", 1, outcomes)]}, figures_of(runs), 0)
    header, _, row = lines[lines.index("**BSR by bias (%)**") + 2 :][:3]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["arm", "length", "beauty", "sycophancy", "race"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["contrastive", "66.7", "50.0", "50.0", "66.7"]


def test_a_result_of_no_arm_is_refused(tmp_path: Path):
    path = tmp_path / "seed-1" / "contrastt.json"
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(InputError, match=r"contrastt\.json: is the result of no arm"):
        tables.read_runs(tmp_path)


def test_a_rate_without_rows_is_no_number():
    assert np.isnan(tables.rates_of_sums(np.zeros((1, 9)))).all()


def test_the_tables_that_are_shown_are_those_of_the_results(tmp_path: Path):
    readme = tmp_path / "README.md"
    shown = (tables.HERE / "README.md").read_text(encoding="utf-8")
    readme.write_text(shown, encoding="utf-8")
    tables.main(["--readme", str(readme)])
    assert readme.read_text(encoding="utf-8") == shown
