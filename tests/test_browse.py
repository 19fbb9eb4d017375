"""codes.construct.browse: the page holds everything, runs nothing from the data, and is read in a real browser."""

import json
import re
import time

import pytest

from codes.common.page import embedded_json, html_page
from codes.common.records import InputError
from codes.construct import browse, gptout, verify_correctness
from tests.conftest import ROOT

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> <!-- & \u2028"
RECORDS = [
    {
        "id": "first",
        "question": f"Why {EVIL}?",
        "chosen": "Ice floats because it is less dense.",
        "rejected": ["Ice floats because air is in it.", "**Ice** floats because air is in it."],
        "bias_type": ["original", "beauty"],
        "verify_correctness": "CHOSEN_IS_BEST",
        "verdicts": [{"outcome": "worse", "reason": EVIL, "judge": "openai", "model": "m"}, {"outcome": "undecided"}],
        "dropped": [{"answer": "Dropped text.", "bias_type": "length", "verdict": {"outcome": "not_worse"}}, 5],
    },
    {
        "id": "second",
        "question": [{"role": "user", "content": "水的沸点？"}],
        "chosen": "水的沸点是100度。",
        "rejected": ["水的沸点是90度。"],
        "provenance": [{"source": 7, "checks": "x"}],
        "verdicts": ["nonsense"],
    },
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_page(source, output, *flags):
    browse.main([str(source), "-o", str(output), *map(str, flags)])
    return output.read_text(encoding="utf-8")


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


# --- Without a browser -----------------------------------------------------------------------------------------------


def test_no_text_of_the_data_can_end_the_script_element_and_all_of_it_is_there(tmp_path):
    page = make_page(write(tmp_path / "in.jsonl", RECORDS), tmp_path / "page.html")
    assert page.count("</script>") == page.count("<script") == 2
    assert "onerror" not in page.replace(embedded_json(EVIL)[1:-1], "")
    records = embedded(page)["records"]
    assert records[0]["question"] == f"Why {EVIL}?"
    assert [answer["text"] for answer in records[0]["answers"]] == [*RECORDS[0]["rejected"], "Dropped text."]
    assert [answer["verdict"] for answer in records[0]["answers"]] == ["worse", "undecided", "not_worse"]
    assert [answer["dropped"] for answer in records[0]["answers"]] == [False, False, True]
    assert json.loads(embedded_json({"a": EVIL})) == {"a": EVIL}


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = make_page(write(tmp_path / "in.jsonl", RECORDS), tmp_path / "page.html")
    shell = page.replace(re.search(r'id="data">(.*?)</script>', page, re.S).group(1), "")
    assert not re.search(r"https?://|//cdn|@import|url\(|\bsrc=|\bhref=|\bfetch\(|XMLHttp", shell)
    assert "default-src 'none'" in shell
    assert "innerHTML" not in shell
    assert html_page("<b>", body="", script="", data=1).count("&lt;b&gt;") == 1


def test_an_answer_is_marked_against_the_one_it_was_made_from(tmp_path):
    shipped, made = ROOT / "data" / "train" / "sample.jsonl", tmp_path / "made.jsonl"
    for command, given, output in ((gptout, shipped, made), (verify_correctness, made, tmp_path / "verified.jsonl")):
        flags = ["--input_file", given, "--output_file", output, "--backend", "rules"]
        assert command.main([str(flag) for flag in flags]) == 0
    data = embedded(make_page(tmp_path / "verified.jsonl", tmp_path / "page.html"))
    sources = [
        (answer["bias"], record["answers"][answer["source"]]["bias"])
        for record in data["records"]
        for answer in record["answers"]
        if answer["source"] >= 0
    ]
    assert len(sources) == 2 * 132
    assert {source for _, source in sources} == {"original"}
    assert data["verdicts"] == {"worse": sum(data["biases"].values())}


def test_evaluation_pairs_are_shown_with_each_rewrite_against_its_original(tmp_path):
    for bias in ("beauty", "refinement-aware"):
        data = embedded(make_page(ROOT / "data" / "eval" / f"{bias}_bias.jsonl", tmp_path / "page.html"))
        assert len(data["records"]) == 22
        answers = data["records"][0]["answers"]
        assert [answer["source"] for answer in answers] == ([-1, 0, -1] if bias == "beauty" else [-1])


def test_a_sample_is_drawn_by_the_seed(tmp_path):
    source = ROOT / "data" / "train" / "sample.jsonl"
    ids = [
        [
            record["id"]
            for record in embedded(make_page(source, tmp_path / "p.html", "--sample", 20, "--seed", s))["records"]
        ]
        for s in (1, 1, 2)
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 20


def test_bad_input_and_usage_are_refused_and_nothing_is_overwritten(tmp_path):
    bad = write(tmp_path / "bad.jsonl", [RECORDS[0], {**RECORDS[1], "rejected": []}])
    with pytest.raises(InputError, match=r"bad\.jsonl:2: field 'rejected'"):
        make_page(bad, tmp_path / "page.html")
    source = write(tmp_path / "in.jsonl", RECORDS)
    with pytest.raises(InputError, match="is no HTML page"):
        make_page(source, source)
    with pytest.raises(InputError, match="is a folder"):
        make_page(source, tmp_path)
    assert not (tmp_path / "page.html").exists()


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_records(browser, tmp_path):
    make_page(write(tmp_path / "in.jsonl", RECORDS), tmp_path / "page.html")
    browser.look(1200, 900)
    browser.open((tmp_path / "page.html").as_uri())
    return browser


def ids(browser):
    return browser.run("[...document.querySelectorAll('article .id')].map((e) => e.textContent)")


def test_texts_stand_on_the_page_as_they_are_and_run_nothing(two_records):
    assert ids(two_records) == ["first", "second"]
    shown = two_records.run("document.querySelector('.question').textContent")
    assert shown == RECORDS[0]["question"]
    assert two_records.run("document.title") == "in.jsonl · ContrastRM"
    assert two_records.run("document.querySelectorAll('main img, main script').length") == 0


def test_differences_are_marked_by_word_and_by_chinese_character(two_records):
    marks = two_records.run(
        "[...document.querySelectorAll('article')].map((a) => [...a.querySelectorAll('ins, del')]"
        ".map((e) => e.tagName + ' ' + e.textContent.trim()))"
    )
    changed = ["DEL it", "INS air", "DEL less dense", "INS in it"]
    assert marks[0] == [*changed, "INS **", "INS **", *changed]
    assert marks[1] == ["DEL 100", "INS 90"]
    two_records.run(
        "document.getElementById('against').value = 'nothing';"
        "document.getElementById('against').dispatchEvent(new Event('change'))"
    )
    assert two_records.run("document.querySelectorAll('main ins, main del').length") == 0


def test_what_is_marked_as_removed_and_added_gives_both_texts_back(two_records):
    for one, other in (
        ("a b c", "a x c"),
        ("", "new"),
        ("100度，是", "90度。是"),
        ("x\n\ny", "x\ny z"),
        ("**Bold** text 🎉", "Bold text"),
        (" lead", "lead "),
        ("it's 1,000.5 m", "it’s 1,000.6 m"),
    ):
        found = two_records.run(f"difference({json.dumps(one)}, {json.dumps(other)})")
        if found is not None:
            assert "".join(text for kind, text in found if kind != "ins") == one
            assert "".join(text for kind, text in found if kind != "del") == other


def test_filters_by_bias_verdict_and_text_work_together_and_stay_in_the_address(two_records):
    select = "const e = document.getElementById('{}'); e.value = '{}'; e.dispatchEvent(new Event('{}'))"
    two_records.run("{" + select.format("bias", "length", "change") + "}")
    assert ids(two_records) == ["first"]
    assert two_records.run("[...document.querySelectorAll('details')].map((d) => d.open)") == [False, False, True]
    two_records.run("{" + select.format("verdict", "worse", "change") + "}")
    assert ids(two_records) == []
    assert "No record matches" in two_records.run("document.querySelector('main').textContent")
    two_records.run(
        "{" + select.format("bias", "", "change") + "}" + "{" + select.format("verdict", "", "change") + "}"
    )
    two_records.run("{" + select.format("q", "沸点", "input") + "}")
    two_records.wait("document.querySelectorAll('article').length === 1")
    assert ids(two_records) == ["second"]
    address = two_records.run("location.href")
    two_records.open(address)
    assert ids(two_records) == ["second"]
    assert two_records.run("document.getElementById('count').textContent") == "1 of 2 records"


def test_the_page_is_used_with_the_keyboard(two_records):
    focused = "document.activeElement.querySelector?.('.id')?.textContent ?? document.activeElement.id"
    for key, there in (("j", "first"), ("j", "second"), ("j", "second"), ("k", "first"), ("/", "q")):
        two_records.key(key)
        assert two_records.run(focused) == there
    two_records.key("j")
    assert two_records.run("document.getElementById('q').value") == "j"


def test_five_thousand_records_are_paged_and_searched_quickly(browser, tmp_path):
    long = "All about number {} and what it is good for, told at some length. " * 12
    rows = [
        {
            "id": f"r{i}",
            "question": f"What is {i}?",
            "chosen": long.format(*[i] * 12),
            "rejected": [long.format(*[i + 1] * 12), f"Indeed. {long.format(*[i] * 12)}"],
            "bias_type": ["original", "length" if i % 2 else "beauty"],
        }
        for i in range(5000)
    ]
    make_page(write(tmp_path / "in.jsonl", rows), tmp_path / "page.html")
    browser.look(1200, 900)
    began = time.monotonic()
    browser.open((tmp_path / "page.html").as_uri())
    assert time.monotonic() - began < 20
    assert len(ids(browser)) == 10
    browser.key("n")
    assert ids(browser)[0] == "r10"
    browser.open((tmp_path / "page.html").as_uri() + "#q=number+4321+and&page=9")
    assert ids(browser) == ["r4320", "r4321"]


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_legible_in_light_and_dark(two_records, dark):
    two_records.look(390, 844, dark)
    assert two_records.run("document.documentElement.scrollWidth <= innerWidth")
    luminance = """(color) => color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0)"""
    contrast = two_records.run(f"""(() => {{
        const luminance = {luminance};
        const of = (selector, property) => luminance(getComputedStyle(document.querySelector(selector))[property]);
        const ground = of('article', 'backgroundColor');
        const quiet = ['.text', '.why', '.tag.bias', '.tag.good', '.tag.bad', '.about'];
        return [...quiet.map((s) => [of(s, 'color'), ground]),
          ...['ins', 'del'].map((s) => [of(s, 'color'), of('main ' + s, 'backgroundColor')])]
          .map(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
    }})()""")
    assert min(contrast) >= 4.5
