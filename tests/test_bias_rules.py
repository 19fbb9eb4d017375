"""codes.construct.bias_rules and bias_checks: only the trait changes, on real answers, and every mutant is caught."""

import json
import re
import time
from random import Random

import pytest

from codes.common.answer_units import language, split_units
from codes.common.records import INJECTED_BIASES
from codes.construct.bias_checks import (
    check_injection,
    dose,
    looks_like_error,
    strip_formatting,
    trait_problems,
    trait_strength,
)
from codes.construct.bias_rules import inject, rules_rng

PROSE = (
    "I think the Treaty of Kiel was signed in 1814, after 3 weeks of talks. It is probably the reason why Denmark lost"
    " Norway. Sweden may have wanted more. The text has 28 articles; perhaps Dr. Holm counted 29 in 1901."
)
LIST = (
    "Here are the steps:\n\n1. Boil 2 litres of water.\n2. Add 200 g of pasta and wait.\n   - Maybe stir once."
    "\n3. Drain."
)
CODE = (
    "You can use this:\n\n```python\ndef f(x):\n    # maybe wrong\n    return x * 12\n```\n\nIt is a function."
    " It runs in 3 ms. I believe `maybe(5)` is slower."
)
CHINESE = "我觉得水的沸点可能是100度。在高原上，沸点会低一些，大概是88度！这不可能改变。原因有2个：气压和温度。"
TRICKY = {
    "prose": PROSE,
    "list": LIST,
    "code": CODE,
    "chinese": CHINESE,
    "one digit": "4",
    "one word": "Yes.",
    "one Chinese character": "是",
    "bare code": "def add(a, b):\n    return a + b",
    "indented code": "    for i in range(3):\n        total += i",
    "code cut off": "Try this:\n```python\nx = 1\ny = 2",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |",
    "marked up already": "## Title\n\n**Bold. Still bold.** And 5 more. - not a bullet. 2**3 is 8.",
    "braces": "Use {name} and {0} in 5 % of cases. It is {a: 1}.",
    "emoji": "🎉 Party at 8! 🎉 Bring 2 cakes.",
    "long": "\n\n".join(f"Paragraph {i} is about item {i * 7}. It has two sentences, I guess." for i in range(200)),
    "leading space": "  Perhaps 7.\n\n  Then 8.\n",
    "only white space inside": "a\n\n\n\nb",
    "Windows line ends": "First 1.\r\nSecond 2.\r\n",
    "Russian": "Возможно, это 12 апреля. Гагарин полетел в 1961 году.",
}


