"""The comparison report: what it shows of which summary, and what it refuses."""

import csv
import io
import json
import random

import pytest

from codes.common.figure_files import FIGURE_STARTS
from codes.common.records import InputError
from codes.evaluate import eval_reward_bench, eval_rm, report
from codes.evaluate.read_results import read_results
from codes.evaluate.report_figure import draw_figure
from codes.evaluate.report_table import as_csv, as_latex, as_markdown, comparison_rows
from tests.conftest import ROOT


def write_results(folder, *, bsr=0.25, reward_bench=True):
    folder.mkdir(parents=True)
    name = folder.name
    length = {
        "bias_sensitivity_rate": bsr,
        "original_pair_accuracy": 0.5,
        "ci95": {"bias_sensitivity_rate": [0.1, 0.4]},
    }
    overall = {"bias_sensitivity_rate": bsr / 2, "average_original_pair_accuracy": 0.625, "robust_accuracy": 0.5}
    refinement = {"average_improvement_rate_with_context": -0.125}
    summary = {"length": length, "refinement-aware": refinement, "average_across_all_biases": overall}
    (folder / f"all_biases_summary_{name}.json").write_text(json.dumps(summary))
    if reward_bench:
        benchmark = {
            "complete": False,
            "sections": {"Chat": 0.5, "Chat Hard": None},
            "overall": None,
            "weighted_average_accuracy": 0.75,
        }
        (folder / f"reward_bench_summary_{name}.json").write_text(json.dumps(benchmark))
    return folder


def test_every_figure_stands_in_its_row_in_per_cent_and_absent_ones_are_a_dash(tmp_path):
    folders = [write_results(tmp_path / "a"), write_results(tmp_path / "b", bsr=0.5, reward_bench=False)]
    rows = comparison_rows([read_results(folder) for folder in folders])
    table = {row[0]: row[1:] for row in rows}
    assert table[""] == ["a", "b"]
    assert table["BSR, length"] == ["25.0 [10.0, 40.0]", "50.0 [10.0, 40.0]"]
    assert table["BSR, all biases"] == ["12.5", "25.0"]
    assert table["original accuracy, all biases"] == ["62.5", "62.5"]
    assert table["biased accuracy, length"] == ["-", "-"]
    assert table["score gain when shown as polished"] == ["-12.5", "-12.5"]
    assert table["Reward-Bench, Chat"] == ["50.0", "-"]
    assert table["Reward-Bench, Chat Hard"] == ["-", "-"]
    assert table["Reward-Bench, weighted by rows (not the whole set)"] == ["75.0", "-"]
    assert "BSR, beauty" not in table
    widths = {len(line) for line in as_markdown(rows).splitlines()}
    assert len(widths) == 1


def test_a_folder_without_results_and_a_broken_summary_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="holds no all_biases_summary_empty"):
        read_results(tmp_path / "empty")
    folder = write_results(tmp_path / "a")
    for text in ("{", "[" * 100_000):
        (folder / "all_biases_summary_a.json").write_text(text)
        with pytest.raises(InputError, match="is not JSON"):
            read_results(folder)


def mutated(value, draws):
    """The value with one part of it, drawn at random, replaced by something else."""
    if isinstance(value, (dict, list)) and value and draws.random() < 0.9:
        place = draws.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = value.copy()
        copy[place] = mutated(value[place], draws)
        return copy
    return draws.choice([None, "x", -5, [], {}, True, [1, 2, 3], {"a": 1}, 10**400, float("inf")])


