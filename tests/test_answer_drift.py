"""Alarms of over-optimisation between two sets of answers: figures that are known, thresholds, what is compared."""

import json

import numpy as np
import pytest

from codes.common.cli import RunFailed
from codes.common.records import InputError
from codes.evaluate import answer_drift
from codes.evaluate.answer_drift import cut_alike, distinct_pairs, drift_figures, matched, passes, words_of
from codes.evaluate.answer_sets import Answer
from tests.test_schemas import check


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(texts):
    return {prompt: [Answer(text, ()) for text in part] for prompt, part in texts.items()}


def test_words_are_in_lower_case_and_characters_stand_for_chinese_ones():
    assert words_of("Don't stop, HTTP/2!") == ["don't", "stop", "http", "2"]
    assert words_of("水的 boiling点") == ["水", "的", "boiling", "点"]
    assert words_of("...") == []


def test_spread_and_length_are_the_sample_standard_deviation_and_the_mean():
    before = {"a": [Answer("1234", (1e6 + 1,)), Answer("12", (1e6 + 3,))], "b": [Answer("123", (1e6 + 8,))]}
    after = {"a": [Answer("12345678", (2.0,)), Answer("1234", (2.5,))], "b": [Answer("123456", (3.5,))]}
    found = drift_figures(before, after, 5, seed=1)
    assert found["score_spread"]["before"] == pytest.approx(np.std([1, 3, 8], ddof=1))
    assert found["score_spread"]["ratio"] == pytest.approx(np.std([2, 2.5, 3.5], ddof=1) / np.std([1, 3, 8], ddof=1))
    assert (found["length"]["before"], found["length"]["after"], found["length"]["ratio"]) == (3, 6, 2)
    assert found["length"]["ci95"] == pytest.approx([2, 2])


def test_type_token_ratio_is_the_mean_over_whole_windows_and_null_where_no_answer_fills_one():
    before, after = plain({"p": ["a b c d a a a a x"], "q": ["one two"]}), plain({"p": ["a a a a"], "q": ["b"]})
    found = drift_figures(before, after, 4, seed=1)["type_token_ratio"]
    assert (found["before"], found["after"]) == ((1 + 0.25) / 2, 0.25)
    assert found["ratio"] == pytest.approx(0.4)
    assert drift_figures(before, after, 10, seed=1)["type_token_ratio"] == {
        "before": None, "after": None, "ratio": None, "ci95": None,
    }  # fmt: skip


def test_longer_answers_alone_change_neither_measure_of_diversity():
    words = [f"w{i}" for i in range(400)]
    before = plain({f"p{i}": [" ".join(words[10 * i : 10 * i + 50])] for i in range(5)})
    after = plain({f"p{i}": [" ".join(words[10 * i : 10 * i + 200])] for i in range(5)})
    found = drift_figures(before, after, 50, seed=1)
    assert found["length"]["ratio"] > 3
    assert found["type_token_ratio"]["ratio"] == found["distinct_2"]["ratio"] == 1


def test_distinct_pairs_are_counted_over_all_answers():
    assert distinct_pairs([["a", "b", "c"], ["a", "b", "d"]]) == 3 / 4
    assert np.isnan(distinct_pairs([["a"]]))


def test_of_an_answer_and_its_counterpart_as_many_words_are_taken():
    before, after = {"p": [["a"], ["b", "c", "d", "e"]], "q": [["f", "g"]]}, {"p": [["h", "i"], ["j"] * 9], "q": [[]]}
    assert cut_alike(before, after, 3) == ([["a"], ["b", "c", "d"], []], [["h"], ["j"] * 3, []])


@pytest.mark.parametrize(("short", "long"), [(6, 50), (20, 50), (60, 150)])
def test_words_of_one_distribution_are_as_diverse_in_short_answers_as_in_long_ones(short, long):
    generator, chance = np.random.default_rng(5), 1 / np.arange(1, 501)

    def answers(number):
        words = generator.choice(500, (500, number), p=chance / chance.sum())
        return plain({f"p{i}": [" ".join(map(str, row))] for i, row in enumerate(words)})

    assert drift_figures(answers(short), answers(long), 50, seed=1)["distinct_2"]["ratio"] == pytest.approx(1, abs=0.04)


def test_answers_that_all_begin_alike_lose_distinct_pairs_though_each_is_varied():
    tails = [" ".join(f"t{i}x{j}" for j in range(10)) for i in range(8)]
    before = plain({f"p{i}": [f"s{i} r{i} u{i} v{i} {tail}"] for i, tail in enumerate(tails)})
    after = plain({f"p{i}": [f"What a great question! {tail}"] for i, tail in enumerate(tails)})
    found = drift_figures(before, after, 7, seed=1)
    assert found["type_token_ratio"]["ratio"] == 1
    # Six pairs of each beginning, of which the first three are the same in all eight.
    assert found["distinct_2"]["after"] == pytest.approx((3 + 8 * 3) / (8 * 6))