@pytest.fixture(scope="module")
def real_answers():
    """Some 240 of the answers of the public bias files, the same ones every time."""
    from tests.conftest import SHARED_DATA

    if not SHARED_DATA.is_dir():
        pytest.skip("the real public data is not beside this checkout")
    answers = set()
    for path in sorted((SHARED_DATA / "contrastrm-eval").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers.update(row[field] for field in row if field.startswith("original_response"))
    answers = sorted(answer for answer in answers if answer.strip())
    assert len(answers) > 2000
    return answers[::10]


@pytest.mark.parametrize("bias", INJECTED_BIASES)
@pytest.mark.parametrize("kind", TRICKY)
def test_only_the_trait_changes_in_tricky_answers(bias, kind):
    for seed in range(8):
        injected = inject(TRICKY[kind], bias, Random(seed))
        assert check_injection(bias, TRICKY[kind], injected) == []
        assert dose(bias, TRICKY[kind], injected) > 0


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_only_the_trait_changes_in_real_answers(bias, real_answers):
    assert len(real_answers) >= 200
    for number, answer in enumerate(real_answers):
        injected = inject(answer, bias, rules_rng(0, str(number), bias))
        assert check_injection(bias, answer, injected) == [], answer


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_a_changed_number_in_the_body_is_caught(bias, real_answers):
    answers = [*TRICKY.values(), *real_answers[::3]]
    tried = 0
    for number, answer in enumerate(answers):
        digits = [match.start() for match in re.finditer(r"\d", answer)]
        if not digits:
            continue
        place = Random(number).choice(digits)
        mutant = answer[:place] + str((int(answer[place]) + 1) % 10) + answer[place + 1 :]
        if strip_formatting(mutant).split() == strip_formatting(answer).split():
            continue
        tried += 1
        assert check_injection(bias, answer, inject(mutant, bias, Random(number))), (answer, place)
    assert tried > 50


@pytest.mark.parametrize("bias", ["length", "beauty", "assertiveness", "sycophancy", "sentiment"])
@pytest.mark.parametrize("kind", ["prose", "list", "code", "chinese", "one digit", "table", "braces"])
def test_no_digit_of_the_result_can_change_where_the_trait_has_none(bias, kind):
    injected = inject(TRICKY[kind], bias, Random(1))
    places = [match.start() for match in re.finditer(r"\d", injected)]
    assert places
    for place in places:
        mutant = injected[:place] + str((int(injected[place]) + 1) % 10) + injected[place + 1 :]
        assert check_injection(bias, TRICKY[kind], mutant), mutant


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_a_lost_word_a_new_sentence_and_changed_code_are_caught(bias):
    for original, changed in (
        (PROSE, PROSE.replace("Denmark", "Finland")),
        (PROSE, PROSE.replace(" after 3 weeks of talks", "")),
        (PROSE, PROSE + " Bergen is the capital of Norway, by the way."),
        (PROSE, PROSE.replace("1814", "-1814")),
        (CODE, CODE.replace("    return", "  return")),
        (CODE, CODE.replace("x * 12", "x + 12")),
        (LIST, LIST.replace("3. Drain", "4. Drain")),
        (CHINESE, CHINESE.replace("气压", "湿度")),
    ):
        if bias == "length" and "Bergen" in changed:
            assert "a new name: 'Norway'" in check_injection(bias, original, inject(changed, bias, Random(2)))
        else:
            assert check_injection(bias, original, inject(changed, bias, Random(2))), changed


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_an_unchanged_answer_does_not_pass(bias):
    for answer in (PROSE, LIST, CODE, CHINESE):
        assert check_injection(bias, answer, answer)


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_the_seed_decides_the_text(bias):
    texts = {inject(PROSE, bias, Random(seed)) for seed in range(12)}
    assert len(texts) >= 6
    assert inject(PROSE, bias, Random(3)) == inject(PROSE, bias, Random(3))


def test_the_generator_depends_on_seed_row_and_purpose_alone():
    draws = [
        rules_rng(*key).random() for key in ((1, "a", "x"), (1, "a", "x"), (2, "a", "x"), (1, "b", "x"), (1, "a", "y"))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


def test_length_grows_by_half_to_three_times_with_the_same_numbers():
    for answer in TRICKY.values():
        injected = inject(answer, "length", Random(5))
        assert 1.5 <= len(injected.strip()) / len(answer.strip()) <= 3
        assert set(re.findall(r"\d+", injected)) == set(re.findall(r"\d+", answer))


def test_beauty_leaves_the_same_text_once_formatting_is_stripped():
    formatted = inject(PROSE, "beauty", Random(0))
    assert strip_formatting(formatted) == PROSE
    assert "## " in formatted
    assert "**" in formatted
    assert "\n- " in formatted


def test_assertiveness_takes_hedges_out_and_leaves_code_alone():
    firm = inject(PROSE, "assertiveness", Random(0))
    for hedge in ("I think", "probably", "perhaps", "may have"):
        assert hedge in PROSE
        assert hedge not in firm
    assert "he Treaty of Kiel" in firm
    assert "`maybe(5)`" in inject(CODE, "assertiveness", Random(0))
    assert "# maybe wrong" in inject(CODE, "assertiveness", Random(0))
    assert "不可能改变" in inject(CHINESE, "assertiveness", Random(0))
    assert "May 2020 was the month." in inject("May 2020 was the month.", "assertiveness", Random(0))


def test_additions_speak_the_answers_language():
    for bias in ("authority", "sycophancy", "sentiment", "concreteness", "length", "assertiveness"):
        added = inject(CHINESE, bias, Random(4)).replace(CHINESE, "")
        assert re.search(r"[\u3400-\u9fff]", added)
        assert not re.search(r"[a-z]{4}", added)
        assert language(inject(PROSE, bias, Random(4))) == "en"


def test_units_put_together_are_the_answer(real_answers):
    for answer in ["\x0cA page. And more.", "\n \u2028A line. And more.", *TRICKY.values(), *real_answers]:
        lead, units = split_units(answer)
        assert lead + "".join(unit.text + unit.after for unit in units) == answer


def test_abbreviations_initials_and_list_numbers_end_no_sentence():
    texts = [unit.text for unit in split_units("1. Dr. Who met J. Smith, e.g. Twice. Then left.")[1]]
    assert texts == ["1. Dr. Who met J. Smith, e.g. Twice.", "Then left."]


def test_a_free_text_is_checked_for_the_trait_it_should_carry():
    assert trait_problems("length", PROSE * 2, PROSE) == []
    assert trait_problems("length", PROSE, PROSE)
    assert trait_problems("assertiveness", "It definitely is 4.", "It is 4.") == []
    assert trait_problems("assertiveness", "It is 4.", "It is 4.")
    assert trait_problems("assertiveness", "I think it definitely is 4.", "It is 4.") == ["the answer hedges"]
    for bias in ("authority", "beauty", "sycophancy", "sentiment", "concreteness"):
        assert trait_problems(bias, inject(PROSE, bias, Random(0)), PROSE) == []
        assert trait_problems(bias, PROSE, PROSE)


def test_concreteness_counts_figures_not_digits():
    assert trait_strength("concreteness", "In 1,284 cases of 20, 3.5%.") == 3


def test_a_blank_answer_and_an_unknown_bias_are_refused():
    with pytest.raises(ValueError, match="blank"):
        inject("  \n", "length", Random(0))
    with pytest.raises(ValueError, match="'gender' is not one of"):
        inject("a", "gender", Random(0))
    with pytest.raises(ValueError, match="no mechanical check"):
        check_injection("gender", "a", "b")


@pytest.mark.parametrize(
    "text", ["Error code: 429 - {'error': 1}", "<!DOCTYPE html><p>", ' {"error": {"message": ""}}']
)
def test_stored_error_texts_are_recognised(text):
    assert looks_like_error(text)
    assert not looks_like_error(f"The server said: {text}")


# --- Doses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_a_higher_dose_adds_more_of_the_trait_and_nothing_else(bias, real_answers):
    answers = real_answers[::6]
    grown = 0
    for position, answer in enumerate(answers):
        doses = []
        for graded in (1, 2, 3):
            injected = inject(answer, bias, Random(position), graded)
            assert check_injection(bias, answer, injected) == []
            doses.append(dose(bias, answer, injected))
        grown += doses[0] < doses[2] and doses == sorted(doses)
    # Some code cannot be drawn out sentence by sentence: it stands twice, whatever the dose.
    assert grown >= (0.8 if bias == "length" else 0.99) * len(answers)


@pytest.mark.parametrize("graded", [1, 2, 3])
@pytest.mark.parametrize("bias", INJECTED_BIASES)
def test_doses_keep_tricky_answers(bias, graded):
    for answer in TRICKY.values():
        assert check_injection(bias, answer, inject(answer, bias, Random(1), graded)) == []


@pytest.mark.parametrize("repeated", [".", "x y. ", "a b c d.\n", "x = 1;\n", "好的。"])
def test_a_long_answer_that_repeats_itself_is_injected_and_checked_in_a_moment(repeated):
    answer = "It begins. " + repeated * (20_000 // len(repeated)) + "It ends."
    started = time.process_time()
    for bias in ("length", "beauty", "assertiveness"):
        check_injection(bias, answer, inject(answer, bias, Random(1)))
    assert time.process_time() - started < 10, "quadratic work on these took up to minutes"