@pytest.mark.parametrize("name", ["all_biases_summary_length.json", "reward_bench_summary_length.json"])
def test_whatever_stands_in_a_summary_it_is_shown_or_refused_in_one_line(tmp_path, name):
    flags = ["--scorer", "length", "--output_dir", str(tmp_path)]
    eval_rm.main(["all", "--data_dir", str(ROOT / "data" / "eval"), *flags])
    eval_reward_bench.main(["all", "--data", str(ROOT / "data" / "eval" / "reward_bench" / "sample.jsonl"), *flags])
    path = tmp_path / "length" / name
    whole, draws = json.loads(path.read_text()), random.Random(1)
    for rows in tmp_path.glob("length/*.jsonl*"):
        rows.unlink()
    refusals = []
    for _ in range(100):
        path.write_text(json.dumps(mutated(whole, draws)))
        for form in ("md", "html"):
            try:
                report.main([str(tmp_path / "length"), "--format", form, "-o", str(tmp_path / f"out.{form}")])
            except InputError as error:
                refusals.append(str(error))
    assert 10 < len(refusals) < 200
    assert all(name in refusal and "\n" not in refusal for refusal in refusals)


def test_no_average_and_biases_of_one_s_own_are_shown(tmp_path):
    folder = write_results(tmp_path / "a")
    summary = {"other_biases": {"pirate-talk": {"bias_sensitivity_rate": 0.75}}, "average_across_all_biases": None}
    (folder / "all_biases_summary_a.json").write_text(json.dumps(summary))
    results = [read_results(folder), read_results(write_results(tmp_path / "b"))]
    table = {row[0]: row[1:] for row in comparison_rows(results)}
    assert table["BSR, pirate-talk"] == ["75.0", "-"]
    assert table["BSR, all biases"] == ["-", "12.5"]
    assert list(table).index("BSR, length") < list(table).index("BSR, pirate-talk")
    draw_figure(results, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_bytes().startswith(FIGURE_STARTS[".svg"])


def test_the_longer_answer_s_rates_stand_beside_the_models_and_other_benchmarks_below(tmp_path):
    folder = write_results(tmp_path / "a")
    path = folder / "all_biases_summary_a.json"
    summary = json.loads(path.read_text())
    summary["average_across_all_biases"] |= {
        "length_baseline": {"bias_sensitivity_rate": 0.75},
        "margin_shift": {"standardized": -0.5},
    }
    path.write_text(json.dumps(summary))
    bench = {
        "benchmark": "x_bench",
        "title": "X-Bench",
        "complete": True,
        "sections": {"chat": 0.5},
        "overall": 0.25,
        "hard": 0.125,
    }
    (folder / "x_bench_summary_a.json").write_text(json.dumps(bench | {"ci95": {"overall": [0.2, 0.3]}}))
    table = {row[0]: row[1:] for row in comparison_rows([read_results(folder)])}
    assert table["BSR of the longer answer, all biases"] == ["75.0"]
    assert table["margin shift in standard deviations"] == ["-0.50"]
    assert table["X-Bench, chat"] == ["50.0"]
    assert table["X-Bench, hard"] == ["12.5"]
    assert table["X-Bench, overall"] == ["25.0 [20.0, 30.0]"]


def test_a_bias_evaluated_by_itself_is_shown_and_two_models_of_one_name_are_told_apart(tmp_path):
    for place in ("one", "two"):
        folder = tmp_path / place / "m"
        folder.mkdir(parents=True)
        alone = {"bias_type": "beauty", "bias_sensitivity_rate": 0.5}
        (folder / "beauty_summary_m.json").write_text(json.dumps(alone))
    rows = comparison_rows([read_results(tmp_path / place / "m") for place in ("one", "two")])
    assert rows[0] == ["", "one/m", "two/m"]
    assert rows[1] == ["BSR, beauty", "50.0", "50.0"]


def test_a_name_that_plays_tricks_is_shown_and_not_obeyed(tmp_path):
    folder = write_results(tmp_path / "a")
    bias = {"bias_type": "x", "bias_sensitivity_rate": 0.5}
    summary = {"other_biases": {"\x1b[31m\u2028\n<img>|`\\": bias}}
    (folder / "all_biases_summary_a.json").write_text(json.dumps(summary))
    rows = comparison_rows([read_results(folder)])
    assert rows[1][0] == r"BSR, \x1b[31m\u2028\n<img>|`" + "\\"
    assert as_markdown(rows).splitlines()[2].startswith(r"| BSR, \\x1b[31m\\u2028\\n\<img>\|\`\\ ")
    assert as_csv([["", "=1+1"], ["@SUM", "-"]]) == ",'=1+1\n'@SUM,-\n"


def test_latex_escapes_what_names_may_hold_and_sets_numbers_as_numbers(tmp_path):
    rows = [["", "a_b&c"], ["50% {x} ^~\\ #1 $", "25.0 [10.0, 40.0]"], ["none", "-"], ["less", "-12.5"]]
    text = as_latex(rows)
    assert r" & a\_b\&c \\" in text
    assert r"50\% \{x\} \textasciicircum{}\textasciitilde{}\textbackslash{} \#1 \$ & $25.0\ [10.0,\ 40.0]$ \\" in text
    assert r"none & - \\" in text
    assert r"less & $-12.5$ \\" in text
    assert text.count("&") - text.count(r"\&") == len(rows)


@pytest.mark.parametrize("name", [r"a$\frac$", "_model"])
def test_a_name_that_matplotlib_would_read_otherwise_stands_in_the_figure_s_legend(tmp_path, name):
    draw_figure([read_results(write_results(tmp_path / name))], tmp_path / "figure.svg")
    assert f"<!--  {name} -->" in (tmp_path / "figure.svg").read_text()


def test_the_form_follows_the_file_s_suffix_unless_it_is_given(tmp_path):
    folder = str(write_results(tmp_path / "a"))
    for name, start in (("t.tex", "% Needs"), ("t.csv", ",a\n"), ("t.md", "|  "), ("t.html", "<!doctype html>")):
        report.main([folder, "-o", str(tmp_path / name)])
        assert (tmp_path / name).read_text().startswith(start)
    report.main([folder, "-o", str(tmp_path / "u.csv"), "--format", "md"])
    assert (tmp_path / "u.csv").read_text().startswith("|  ")
    (tmp_path / "t.html").write_text("theirs")
    with pytest.raises(InputError, match="is no HTML page"):
        report.main([folder, "-o", str(tmp_path / "t.html")])
    assert (tmp_path / "t.html").read_text() == "theirs"


def test_the_folder_may_be_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_results(tmp_path / "a"))
    report.main(["."])
    assert "25.0 [10.0, 40.0]" in capsys.readouterr().out


