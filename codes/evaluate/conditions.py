"""Conditions over named figures, as flags take them: ``bsr > 0.1``, ``delta.bsr > 0 and length.bsr > 0.2``.

    condition  = comparison { "and" comparison }
    comparison = value ( ">" | ">=" | "<" | "<=" | "==" | "!=" ) value
    value      = number | name { "." name }

Nothing of it is ever evaluated as code.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from codes.common.records import InputError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<operator>[<>=!]=|[<>])|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))"
    r"|(?P<name>[\w-]+(?:\.[\w-]+)*))"
)
Value = float | str
Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class Condition:
    """One condition: comparisons (left, operator, right) that must all hold; a string is a figure's name."""

    text: str
    comparisons: tuple[tuple[Value, str, Value], ...]

    @property
    def names(self) -> list[str]:
        """The figures it speaks of, each once."""
        values = [value for left, _, right in self.comparisons for value in (left, right)]
        return list(dict.fromkeys(value for value in values if isinstance(value, str)))

    def holds(self, figures: Figures) -> bool:
        """Whether all comparisons hold. Raises InputError for a name that is no figure, or one without a value."""
        for name in self.names:
            if name not in figures:
                raise InputError(
                    f"--fail_if {self.text!r}: no figure is named {name!r} (there are: {_listed(figures)})"
                )
            if figures[name] is None:
                raise InputError(f"--fail_if {self.text!r}: {name} has no value in these results")
        return all(
            OPERATORS[sign](*(figures[value] if isinstance(value, str) else value for value in (left, right)))
            for left, sign, right in self.comparisons
        )


def parse_condition(text: str, flag: str = "--fail_if") -> Condition:
    """The condition that the flag's text states. Raises InputError saying what was expected where."""
    try:
        return Condition(text.strip(), _comparisons(text))
    except _Unexpected as problem:
        raise InputError(f"{flag} {text!r}: {problem}") from None


class _Unexpected(ValueError):
    """What stands where something else was expected."""

    def __init__(self, word: str, expected: str):
        super().__init__(f"expected {expected}, found {repr(word) if word else 'the end'}")


def _comparisons(text: str) -> tuple[tuple[Value, str, Value], ...]:
    tokens, comparisons = _tokens(text), []
    while True:
        left = _value(tokens)
        kind, sign = tokens.pop(0)
        if kind != "operator":
            raise _Unexpected(sign, f"one of {' '.join(OPERATORS)}")
        comparisons.append((left, sign, _value(tokens)))
        kind, word = tokens.pop(0)
        if kind == "end":
            return tuple(comparisons)
        if word != "and":
            raise _Unexpected(word, "'and' or the end")


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token, and at last ("end", "")."""
    found, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise _Unexpected(text[place:].split()[0], "a figure's name, a number or a comparison sign")
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return [*found, ("end", "")]


def _value(tokens: list[tuple[str, str]]) -> Value:
    kind, word = tokens.pop(0)
    if kind == "number" and math.isfinite(float(word)):
        return float(word)
    if kind == "name" and word != "and":
        return word
    raise _Unexpected(word, "a figure's name or a number")


def _listed(figures: Figures) -> str:
    """All names; those of the bounds and of the differences are told by rule, for there are many."""
    plain = [name for name in figures if not name.startswith("delta.") and not name.endswith((".low", ".high"))]
    deltas = [name for name in figures if name.startswith("delta.") and not name.endswith((".low", ".high"))]
    return f"{', '.join(plain)}; {', '.join(deltas)}; with .low or .high, the bounds of an interval"
