"""How answers look, counted: each count on a text that has it, and what rules of thumb get right."""

import numpy as np
import pytest

from codes.common.intervals import wilson_interval
from codes.train.text_style import (
    STYLE_COUNTS,
    is_shortcut,
    length_histogram,
    rule_figures,
    rule_name,
    style_counts,
    style_figures,
)

TEXT = """# Title

I think **this** is [1] great! See https://a.b/c and http://d.e, according to 3.5 studies.

- one
* two
3. three

```python
print("#5")  # not a heading
```
Isn't it? 😀 哇！"""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("characters", len(TEXT)),
        ("paragraphs", 4),
        ("headings", 1),
        ("list items", 3),
        ("bold passages", 1),
        ("code blocks", 1),
        ("numbers", 4),
        ("exclamation marks", 2),
        ("question marks", 1),
        ("links", 2),
        ("citations", 2),
        ("hedges", 1),
        ("praise", 0),
        ("joyful words", 1),
        ("emoji", 1),
        ("first person", 1),
    ],
)
def test_each_count_of_a_text_that_has_something_of_everything(name, count):
    assert STYLE_COUNTS[name](TEXT) == count
    assert style_counts(TEXT)[list(STYLE_COUNTS).index(name)] == count


def test_an_empty_text_has_nothing_but_one_paragraph():
    assert dict(zip(STYLE_COUNTS, style_counts(" "))) == {
        name: {"characters": 1, "paragraphs": 1}.get(name, 0) for name in STYLE_COUNTS
    }


def test_a_rule_is_right_where_the_chosen_answer_has_more_and_ties_are_coin_flips():
    figures = rule_figures(np.array([1, 5, -1, 0, 0, 2]), np.arange(6))
    assert (figures["chosen_has_more"], figures["rejected_has_more"], figures["equal"]) == (3, 1, 2)
    assert figures["accuracy"] == 3 / 4
    assert figures["of_all_pairs"] == (3 + 1) / 6
    low, high = figures["ci95"]["accuracy"]
    assert low < 3 / 4 < high
    low, high = figures["ci95"]["of_all_pairs"]
    assert low < 4 / 6 < high
    nothing = rule_figures(np.zeros(4), np.arange(4))
    assert (nothing["accuracy"], nothing["of_all_pairs"], nothing["ci95"]["accuracy"]) == (None, 0.5, None)


def test_the_interval_counts_questions_and_not_their_pairs():
    differences = np.repeat([1, -1] * 10, 5)
    figures = rule_figures(differences, np.repeat(np.arange(20), 5))
    assert figures["ci95"]["accuracy"] == pytest.approx(wilson_interval(9.5, 19))


def test_a_rule_is_a_shortcut_either_way_round_beyond_the_threshold_and_not_by_chance():
    often, rare = np.repeat([1, -1], (80, 20)), np.repeat([1, -1, 0], (8, 2, 90))
    for sign in (1, -1):
        assert is_shortcut(rule_figures(sign * often, np.arange(100)), 0.6)
        assert not is_shortcut(rule_figures(sign * often, np.arange(100)), 0.85)
        assert not is_shortcut(rule_figures(sign * rare, np.arange(100)), 0.6)
        assert not is_shortcut(rule_figures(sign * often[::20], np.arange(5)), 0.6)
    assert rule_name("characters", rule_figures(often, np.arange(100))) == "longer answers win"
    assert rule_name("numbers", rule_figures(-often, np.arange(100))) == "fewer numbers win"
    assert rule_name("words", rule_figures(often, np.arange(100))) == "more words win"


def test_figures_of_pairs_hold_medians_means_and_every_rule():
    chosen = np.array([style_counts("a b c d"), style_counts("**a** b c")])
    rejected = np.array([style_counts("a b"), style_counts("a b")])
    figures = style_figures(chosen, rejected, np.array([0, 1]), 0.6)
    assert list(figures["rules"]) == list(STYLE_COUNTS)
    assert figures["lengths"]["words"] == {"chosen_median": 3.5, "rejected_median": 2.0, "chosen_longer": 1.0}
    assert figures["rules"]["bold passages"]["chosen_mean"] == 0.5
    assert (figures["pairs"], figures["questions"]) == (2, 2)


@pytest.mark.parametrize("lengths", [([1], [1]), ([5, 80, 3000], [7, 7]), ([10_000_000], [1])])
def test_the_histogram_holds_every_answer(lengths):
    found = length_histogram(*lengths)
    assert [sum(found["chosen"]), sum(found["rejected"])] == [len(part) for part in lengths]
    assert found["edges"] == sorted(set(found["edges"]))
