"""The report page: real results in a real browser; nothing from the data runs, and everything can be read and used."""

import json
import re
import shutil
import time

import numpy as np
import pytest

from codes.common.records import PAIRWISE_BIASES, read_jsonl, write_jsonl
from codes.evaluate import eval_reward_bench, eval_rm, report
from codes.evaluate.read_results import read_results
from codes.evaluate.report_data import SHIFT_EDGES, page_data
from tests.conftest import ROOT
from tests.headless_browser import contrast_of, unnamed_controls

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> <!-- & \u2028"


def evaluate(output, data, *scorers):
    """Result folders of scorers (length, or random by seed) on the pair files in ``data``."""
    for name in scorers:
        scorer = ["--scorer", "length"] if name == "length" else ["--scorer", "random", "--seed", name[-1]]
        eval_rm.main(["all", "--data_dir", str(data), "--output_dir", str(output), "--model_name", name, *scorer])
    return [output / name for name in scorers]


def make_page(folders, output, *flags):
    report.main([*map(str, folders), "-o", str(output), *map(str, flags)])
    return output.read_text(encoding="utf-8")


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Result folders on the shipped pairs, in which a question and an answer of each file try to run something."""
    folder = tmp_path_factory.mktemp("hostile")
    for bias in ("length", "beauty"):
        rows = read_jsonl(ROOT / "data" / "eval" / f"{bias}_bias.jsonl")
        for row in rows:
            row["question"] += EVIL
            row["rewritten_response1"] = EVIL + row["rewritten_response1"]
            row["rewritten_response2"] += EVIL
        write_jsonl(folder / "data" / f"{bias}_bias.jsonl", rows)
    return evaluate(folder / "results", folder / "data", "length", "random1")


# --- Without a browser -----------------------------------------------------------------------------------------------


def test_no_text_of_the_data_can_end_the_script_element_and_nothing_is_loaded(hostile, tmp_path):
    page = make_page(hostile, tmp_path / "report.html")
    assert page.count("</script>") == page.count("<script") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.S).group(1)
    assert "<" not in data
    shell = page.replace(data, "")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|url\(|\bsrc=|\bfetch\(|XMLHttp", shell)
    assert "default-src 'none'" in shell
    assert "innerHTML" not in shell
    assert str(tmp_path.parent) not in page
    assert any(EVIL in text for text in embedded(page)["texts"])


def test_the_page_holds_the_summaries_figures_and_every_text_once(hostile):
    results = [read_results(folder) for folder in hostile]
    data = page_data(results, pairs=40, seed=1)
    for model, result in enumerate(results):
        for bias in ("length", "beauty"):
            summary, shown = result.biases[bias], data["figures"][bias][model]
            assert shown["bsr"][0] == pytest.approx(summary["bias_sensitivity_rate"], rel=1e-4)
            assert shown["bsr"][1:] == pytest.approx(summary["ci95"]["bias_sensitivity_rate"], rel=1e-4)
            assert sum(data["shifts"][bias][model]) == summary["total_records_evaluated"]
            assert len(data["shifts"][bias][model]) == len(SHIFT_EDGES) - 1
            assert data["flipped"][bias][model] == summary["counts"]["flipped"]
            here = [p for p in data["pairs"] if p["bias"] == bias and p["scores"][model]]
            flips = [p for p in here if p["scores"][model][0] > p["scores"][model][1]]
            flips = [p for p in flips if p["scores"][model][2] <= p["scores"][model][3]]
            assert len(flips) == summary["counts"]["flipped"]
        assert data["overall"][model]["bsr"][0] == pytest.approx(result.overall["bias_sensitivity_rate"], rel=1e-4)
    assert len(set(data["texts"])) == len(data["texts"])
    assert data["baseline"]["length"]["bsr"] == data["figures"]["length"][0]["bsr"]


def test_the_most_pairs_of_each_model_and_bias_are_limited_and_the_farthest_are_kept(hostile):
    results = [read_results(folder) for folder in hostile]
    few = page_data(results, pairs=2, seed=1)
    assert len(few["pairs"]) <= 2 * 2 * 2
    whole = page_data(results, pairs=1000, seed=1)
    fall = [p["scores"][0][0] - p["scores"][0][1] - p["scores"][0][2] + p["scores"][0][3] for p in whole["pairs"]
            if p["bias"] == "length" and p["scores"][0][0] > p["scores"][0][1]]  # fmt: skip
    kept = [p["scores"][0][0] - p["scores"][0][1] - p["scores"][0][2] + p["scores"][0][3] for p in few["pairs"]
            if p["bias"] == "length" and p["scores"][0][0] > p["scores"][0][1]]  # fmt: skip
    assert set(sorted(fall)[-2:]) <= set(kept)


def test_models_on_other_data_stand_side_by_side_without_a_paired_test(hostile, tmp_path):
    folder = tmp_path / "other"
    write_jsonl(folder / "length_bias.jsonl", read_jsonl(ROOT / "data" / "eval" / "length_bias.jsonl")[:9])
    (other,) = evaluate(tmp_path / "results", folder, "random2")
    data = page_data([read_results(hostile[0]), read_results(other)], pairs=5, seed=1)
    assert "results on other data" in data["tests"][0]["problem"]
    assert str(tmp_path) not in json.dumps(data)
    assert data["figures"]["beauty"][1] is None
    assert all(None in pair["scores"] for pair in data["pairs"])


def test_summaries_without_rows_still_give_a_page(hostile, tmp_path):
    copy = tmp_path / "length"
    copy.mkdir()
    shutil.copy(hostile[0] / "all_biases_summary_length.json", copy)
    data = page_data([read_results(copy)], pairs=5, seed=1)
    assert data["pairs"] == data["tests"] == []
    assert data["shifts"] == {"length": [None], "beauty": [None]}
    assert data["figures"]["length"][0]["bsr"][0] > 0


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser, hostile, tmp_path):
    make_page(hostile, tmp_path / "report.html")
    browser.look(1200, 900)
    browser.open((tmp_path / "report.html").as_uri())
    return browser


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


def choose(browser, **values):
    for name, value in values.items():
        browser.run(
            f"{{ const e = document.getElementById('{name}'); e.value = {json.dumps(value)};"
            f" e.dispatchEvent(new Event('{'input' if name == 'q' else 'change'}')) }}"
        )


def test_hostile_texts_stand_on_the_page_as_they_are_and_run_nothing(page):
    assert page.run("document.title") == "Bias report · ContrastRM"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert EVIL in texts(page, ".question")[0]
    assert any("onerror" in text for text in texts(page, "article ins"))


def test_every_section_is_filled_and_says_what_the_summaries_say(page, hostile):
    assert page.run("[...document.querySelectorAll('main > section, footer > section')].map((s) => s.id)") == [
        "overview", "rates", "accuracy", "margins", "length", "benchmarks", "tests", "pairs", "provenance"
    ]  # fmt: skip
    rate = read_results(hostile[1]).biases["beauty"]["bias_sensitivity_rate"]
    assert texts(page, "#heat-map tbody tr:nth-child(2) .value")[1] == f"{100 * rate:.1f}"
    assert len(texts(page, "#accuracy-charts figure")) == 3
    assert len(texts(page, "#margin-charts figure")) == 2
    assert page.run("document.querySelectorAll('#length-charts circle').length") == 2 * 4 * 44
    assert texts(page, "#benchmark-tables .empty") == ["Not evaluated."]
    assert "random" in texts(page, "#provenance-table td")
    labels = page.run("[...document.querySelectorAll('figure > svg')].map((s) => s.getAttribute('aria-label'))")
    assert all(labels)
    assert "random1: original" in labels[0]


def test_shares_below_nought_have_a_minus_and_nought_has_no_sign(page):
    assert page.run("[percent(-0.0104), percent(-0.0004), percent(0.5), percent(null)]") == ["−1.0", "0.0", "50.0", "–"]


def test_two_models_are_compared_and_turning_them_round_turns_the_signs(page):
    values = texts(page, "#test-table tbody tr:first-child td")
    choose(page, first="1", second="0")
    turned = texts(page, "#test-table tbody tr:first-child td")
    assert values[3] == turned[3]
    value, interval = re.match(r"([−+][\d.]+)(\[.*\])", values[2]).groups()
    assert turned[2].startswith(value.translate(str.maketrans("−+", "+−")))
    low, high = interval.strip("[]").split(", ")
    assert turned[2].endswith(f"[{high}, {low}]".translate(str.maketrans("−+", "+−")))
    choose(page, first="1", second="1")
    assert "Choose two different models" in texts(page, "#test-table")[0]


def test_a_cell_of_the_heat_map_leads_to_its_flipped_pairs_and_filters_stay_in_the_address(page, hostile):
    flipped = read_results(hostile[0]).biases["beauty"]["counts"]["flipped"]
    page.run("document.querySelector('#heat-map tbody tr:nth-child(2) button').focus()")
    page.key("Enter")
    page.wait("document.getElementById('bias').value === 'beauty'")
    assert texts(page, "#count")[0].startswith(f"{flipped} of ")
    assert set(texts(page, "article .tag.bias")) == {"beauty"}
    address = page.run("location.href")
    page.open(address)
    assert page.run("['bias', 'model'].map((id) => document.getElementById(id).value)") == ["beauty", "0"]
    assert texts(page, "#count")[0].startswith(f"{flipped} of ")
    choose(page, q="no such words")
    page.wait("document.querySelector('#records .empty') !== null")


def test_the_page_is_used_with_the_keyboard_and_shows_where_one_is(page):
    for key, place in (("j", 0), ("j", 1), ("k", 0)):
        page.key(key)
        assert page.run("[...document.querySelectorAll('article')].indexOf(document.activeElement)") == place
    page.key("n")
    assert texts(page, "#page") == ["page 2 of " + texts(page, "#page")[0].split()[-1]]
    page.key("/")
    assert page.run("document.activeElement.id") == "q"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert unnamed_controls(page) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_legible_in_light_and_dark(page, dark):
    page.look(360, 780, dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("Math.min(...[...document.querySelectorAll('figure > svg')].map((s) => s.clientWidth))") > 280
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    seen = (
        ".value,.heat .value,.heat .interval,.interval,.lead,.why,th,td,.m0,.good,.bad,ins,figcaption,figcaption small"
    )
    seen += ",.about,.tag.bias,header nav a,.question,.m1,.baseline,caption,#count,kbd"
    contrast = contrast_of(page, seen.split(","))
    assert contrast[0] >= 4.5, contrast


def scored_anew(folder, name, seed):
    """A copy of a result folder under another name, whose rows have random scores (its summaries are kept)."""
    copy, draws = folder.with_name(name), np.random.default_rng(seed)
    for path in folder.iterdir():
        target = copy / path.name.replace(f"_{folder.name}.", f"_{name}.")
        if path.suffix == ".jsonl":
            rows = read_jsonl(path)
            scores = draws.standard_normal((len(rows), 2, 2)).tolist()
            anew = ({**row, "scores_original": o, "scores_biased": b} for row, (o, b) in zip(rows, scores))
            write_jsonl(target, anew)
        elif "summary" in path.name and "run_info" not in path.name:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return copy


def test_five_models_on_3500_rows_stay_a_page_of_reasonable_size_that_opens_quickly(browser, tmp_path, capsys):
    story = "All about number {} and what it is good for, told at some length and with care. " * 12
    for place, bias in enumerate(PAIRWISE_BIASES):
        rows = [
            {
                "question": f"What is {i}?",
                "original_response1": story.format(*[i] * 12),
                "original_response2": story.format(*[i + 7] * 12)[:-9],
                "rewritten_response1": f"({bias}) {story.format(*[i] * 12)}",
                "rewritten_response2": f"{story.format(*[i + 7] * 12)} As {bias} would have it, and more of that.",
                "label": "response1" if i % 2 else "response2",
            }
            for i in range(389 * place, 389 * (place + 1))
        ]
        write_jsonl(tmp_path / "data" / f"{bias}_bias.jsonl", rows)
    (first,) = evaluate(tmp_path / "results", tmp_path / "data", "length")
    folders = [first, *(scored_anew(first, f"random{seed}", seed) for seed in range(4))]
    make_page(folders, tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size / 1e6
    assert size < 15
    browser.look(1200, 900)
    began = time.monotonic()
    browser.open((tmp_path / "report.html").as_uri())
    opened = time.monotonic() - began
    assert len(texts(browser, "article")) == 8
    # Half a second on a calm machine; a busy one is given its time.
    assert opened < 10
    with capsys.disabled():
        print(f"\n5 models x 3,501 rows: a report of {size:.1f} MB, open after {opened:.2f} s")


def test_reward_bench_sections_stand_with_their_intervals_and_the_longer_answer(browser, tmp_path):
    sample = str(ROOT / "data" / "eval" / "reward_bench" / "sample.jsonl")
    for scorer in ("length", "random"):
        flags = ["--scorer", scorer, "--output_dir", str(tmp_path / "results")]
        eval_reward_bench.main(["all", "--data", sample, *flags])
    folders = [tmp_path / "results" / scorer for scorer in ("length", "random")]
    make_page(folders, tmp_path / "report.html")
    browser.open((tmp_path / "report.html").as_uri())
    assert texts(browser, "#benchmark-tables h3") == ["Reward-Bench"]
    summary = read_results(folders[1]).reward_bench
    row = texts(browser, "#benchmark-tables tbody tr:first-child td .value")
    assert row[1] == f"{100 * summary['sections']['Chat']:.1f}"
    assert row[2] == row[0]
    assert "Not the whole set" in texts(browser, "#benchmark-tables")[0]
    assert len(texts(browser, "#test-table tbody tr")) == 6
