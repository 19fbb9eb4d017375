"""The page of a data inspection in a real browser: nothing from the data runs, and everything can be read and used."""

import json
import re

import pytest

from codes.common.page import embedded_json
from codes.common.records import InputError
from codes.train import inspect_data
from tests.headless_browser import contrast_of, unnamed_controls
from tests.test_report_page import EVIL, choose, embedded, texts

LONG = (
    "Tell me in a few plain words how it comes that leaves of most trees turn red and yellow before they fall in autumn"
)


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def inspected(tmp_path_factory, tiny_model):
    """The folder of an inspection of hostile texts that leak, repeat and contradict: page, figure and JSON."""
    folder = tmp_path_factory.mktemp("inspected")
    evil = {"chosen": f"yes {EVIL}", "rejected": [f"no {EVIL}", "**never** ever"], "bias_type": ["original", EVIL]}
    rows = [
        {"question": f"{LONG} {EVIL}", **evil, "id": EVIL},
        {"question": "Both ways?", "chosen": f"A {EVIL}", "rejected": ["B"]},
        {"question": "Both ways?", "chosen": "B", "rejected": [f"A {EVIL}", "B"], "bias_type": ["beauty", "length"]},
    ]
    for i in range(30):
        rejected = [f"**It** is {i + 1}, I think."]
        rows.append({"question": f"What is {i} q{i} of r{i}?", "chosen": f"It is {i}.", "rejected": rejected})
    dev = [{"question": f"{LONG} {EVIL} please", "chosen": "Because.", "rejected": ["So."]}]
    write(folder / "train.jsonl", rows)
    write(folder / "dev.jsonl", dev)
    flags = {"eval_data_path": folder / "dev.jsonl", "model_name_or_path": tiny_model, "tokens_per_second": 1000}
    flags |= {"page": folder / "page.html", "figure": folder / "figure.png", "output_file": folder / "out.json"}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    inspect_data.main([str(folder / "train.jsonl"), *given])
    return folder


# --- Without a browser -----------------------------------------------------------------------------------------------