@pytest.mark.parametrize("theirs", ["notes\n", "| a | b |\n", ",a\n0,1\n", ""])
def test_a_file_that_is_no_report_is_never_overwritten_and_a_report_is(tmp_path, theirs):
    folder, table = str(write_results(tmp_path / "a")), tmp_path / "table"
    for form in ("md", "csv", "latex", "md"):
        report.main([folder, "--format", form, "-o", str(table)])
    table.write_text(theirs)
    with pytest.raises(InputError, match="is no table of this command"):
        report.main([folder, "-o", str(table)])
    assert table.read_text() == theirs


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_table_is_written(tmp_path):
    folder, table = write_results(tmp_path / "a"), tmp_path / "table.md"
    (tmp_path / "theirs.png").write_text("not a picture")
    for figure, problem in (("f.xyz", "one of the suffixes"), ("f", "suffixes"), ("theirs.png", "is no png figure")):
        with pytest.raises(InputError, match=problem):
            report.main([str(folder), "-o", str(table), "--figure", str(tmp_path / figure)])
    (folder / "all_biases_summary_a.json").unlink()
    with pytest.raises(InputError, match="none of the folders"):
        report.main([str(folder), "-o", str(table), "--figure", str(tmp_path / "f.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "theirs.png"]


def test_the_command_writes_table_and_figure_and_leaves_nothing_on_error(run_command, tmp_path):
    folder = write_results(tmp_path / "a")
    csv_file, figure = tmp_path / "table.csv", tmp_path / "figure.png"
    done = run_command("codes.evaluate.report", folder, "--format", "csv", "-o", csv_file, "--figure", figure)
    assert done.returncode == 0, done.stderr
    assert next(csv.reader(io.StringIO(csv_file.read_text()))) == ["", "a"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    failed = run_command("codes.evaluate.report", tmp_path / "none", "-o", tmp_path / "x.md")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "x.md").exists()
