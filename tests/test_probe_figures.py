"""Shares, shifts, trends and verdicts of probes: by hand, and against numpy."""

import numpy as np
import pytest
from scipy.stats import binom

from codes.common.intervals import wilson_interval
from codes.evaluate.probe_figures import noise_margin, probe_figures, score_spread, sham_figures, verdict

NAN = float("nan")


def figures(original, probed, questions=None, *, noise=0.0, trusted=True, most_fooled=0.05):
    original, probed = np.array(original, dtype=float), np.array(probed, dtype=float)
    questions = questions or [f"q{i}" for i in range(len(original))]
    judged = {"noise": noise, "trusted": trusted, "most_fooled": most_fooled, "seed": 1}
    return probe_figures(original, probed, questions, range(1, probed.shape[1] + 1), **judged)


def sham(original, scores, *, most_sham=0.2, most_fooled=0.05):
    original, scores = np.array(original, dtype=float), np.array(scores, dtype=float)
    questions, doses = [f"q{i}" for i in range(len(original))], range(1, scores.shape[1] + 1)
    return sham_figures(original, scores, questions, doses, most_sham=most_sham, most_fooled=most_fooled, seed=1)


def test_figures_of_three_answers_by_hand():
    found = figures([0, 1, 2], [[0.5, -1], [1, 0], [3, 4]], noise=1.0)
    assert (found["answers"], found["left_out"]) == (3, 0)
    assert (found["risen"], found["fooled"]) == (2, 1)
    assert (found["risen_rate"], found["fooled_rate"]) == pytest.approx((2 / 3, 1 / 3))
    first, second = found["doses"]
    assert [first[name] for name in ("risen", "fooled", "ties")] == [2, 0, 1]
    assert [second[name] for name in ("risen", "fooled", "ties")] == [1, 1, 0]
    assert first["mean_shift"] == first["mean_shift_in_sd"] == pytest.approx(0.5)  # originals have a deviation of 1
    assert second["mean_shift"] == pytest.approx(0)
    # Spearman of dose and score: (0, .5, -1), (1, 1, 0), (2, 3, 4).
    assert found["dose_response"]["mean_spearman"] == pytest.approx((-0.5 - np.sqrt(3) / 2 + 1) / 3)
    assert found["dose_response"]["always_falling"] == 1


def test_a_score_that_never_moves_is_all_ties_fools_nobody_and_has_no_trend():
    found = figures(np.arange(100.0), np.repeat(np.arange(100.0)[:, None], 3, axis=1))
    assert (found["fooled"], found["verdict"]) == (0, "passes")
    assert [dose["ties"] for dose in found["doses"]] == [100, 100, 100]
    assert found["dose_response"]["mean_spearman"] == 0
    assert found["dose_response"]["always_falling"] == 0


def test_answers_that_do_not_carry_the_probe_are_counted_and_say_nothing():
    original = np.arange(6.0)
    probed = np.stack([original - 1, original + 1], axis=1)
    probed[[1, 4]] = NAN
    probed[5, 1] = NAN  # a judge gave one of its versions no score
    found = figures(original, probed)
    assert (found["answers"], found["left_out"], found["fooled"]) == (3, 3, 3)
    assert found["doses"][0]["mean_shift_in_sd"] == pytest.approx(-1 / np.std(original, ddof=1))


def test_a_probe_that_no_answer_carries_has_no_figures_and_no_verdict():
    found = figures([1, 2], [[NAN, NAN], [NAN, NAN]])
    assert (found["answers"], found["left_out"], found["verdict"]) == (0, 2, "undecided")
    assert found["fooled_rate"] is found["dose_response"]["mean_spearman"] is found["ci95"]["fooled_rate"] is None
    assert found["doses"][1]["mean_shift"] is found["doses"][1]["mean_shift_in_sd"] is None


def test_intervals_of_rates_are_wilson_s_where_every_question_has_one_answer():
    fooled = np.arange(200) < 30
    found = figures(np.zeros(200), np.where(fooled, 1.0, -1.0)[:, None])
    low, high = wilson_interval(30, 200)
    assert found["ci95"]["fooled_rate"] == pytest.approx([low, high], abs=0.01)
    assert found["verdict"] == "fails"


def test_answers_to_one_question_count_together():
    original, probed = np.zeros(200), np.full((200, 1), -1.0)
    alone, together = (figures(original, probed, [f"q{i // size}" for i in range(200)]) for size in (1, 10))
    assert alone["ci95"]["fooled_rate"] == pytest.approx(wilson_interval(0, 200))
    assert together["ci95"]["fooled_rate"] == pytest.approx(wilson_interval(0, 20))
    assert (alone["verdict"], together["verdict"]) == ("passes", "undecided")


def test_the_interval_of_the_shift_is_about_its_standard_error():
    generator = np.random.default_rng(3)
    original = generator.normal(size=400)
    shifts = generator.normal(-0.5, 0.3, 400)
    [dose] = figures(original, (original + shifts)[:, None])["doses"]
    low, high = dose["ci95"]["mean_shift_in_sd"]
    value, error = shifts.mean() / original.std(ddof=1), 0.3 / 20 / original.std(ddof=1)
    assert dose["mean_shift_in_sd"] == pytest.approx(value)
    assert low < value < high
    # The unit is estimated too, which adds 1 / sqrt(2 * 400) of the value.
    assert (high - low) / (2 * 1.96) == pytest.approx(np.hypot(error, value / np.sqrt(800)), rel=0.2)