def test_no_text_of_the_data_can_end_the_script_element_and_nothing_is_loaded(inspected):
    page = (inspected / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == page.count("<script") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.S).group(1)
    assert "<" not in data
    assert embedded_json(EVIL)[1:-1] in data
    shell = page.replace(data, "")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|url\(|\bsrc=|\bfetch\(|XMLHttp", shell)
    assert "default-src 'none'" in shell
    assert "innerHTML" not in shell


def test_the_page_holds_what_the_json_holds_and_the_figure_is_drawn(inspected):
    page = (inspected / "page.html").read_text(encoding="utf-8")
    assert embedded(page) == json.loads((inspected / "out.json").read_text(encoding="utf-8"))
    assert (inspected / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_replaces_no_file_that_is_none(inspected):
    train = inspected / "train.jsonl"
    with pytest.raises(InputError, match=r"--page .*: exists and is no HTML page"):
        inspect_data.main([str(train), "--page", str(train)])
    with pytest.raises(InputError, match=r"--figure .*: give it one of the suffixes"):
        inspect_data.main([str(train), "--figure", str(inspected / "figure.txt")])


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser, inspected):
    browser.look(1200, 900)
    browser.open((inspected / "page.html").as_uri())
    return browser


def test_hostile_texts_stand_on_the_page_as_they_are_and_run_nothing(page):
    assert page.run("document.title") == "Data inspection · ContrastRM"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert any(EVIL in text for text in texts(page, "article .text"))
    assert any(EVIL in text for text in texts(page, "#record-tables th"))
    assert any(EVIL in text for text in texts(page, "article h3"))


def test_suggestions_come_first_and_every_section_is_filled(page, inspected):
    found = json.loads((inspected / "out.json").read_text(encoding="utf-8"))
    sections = ["suggestions", "overview", "style", "lengths", "tokens", "texts", "provenance"]
    assert page.run("[...document.querySelectorAll('main > section, footer > section')].map((s) => s.id)") == sections
    shown = texts(page, "#suggestion-list li")
    assert [text.split("→ ")[1] for text in shown] == [entry["remedy"] for entry in found["suggestions"]]
    tiles = dict(zip(texts(page, "#tiles dt"), texts(page, "#tiles dd")))
    assert tiles["training records"] == "33"
    assert tiles["pairs ranked both ways"] == "1"
    assert tiles["asked in both splits"].startswith("1")
    assert tiles["time of an epoch"].endswith("at 1,000 tokens/s")
    panels = 1 + len(found["style"]["by_bias_type"])
    assert len(texts(page, "#rule-charts figure")) == panels
    rules = len(found["style"]["all"]["rules"])
    assert page.run("document.querySelectorAll('#rule-charts circle').length") == panels * rules
    assert page.run("document.querySelectorAll('#length-charts path').length") == 3
    assert page.run("[...document.querySelectorAll('figure > svg')].every((s) => s.getAttribute('aria-label'))")
    rule = found["style"]["all"]["rules"]["hedges"]["of_all_pairs"]
    label = page.run("document.querySelector('#rule-charts svg').getAttribute('aria-label')")
    assert f"hedges: {100 * rule:.1f} [" in label
    assert "train.jsonl" in texts(page, "#provenance-table th")


def test_examples_stand_side_by_side_with_their_differences_and_are_filtered(page):
    kinds = texts(page, "article .tag.bias")
    assert kinds[0] == "nearly the same question in both splits"
    assert set(kinds) >= {"ranked both ways", "chosen and rejected in one record"}
    assert [text.strip() for text in texts(page, "article:first-of-type ins")] == ["please"]
    boxes = "[...document.querySelectorAll('article:first-of-type .both > section')]"
    sides = page.run(f"{boxes}.map((s) => s.getBoundingClientRect().top)")
    assert len(sides) == 2
    assert sides[0] == sides[1]
    choose(page, kind="ranked both ways")
    assert set(texts(page, "article .tag.bias")) == {"ranked both ways"}
    assert "rejected in the other as beauty" in texts(page, "article h3")[0]
    assert texts(page, "#count")[0].startswith("1 of ")
    choose(page, kind="", q="no such words")
    page.wait("document.querySelector('#records .empty') !== null")


def test_the_page_is_used_with_the_keyboard_and_everything_has_a_name(page):
    for key, place in (("j", 0), ("j", 1), ("k", 0)):
        page.key(key)
        assert page.run("[...document.querySelectorAll('article')].indexOf(document.activeElement)") == place
    page.key("/")
    assert page.run("document.activeElement.id") == "q"
    assert unnamed_controls(page) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_legible_in_light_and_dark(page, dark):
    page.look(360, 780, dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("Math.min(...[...document.querySelectorAll('figure > svg')].map((s) => s.clientWidth))") > 280
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    seen = "li,.remedy,.tiles dt,.tiles dd,.tiles dd small,.lead,th,td,.m0,.m1,.bad,ins,del,.value,.interval,figcaption"
    seen += ",figcaption small,.about,.tag.bias,header nav a,.question,.both h3,#count,caption,kbd"
    contrast = contrast_of(page, seen.split(","))
    assert contrast[0] >= 4.5, contrast


def test_without_examples_a_model_or_an_evaluation_split_it_says_so(browser, tmp_path):
    path = write(tmp_path / "one.jsonl", [{"question": "q?", "chosen": "a", "rejected": ["b"]}])
    inspect_data.main([str(path), "--page", str(tmp_path / "page.html")])
    browser.look(1200, 900)
    browser.open((tmp_path / "page.html").as_uri())
    assert "No text stands twice" in texts(browser, "#records")[0]
    assert "--model_name_or_path" in texts(browser, "#token-tables")[0]
    assert "Nothing that wants mending" in texts(browser, "#suggestions")[0]
    assert "evaluation records" not in texts(browser, "#tiles dt")
