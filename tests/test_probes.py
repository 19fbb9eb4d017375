"""The probes' edits: never less than the dose before, the same every time, and at home in any text."""

from itertools import combinations, pairwise
from random import Random

import pytest

from codes.common.answer_units import normal_space, split_units
from codes.common.records import iter_jsonl
from codes.construct import bias_phrases
from codes.evaluate import probe_phrases
from codes.evaluate.probe_data import read_good_answers
from codes.evaluate.probes import (
    DOSES,
    LONGEST_ECHO,
    PROBES,
    Subject,
    _inverted,
    probed_answers,
    sham_answers,
)
from tests.conftest import ROOT

SAMPLE = ROOT / "data" / "train" / "sample.jsonl"
ADDING = (
    "repetition",
    "padding",
    "prompt_echo",
    "unsupported_citations",
    "flattery",
    "prompt_injection",
    "gibberish",
)
HARD_TEXTS = {
    "code": "```python\ndef f(x):\n    return x + 1\n```\n\nCall `f(1)`. It gives 2. Try others. They work. So there.",
    "open code": "First this. Then that. Now look. It is code:\n```\nx = 1\ny = 2",
    "indented code": "    if x:\n        return 1\n    return 2\n",
    "markdown": "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- **One.** Yes.\n- Two.\n\n> quoted. Twice. Thrice.",
    "chinese": "水在一百度沸腾。冰在零度融化。盐水更低。这与气压有关。高山上更低。所以煮饭要久一些，请注意时间。",
    "japanese": "はい、そうです。それは本当です。次に進みます。終わりです。ありがとうございました、助かりました。",
    "arabic": "الماء يغلي عند مئة درجة. الجليد يذوب عند الصفر. هذا يعتمد على الضغط. انتهى الكلام هنا.",
    "emoji": "👩‍👩‍👧 Yes! 🎉 It works. 🎉 Really. And again! 👍🏽 Fine.",
    "windows lines": "One line.\r\nTwo lines.\r\nThree lines.\r\nFour lines, and this is the last of them.\r\n",
    "one word": "Paris",
    "one mark": "?",
    "dots": "." * 500,
    "no spaces": "a" * 5000,
    "long": "It is so. " * 3000,
    "null and controls": "a\x00b. c\x1cd. e\u2028f. g\x85h. And that is all there is to it.",
    "a page of its own": "\x0c\u2028First this. Then that. Now look at it. And here it ends.",
}


def sample():
    return read_good_answers(str(SAMPLE), None)[0]


def supersequence(longer, shorter):
    """Whether the characters of one text stand in the other, in order."""
    position = iter(longer)
    return all(character in position for character in shorter)


@pytest.mark.parametrize("probe", PROBES)
def test_the_same_row_and_seed_give_the_same_edits_and_another_seed_others(probe):
    subjects = [answer.subject for answer in sample()]
    once, again, other = (
        [probed_answers(Subject(s.question, s.answer), probe, seed) for s in subjects] for seed in (1, 1, 2)
    )
    assert once == again
    assert (once == other) == (probe in ("prompt_echo", "truncation"))  # in which nothing is drawn


@pytest.mark.parametrize("probe", PROBES)
def test_every_dose_differs_from_the_answer_and_from_every_other_dose(probe):
    carried = [texts for answer in sample() if (texts := probed_answers(answer.subject, probe, 0)) is not None]
    assert len(carried) >= 73  # as many as a verdict at 5% needs
    for texts in carried:
        assert len(set(texts)) == len(DOSES)


@pytest.mark.parametrize("probe", ADDING)
def test_what_adds_text_keeps_the_answer_and_the_smaller_doses_in_order(probe):
    for answer in sample():
        texts = [answer.subject.answer.rstrip(), *probed_answers(answer.subject, probe, 3)]
        for smaller, larger in pairwise(texts):
            assert len(larger) > len(smaller)
            assert supersequence(larger, smaller)


def test_repetition_says_nothing_that_the_answer_does_not_say():
    for answer in (answer for answer in sample() if answer.subject.language == "en"):
        own = {unit.body for unit in answer.subject.units}
        for text in probed_answers(answer.subject, "repetition", 0):
            assert {unit.body for unit in split_units(text)[1]} == own


def test_truncation_leaves_the_starts_of_the_answer_and_breaks_off_inside_a_word():
    for answer in sample():
        whole = answer.subject.answer
        texts = probed_answers(answer.subject, "truncation", 0)
        for share, text in zip((7 / 8, 3 / 4, 1 / 2, 1 / 4), texts):
            assert whole.startswith(text)
            assert len(text) <= len(whole) * share
            assert text[-1].isalnum()
            assert whole[len(text)].isalnum()


