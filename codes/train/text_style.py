"""How an answer looks, in counts, and how far a rule that goes by one of them alone would get.

A preference set in which one side is longer, bolder or surer teaches just that. For each count the rule "more of it
wins" is tried on the pairs: what it gets right is what a model can learn without reading.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from codes.common.intervals import clustered_wilson_interval
from codes.common.trait_patterns import CITATION, EMOJI, HEDGES, JOY, PRAISE
from codes.train.near_duplicates import words


def _count(pattern: str | re.Pattern, flags: int = 0) -> Callable[[str], int]:
    compiled = re.compile(pattern, flags) if isinstance(pattern, str) else pattern
    return lambda text: sum(1 for _ in compiled.finditer(text))


_BETWEEN_PARAGRAPHS = _count(r"\n\s*\n")
STYLE_COUNTS: Mapping[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(words(text)),
    "paragraphs": lambda text: 1 + _BETWEEN_PARAGRAPHS(text.strip()),
    "headings": _count(r"^ {0,3}#{1,6}\s", re.MULTILINE),
    "list items": _count(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "bold passages": _count(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "code blocks": _count(r"^[ \t]*(```|~~~).*?^[ \t]*\1", re.MULTILINE | re.DOTALL),
    "numbers": _count(r"\d+(?:[.,]\d+)*"),
    "exclamation marks": _count(r"[!！]"),
    "question marks": _count(r"[?？]"),
    "links": _count(r"https?://"),
    "citations": _count(CITATION),
    "hedges": _count(HEDGES),
    "praise": _count(PRAISE),
    "joyful words": _count(JOY),
    "emoji": _count(EMOJI),
    "first person": _count(r"\b(?:I|I'(?:m|ve|d|ll)|me|my|mine|myself)\b|我"),
}
LENGTHS = ("characters", "words")


def style_counts(text: str) -> list[int]:
    """The counts of one answer, in the order of ``STYLE_COUNTS``."""
    return [count(text) for count in STYLE_COUNTS.values()]


def rule_figures(differences: np.ndarray, clusters: np.ndarray) -> dict:
    """What "more of it wins" gets right; differences: [pairs], chosen minus rejected; clusters: [pairs], from 0.

    ``accuracy`` is over the pairs that differ; ``of_all_pairs`` takes a tie for a coin flip, so that a rule that rarely
    applies gains little. 95% intervals are over clusters: the pairs of a question are not independent.
    """
    pairs, more, less = len(differences), differences > 0, differences < 0
    differing = int(more.sum() + less.sum())

    def interval(right: np.ndarray, counted: np.ndarray) -> list[float] | None:
        return clustered_wilson_interval(np.bincount(clusters, weights=right), np.bincount(clusters, weights=counted))

    return {
        "chosen_has_more": int(more.sum()),
        "rejected_has_more": int(less.sum()),
        "equal": pairs - differing,
        "accuracy": float(more.sum() / differing) if differing else None,
        "of_all_pairs": float(0.5 + (more.sum() - less.sum()) / (2 * pairs)) if pairs else None,
        "ci95": {
            "accuracy": interval(more, more | less),
            "of_all_pairs": interval(0.5 * (1 + more - less.astype(float)), np.ones(pairs)),
        },
    }


def is_shortcut(figures: Mapping, threshold: float) -> bool:
    """Whether the rule, or its opposite, is right more often than ``threshold`` over all pairs, and not by chance."""
    interval = figures["ci95"]["of_all_pairs"]
    beyond = figures["of_all_pairs"] is not None and abs(figures["of_all_pairs"] - 0.5) > threshold - 0.5
    return beyond and interval is not None and not interval[0] <= 0.5 <= interval[1]


def style_figures(
    chosen: np.ndarray, rejected: np.ndarray, clusters: np.ndarray, threshold: float
) -> dict[str, object]:
    """Every rule's figures and the lengths; chosen and rejected: int64 [pairs, counts], the counts of both answers."""
    rules = {}
    for place, name in enumerate(STYLE_COUNTS):
        figures = rule_figures(chosen[:, place] - rejected[:, place], clusters)
        means = {"chosen_mean": float(chosen[:, place].mean()), "rejected_mean": float(rejected[:, place].mean())}
        rules[name] = {**figures, **means, "is_shortcut": is_shortcut(figures, threshold)}
    return {
        "pairs": len(chosen),
        "questions": len(np.unique(clusters)),
        "lengths": {
            name: {
                "chosen_median": float(np.median(chosen[:, place])),
                "rejected_median": float(np.median(rejected[:, place])),
                "chosen_longer": rules[name]["chosen_has_more"] / len(chosen),
            }
            for place, name in enumerate(LENGTHS)
        },
        "rules": rules,
    }


def rule_name(name: str, figures: Mapping) -> str:
    """The better of the rule and its opposite, in words."""
    more, less = ("longer answers", "shorter answers") if name == "characters" else (f"more {name}", f"fewer {name}")
    return f"{more if figures['of_all_pairs'] >= 0.5 else less} win"


def length_histogram(chosen: Sequence[int], rejected: Sequence[int], bins: int = 24) -> dict:
    """How many answers of each kind have lengths within edges that grow by a constant factor."""
    longest = max(2, *map(int, (np.max(chosen), np.max(rejected))))
    shortest = max(1, min(map(int, (np.min(chosen), np.min(rejected)))))
    edges = np.unique(np.geomspace(min(shortest, longest - 1), longest + 1, bins + 1).round())
    return {
        "edges": [int(edge) for edge in edges],
        "chosen": np.histogram(chosen, edges)[0].tolist(),
        "rejected": np.histogram(rejected, edges)[0].tolist(),
    }