def test_a_set_without_spread_has_no_ratio_and_rows_without_scores_no_spread():
    same = {"p": [Answer("a b", (1.0,)), Answer("c d", (1.0,))]}
    found = drift_figures(same, same, 2, seed=1)
    assert (found["score_spread"]["before"], found["score_spread"]["ratio"]) == (0, None)
    assert passes(None, "least", 0.5) is None
    assert "score_spread" not in drift_figures(plain({"p": ["a"]}), plain({"p": ["a"]}), 2, seed=1)


def test_only_shared_prompts_count_with_as_many_answers_to_each():
    before = plain({"a": ["1", "2", "3"], "b": ["4"], "only": ["5"]})
    after = plain({"b": ["6", "7"], "a": ["8", "9"]})
    one, other, counts = matched(before, after)
    assert {p: [a.text for a in part] for p, part in one.items()} == {"a": ["1", "2"], "b": ["4"]}
    assert {p: [a.text for a in part] for p, part in other.items()} == {"a": ["8", "9"], "b": ["6"]}
    assert counts == {"prompts": 2, "answers": 3, "left_out_before": 2, "left_out_after": 1}
    with pytest.raises(InputError, match="no prompt in common"):
        matched(before, plain({"z": ["1"]}))


@pytest.mark.parametrize(
    ("value", "side", "threshold", "alarm"),
    [(0.5, "least", 0.5, False), (0.49, "least", 0.5, True), (1.5, "most", 1.5, False), (1.51, "most", 1.5, True)],
)
def test_a_ratio_raises_an_alarm_beyond_its_threshold_and_not_at_it(value, side, threshold, alarm):
    assert passes(value, side, threshold) is alarm


@pytest.fixture
def two_files(tmp_path):
    """Answers before, and after: three times as long, of fewer words, with a tenth of the spread of scores."""
    generator = np.random.default_rng(1)
    words = [f"word{i}" for i in range(500)]
    rows = [[], []]
    for i in range(12):
        for place, (some, length, spread) in enumerate(((words, 60, 2.0), (words[:20], 180, 0.2))):
            text = " ".join(generator.choice(some, length))
            rows[place].append({"prompt": f"p{i}", "response": text, "score": float(generator.normal(0, spread))})
    return [write_rows(tmp_path / name, part) for name, part in zip(("before.jsonl", "after.jsonl"), rows)]


def test_the_command_tells_alarms_with_status_1_and_writes_what_its_schema_says(two_files, tmp_path, capsys):
    before, after = map(str, two_files)
    outputs = ["-o", str(tmp_path / "out.json"), "--figure", str(tmp_path / "drift.svg")]
    with pytest.raises(RunFailed, match=r"alarm: score_spread x 0\.\d+, length x [23]\.\d+, type_token_ratio"):
        answer_drift.main([before, after, *outputs])
    result = check("answer_drift", tmp_path / "out.json")
    assert result["alarms"] == ["score_spread", "length", "type_token_ratio", "distinct_2"]
    for name in ("score_spread", "length", "type_token_ratio"):
        low, high = result["figures"][name]["ci95"]
        assert low <= result["figures"][name]["ratio"] <= high
    assert (tmp_path / "drift.svg").read_bytes().startswith(b"<?xml")
    assert capsys.readouterr().out.count("ALARM") == 4

    answer_drift.main([before, before, *outputs])
    result = check("answer_drift", tmp_path / "out.json")
    assert result["alarms"] == []
    assert {part["ratio"] for part in result["figures"].values()} == {1}
    loose = ["--most_length", "4", "--least_spread", "0.01", "--least_diversity", "0.01"]
    answer_drift.main([before, after, *loose])


def test_scores_are_used_where_both_files_have_them_or_where_they_are_asked_for(two_files, tmp_path, capsys):
    rows = [json.loads(line) for line in two_files[0].read_text().splitlines()]
    bare = write_rows(tmp_path / "bare.jsonl", [{k: v for k, v in row.items() if k != "score"} for row in rows])
    answer_drift.main([str(bare), str(two_files[0])])
    assert "score_spread: the rows have no scores" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"bare\.jsonl:1: field 'score': is missing"):
        answer_drift.main([str(bare), str(two_files[0]), "--score_field", "score"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--window", "1"], "--window 1: holds no two words"),
        (["--most_length", "0"], "not a finite number above 0"),
        (["--figure", "x.gif"], "give it one of the suffixes"),
    ],
)
def test_flags_that_make_no_sense_are_refused(two_files, flags, problem):
    with pytest.raises(InputError, match=problem):
        answer_drift.main([*map(str, two_files), *flags])