def test_another_language_takes_the_place_of_as_many_characters_in_another_script():
    english, chinese = Subject("Why?", "It is so because of that. " * 4), Subject("为什么？", HARD_TEXTS["chinese"])
    for subject, foreign in ((english, str.isascii), (chinese, lambda text: not text.isascii())):
        texts = probed_answers(subject, "wrong_language", 0)
        own = subject.answer.rstrip()
        assert {len(text) for text in texts} == {len(own)}
        kept = [sum(a == b for a, b in zip(text, own)) for text in texts]
        assert kept == sorted(kept, reverse=True)
        assert not foreign(texts[-1][:20])


def test_the_largest_dose_of_refusal_is_nothing_but_a_refusal():
    for answer in sample():
        *partial, blanket = probed_answers(answer.subject, "refusal", 0)
        assert blanket in probe_phrases.REFUSALS[answer.subject.language]
        for text in partial:
            assert text.endswith("… " + blanket)
            assert answer.subject.answer.startswith(text[: -len(blanket) - 2])


@pytest.mark.parametrize("count", [4, 5, 6, 17, 40])
@pytest.mark.parametrize("seed", range(4))
def test_a_larger_dose_of_shuffling_turns_the_same_pairs_and_more_until_all_are_reversed(count, seed):
    turned = []
    for dose in DOSES:
        place = {item: i for i, item in enumerate(_inverted(count, dose, Random(seed)))}
        turned.append({(a, b) for a, b in combinations(range(count), 2) if place[a] > place[b]})
    assert all(smaller < larger for smaller, larger in pairwise(turned))
    assert turned[0]
    assert len(turned[-1]) == count * (count - 1) / 2


def test_shuffling_moves_sentences_alone_and_loses_none():
    code = Subject("q", HARD_TEXTS["code"])
    for text in probed_answers(code, "shuffled_sentences", 0):
        assert text.startswith("```python\ndef f(x):\n    return x + 1\n```\n\n")
        assert sorted(unit.text for unit in split_units(text)[1]) == sorted(unit.text for unit in code.units)


@pytest.mark.parametrize(
    ("probe", "answer"),
    [
        ("shuffled_sentences", "One. Two. Three."),
        ("shuffled_sentences", "Same. Same. Same. Same. Same."),
        ("truncation", "Too short to be cut."),
        ("repetition", HARD_TEXTS["indented code"]),
        ("wrong_language", "42"),
        ("refusal", "42"),
    ],
)
def test_an_answer_that_cannot_carry_a_probe_at_every_dose_is_none(probe, answer):
    assert probed_answers(Subject("What?", answer), probe, 0) is None


@pytest.mark.parametrize("name", HARD_TEXTS)
@pytest.mark.parametrize("probe", [*PROBES, "sham"])
def test_no_text_is_too_odd(probe, name):
    subject = Subject([{"role": "user", "content": "سؤال؟ 问题？ Question?\n\nYes?"}], HARD_TEXTS[name])
    texts = sham_answers(subject) if probe == "sham" else probed_answers(subject, probe, 0)
    assert texts is None or all(text.encode() and text != subject.answer for text in texts)


def test_the_sham_changes_white_space_and_nothing_else_and_no_code():
    for answer in [subject for _, subject in read_hard_and_sample()]:
        texts = sham_answers(answer)
        assert all(normal_space(text) == normal_space(answer.answer) for text in texts)
        assert len({answer.answer, *texts}) == 1 + len(DOSES)
        code = [unit.text for unit in answer.units if unit.verbatim]
        for text in texts:
            assert all(part in text for part in code)


def read_hard_and_sample():
    return [
        *((name, Subject("q", text)) for name, text in HARD_TEXTS.items()),
        *((a.where, a.subject) for a in sample()),
    ]


def test_an_echo_is_of_the_last_turn_on_one_line_and_not_endless():
    turns = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And\n\nsecond? " + "why " * 500},
    ]
    [once, twice, *_] = probed_answers(Subject(turns, "Because."), "prompt_echo", 0)
    echo, own = once.split("\n\n")
    assert echo.startswith("And second? why why")
    assert len(echo) == LONGEST_ECHO
    assert (own, twice) == ("Because.", f"{once}\n\n{echo}")


def test_the_wording_is_none_of_what_training_data_is_made_with():
    def sentences(module):
        banks = (value for name, value in vars(module).items() if name.isupper())
        parts = (part for bank in banks for part in (bank.values() if isinstance(bank, dict) else [bank]))
        return {text for part in parts if isinstance(part, tuple) for text in part if isinstance(text, str)}

    ours, theirs = sentences(probe_phrases), sentences(bias_phrases)
    assert len(ours) > 50
    assert len(theirs) > 50
    assert not ours & theirs
    trained_on = {row["chosen"] for _, row in iter_jsonl(SAMPLE)}
    assert not any(phrase in answer for phrase in probe_phrases.FILLER["en"] for answer in trained_on)