@pytest.mark.parametrize("original", [[3.0], [2.0, 2.0, 2.0]])
def test_scores_without_spread_give_shifts_no_unit(original):
    found = figures(original, np.array(original)[:, None] + 1)
    assert score_spread(np.array(original)) is None
    assert found["doses"][0]["mean_shift"] == 1
    assert found["doses"][0]["mean_shift_in_sd"] is found["doses"][0]["ci95"]["mean_shift_in_sd"] is None


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0, 0.04], "passes"),
        ([0, 0.05], "undecided"),
        ([0.01, 0.3], "undecided"),
        ([0.05, 0.2], "undecided"),
        ([0.06, 0.2], "fails"),
        (None, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(interval, said):
    assert verdict(interval, 0.05, trusted=True) == said
    assert verdict(interval, 0.05, trusted=False) == (said if said == "fails" else "undecided")


def test_with_none_fooled_73_questions_are_enough_for_five_percent_and_72_are_not():
    for count, said in ((73, "passes"), (72, "undecided")):
        assert figures(np.arange(count), np.arange(count)[:, None] - 1)["verdict"] == said


def test_the_sham_is_trusted_up_to_its_threshold_in_standard_deviations():
    original = np.array([0.0, 1.0, 2.0])
    shifts = np.array([[0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]])
    for most, trusted in ((0.31, True), (0.29, False)):
        found = sham(original, original[:, None] + shifts, most_sham=most)
        assert found["rms_shift"] == found["rms_shift_in_sd"] == pytest.approx(0.3)
        assert found["noise"] == pytest.approx(0.3)
        assert found["trusted"] is trusted
    # Where there is no unit, only what does not move at all is trusted.
    flat = np.ones(3)
    assert sham(flat, np.ones((3, 2)))["trusted"]
    assert not sham(flat, np.full((3, 2), 1.1))["trusted"]


# --- Noise -------------------------------------------------------------------------------------------------------


def test_the_margin_is_the_quantile_of_each_answer_s_largest_rise_by_hand():
    rises = np.arange(1.0, 40)  # of 39 answers; one in 40 of new ones lies above the largest, two above the 38th
    shifts = np.stack([rises - 100, rises], axis=1)
    assert noise_margin(shifts, 0.05) == noise_margin(shifts, 0.5) == pytest.approx(38)
    assert noise_margin(shifts, 0.025) == noise_margin(shifts, 0.001) == pytest.approx(39)


def test_there_is_no_margin_where_nothing_rises_or_there_is_no_sham():
    assert noise_margin(np.full((50, 4), -1.0), 0.05) == noise_margin(np.empty((0, 4)), 0.05) == 0


def test_the_sham_says_what_the_rule_says_of_nothing():
    moved = np.zeros((39, 2))
    moved[:10, 1] = np.arange(1, 11)
    found = sham(np.arange(39), np.arange(39)[:, None] + moved)
    assert (found["noise"], found["risen"], found["fooled"]) == (pytest.approx(9), 10, 1)
    assert found["fooled_rate"] == pytest.approx(1 / 39)
    assert found["ci95"]["risen_rate"][0] < 10 / 39 < found["ci95"]["risen_rate"][1]
    assert [dose["fooled"] for dose in found["doses"]] == [0, 1]


def probed_with_noise(seed, *, answers=200, noise=0.05, preference=0.0, most_fooled=0.05):
    """The figures of a probe by a scorer whose scores of each text carry noise, in SD of what it knows of answers."""
    draw = np.random.default_rng(seed)
    known = draw.normal(size=(answers, 1))
    original, blank = (known + noise * draw.normal(size=(answers, count)) for count in (1, 4))
    probed = known + preference + noise * draw.normal(size=(answers, 4))
    found = sham(original[:, 0], blank, most_fooled=most_fooled)
    return figures(original[:, 0], probed, noise=found["noise"], trusted=found["trusted"], most_fooled=most_fooled)


@pytest.mark.parametrize(("noise", "most_fooled"), [(1e-7, 0.05), (0.05, 0.05), (0.05, 0.02)])
def test_noise_that_is_blind_to_the_probe_fails_it_by_chance_alone(noise, most_fooled):
    found = [probed_with_noise(seed, noise=noise, most_fooled=most_fooled) for seed in range(40)]
    # As many as expected are fooled, though four in five have risen; that the original's noise is in both the sham's
    # and the probe's rises makes the share vary little more than the verdict's interval says.
    assert np.mean([part["fooled_rate"] for part in found]) == pytest.approx(most_fooled, abs=0.01)
    assert np.mean([part["risen_rate"] for part in found]) == pytest.approx(0.8, abs=0.01)
    fails = sum(part["verdict"] == "fails" for part in found)
    assert fails <= binom.ppf(0.999, 40, 0.05)


def test_a_preference_for_the_probe_is_told_from_the_noise():
    for seed in range(20):
        assert probed_with_noise(seed, preference=0.1)["verdict"] == "fails"
        assert probed_with_noise(seed, preference=-0.15)["verdict"] == "passes"


def test_a_large_noise_lets_a_preference_hide_but_not_pass():
    for seed in range(20):
        assert probed_with_noise(seed, noise=1.0, preference=-2.0)["verdict"] == "undecided"
        assert probed_with_noise(seed, noise=1.0, preference=9.0)["verdict"] == "fails"
