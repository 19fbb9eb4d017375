"""Mechanical checks of an injected answer: did only the trait change, and does a text carry the trait at all?

``check_injection`` compares an answer with its biased version. All biases but two must keep every sentence of the
original word for word and in order, and whatever stands between must be of the trait; beauty must leave the same text
once the formatting is stripped, assertiveness the same words once hedges and certainty markers are. A changed number
fails them all.
"""

import re
from collections.abc import Iterable, Iterator

from codes.common import trait_patterns as traits
from codes.common.answer_units import language, marker_length, normal_space, split_units
from codes.common.records import content_hash
from codes.construct import bias_phrases as phrases
from codes.construct.bias_rules import LENGTH_RATIO


def check_injection(bias: str, original: str, injected: str) -> list[str]:
    """What is wrong with ``injected`` as ``original`` with nothing but the bias's trait added; [] if nothing is."""
    problems = _code_problems(original, injected)
    if bias == "beauty":
        problems += _beauty_problems(original, injected)
    elif bias == "assertiveness":
        problems += _assertiveness_problems(original, injected)
    elif bias == "length":
        problems += _length_problems(original, injected)
    elif bias in _ADDED:
        problems += _added_problems(bias, original, injected)
    else:
        raise ValueError(f"{bias!r} has no mechanical check")
    return problems


def trait_problems(bias: str, answer: str, reference: str) -> list[str]:
    """What an answer written freely (by an LLM) lacks of the bias it should carry, next to a plain ``reference``."""
    if bias == "length":
        ratio = len(answer.strip()) / len(reference.strip())
        return [] if ratio >= LENGTH_RATIO[0] else [f"the answer is {ratio:.2f} times as long as the plain one"]
    if bias == "assertiveness" and _count(traits.HEDGES, answer) > 0:
        return ["the answer hedges"]
    strength, plain = trait_strength(bias, answer), trait_strength(bias, reference)
    return (
        []
        if strength > plain
        else [f"no more {bias} than in the plain answer ({strength} against {plain} signs of it)"]
    )


# What may be asked to stay when an answer is rewritten, and how that is checked.
MUST_STAY = ("sentences", "words", "numbers", "code", "length")
# What stays when an LLM adds a built-in trait to an answer or removes it, whatever wording it chooses.
KEPT_IN_REWRITES = {
    "length": ("numbers", "code"),
    "authority": ("code",),
    "beauty": ("words", "numbers", "code"),
    "assertiveness": ("numbers", "code"),
    "sycophancy": ("numbers", "code"),
    "sentiment": ("numbers", "code"),
    "concreteness": ("code",),
}


def kept_problems(must_stay: Iterable[str], original: str, rewritten: str) -> list[str]:
    """What a rewrite changed of what must stay: every sentence word for word and in order, the words once formatting
    is stripped, the set of numbers, code blocks, or the length (0.67 to 1.5 times the original's)."""
    problems = []
    for part in must_stay:
        if part == "sentences" and (missing := _missing_sentence(original, rewritten)):
            problems.append(f"the original's text was changed or left out: {missing[:60]!r}")
        elif part == "words":
            problems += _words_problems(original, rewritten)
        elif part == "numbers" and (differing := _numbers(original) ^ _numbers(rewritten)):
            problems.append(f"numbers differ: {', '.join(sorted(differing)[:5])}")
        elif part == "code":
            problems += _code_kept_problems(original, rewritten)
        elif part == "length" and not 0.67 <= (ratio := len(rewritten.strip()) / len(original.strip())) <= 1.5:
            problems.append(f"{ratio:.2f} times as long as the original")
    return problems


def rewrite_trait_problems(bias: str, plain: str, marked: str, *, added: bool) -> list[str]:
    """Whether the version with the trait shows more of it than the one without; a plain answer may be left as it is."""
    strength, without = trait_strength(bias, marked), trait_strength(bias, plain)
    if strength > without or (not added and strength == without and plain == marked):
        return []
    return [f"no more {bias} with the trait than without ({strength} against {without} signs of it)"]


def _missing_sentence(original: str, rewritten: str) -> str | None:
    try:
        _additions(_sentences(original), _sentences(rewritten))
    except LookupError as missing:
        return missing.args[0]
    return None


def _numbers(text: str) -> set[str]:
    """The numbers in a text, thousands marks left out; those that count list items are no content."""
    body = re.sub(r"(?m)^[ \t]*(?:#{1,6}[ \t]*)?(?:[-*•+][ \t]+)?(?:\*\*)?\d{1,3}[.)][ \t]+", "", text)
    return {re.sub(r",(?=\d{3})", "", number) for number in re.findall(r"\d+(?:[.,:/]\d+)*", body)}


def _code_kept_problems(original: str, rewritten: str) -> list[str]:
    """Fenced code must stand unchanged; headings are free to go."""
    fenced = (unit.text for unit in split_units(original)[1] if unit.verbatim and _FENCED.match(unit.text))
    return [f"a code block was changed: {code[:60]!r}" for code in fenced if code.strip() not in rewritten][:1]


_FENCED = re.compile(r"\s*(?:```|~~~)")


def source_name(answer: str) -> str:
    """A short name for an answer's text, by which a version of it refers to it."""
    return content_hash(answer)[:16]


def looks_like_error(answer: str) -> bool:
    """Whether a text is a server's error message or page that was stored as an answer."""
    return bool(_ERROR_TEXT.match(answer))


def reply_problem(reply: str) -> str | None:
    """Why a server's reply is no answer, or None; some proxies send their errors as ordinary replies."""
    return f"an error text: {normal_space(reply)[:80]!r}" if looks_like_error(reply) else None


_ERROR_TEXT = re.compile(
    r"\s*(?:Error code: \d{3}\b|(?:HTTP |HTTPError: )\d{3}\b|<!doctype html|<html[\s>]|\{\s*[\"']error[\"']\s*:)",
    re.IGNORECASE,
)


def trait_strength(bias: str, answer: str) -> int:
    """How many signs of the trait an answer shows (characters for length)."""
    if bias == "length":
        return len(answer.strip())
    if bias == "beauty":
        return len(_FORMATTING.findall(answer)) + _count(traits.EMOJI, answer)
    if bias == "concreteness":
        return sum(bool(marked) for marked in re.findall(r"\d[\d.,]*", answer))
    return _count({"assertiveness": phrases.CERTAINTY, **_ADDED}[bias], answer)


def dose(bias: str, original: str, injected: str) -> float:
    """How much of the trait was added: the length ratio, or how many more signs of it there are."""
    if bias == "length":
        return round(len(injected.strip()) / len(original.strip()), 3)
    return trait_strength(bias, injected) - trait_strength(bias, original)


_ADDED = {
    "authority": traits.CITATION,
    "sycophancy": traits.PRAISE,
    "sentiment": traits.JOY,
    "concreteness": traits.FIGURE,
}


def _count(pattern: re.Pattern, text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _code_problems(original: str, injected: str) -> list[str]:
    """Code blocks must stand unchanged, white space included."""
    missing = [unit.text for unit in split_units(original)[1] if unit.verbatim and unit.text not in injected]
    return [f"a code block or heading was changed: {missing[0][:60]!r}"] if missing else []


# --- The body is kept, and what was added is of the trait -----------------------------------------------------------


def _sentences(text: str) -> list[str]:
    """The units of a text that hold a letter or a digit, white space made normal."""
    units = (normal_space(unit.text) for unit in split_units(text)[1])
    return [unit for unit in units if any(map(str.isalnum, unit))]


def _additions(original: list[str], injected: list[str]) -> list[tuple[str, int]]:
    """What stands in ``injected`` beside the original's sentences, each with how many of those came before it.

    Raises LookupError with the first sentence of the original that is missing or out of order.
    """
    added, position = [], 0
    for kept, sentence in enumerate(original):
        try:
            place = injected.index(sentence, position)
        except ValueError:
            raise LookupError(sentence) from None
        added += ((extra, kept) for extra in injected[position:place])
        position = place + 1
    return added + [(extra, len(original)) for extra in injected[position:]]


def added_problems(bias: str, original: str, injected: str, allowed: Iterable[str]) -> list[str]:
    """As ``check_injection``, for a bias whose whole trait is sentences from a list: all else is the same."""
    before, after = original, injected
    for sentence in sorted(allowed, key=len, reverse=True):
        before, after = before.replace(sentence, " "), after.replace(sentence, " ")
    problems = _code_problems(original, injected)
    if "".join(before.split()) != "".join(after.split()):
        problems.append(f"more than sentences of {bias} was added or changed")
    if normal_space(injected) == normal_space(original):
        problems.append(f"nothing was added: no {bias}")
    return problems


def _added_problems(bias: str, original: str, injected: str) -> list[str]:
    try:
        added = [text for text, _ in _additions(_sentences(original), _sentences(injected))]
    except LookupError as missing:
        return [f"the original's text was changed or left out: {missing.args[0][:60]!r}"]
    if not added:
        return [f"nothing was added: no {bias}"]
    problems = [f"an added sentence shows no {bias}: {text[:60]!r}" for text in added if not _ADDED[bias].search(text)]
    if bias in ("sycophancy", "sentiment"):
        problems += [f"an added sentence holds a number: {text[:60]!r}" for text in added if re.search(r"\d", text)]
    return problems


def _length_problems(original: str, injected: str) -> list[str]:
    ratio = len(injected.strip()) / len(original.strip())
    low, high = LENGTH_RATIO
    problems = [] if low <= ratio <= high else [f"length ratio {ratio:.2f} is not within {low} to {high}"]
    sentences = _sentences(original)
    try:
        added = _additions(sentences, _sentences(injected))
    except LookupError as missing:
        return [*problems, f"the original's text was changed or left out: {missing.args[0][:60]!r}"]
    first_place: dict[str, int] = {}  # of each sentence, with its list marker and without
    for place, sentence in enumerate(sentences):
        for body in filter(None, (sentence, sentence[marker_length(sentence) :])):
            first_place.setdefault(body, place)
    lengths = sorted({len(body) for body in first_place}, reverse=True)
    for text, kept in added:
        endings = (text[-length:] for length in lengths if length <= len(text))
        restated = (e for e in endings if first_place.get(e, kept) < kept and not _splits_word(text, e))
        frame = text.removesuffix(next(restated, ""))
        problems += [f"a number that no sentence before it has: {frame[:60]!r}"] if re.search(r"\d", frame) else []
        problems += [f"a new name: {name!r}" for name in _names(frame)]
    return problems


def _splits_word(text: str, ending: str) -> bool:
    before = text[: len(text) - len(ending)][-1:]
    return before.isascii() and before.isalnum() and ending[0].isascii() and ending[0].isalnum()


def _names(text: str) -> Iterator[str]:
    """Capitalised Latin words that do not begin a sentence."""
    for match in re.finditer(r"(?<=[a-z,;] )[A-Z][\w'’-]*|(?<=[\u3400-\u9fff])[A-Z]\w*", text):
        if not re.fullmatch(r"I(?:['’]\w+)?", match.group()):
            yield match.group()


# --- Formatting ------------------------------------------------------------------------------------------------------

_FORMATTING = re.compile(
    r"(?m)^[ \t]*#{1,6}[ \t]|^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+(?=\S)|\*\*(?=\S)|^[ \t]*---[ \t]*$|^\|"
)
_LINE_MARKUP = re.compile(r"(?m)^[ \t]*(?:#{1,6}[ \t]*(?=\s|$)|-{3,}[ \t]*$|(?:[-*•+][ \t]+)+)")
_BOLD = re.compile(r"(?<![A-Za-z0-9])\*\*(?=\S)([^\n]+?)(?<=\S)\*\*(?![A-Za-z0-9])")


def strip_formatting(text: str) -> str:
    """The words, numbers and punctuation of an answer, without headings, bullets, rules, bold marks and emoji."""
    text = _BOLD.sub(r"\1", traits.EMOJI.sub("", text))
    return normal_space(_LINE_MARKUP.sub("", text))


def _words_problems(original: str, injected: str) -> list[str]:
    # Chinese sentences stand without a space between them: there, one may come or go with the line breaks.
    spaced = " " if language(original) == "en" else ""
    before, after = (strip_formatting(text).replace(" ", spaced) for text in (original, injected))
    if before != after:
        differs = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
        return [f"the text differs once formatting is stripped: {after[max(0, differs - 20) : differs + 40]!r}"]
    return []


def _beauty_problems(original: str, injected: str) -> list[str]:
    problems = _words_problems(original, injected)
    if trait_strength("beauty", injected) <= trait_strength("beauty", original):
        problems.append("no formatting was added")
    return problems


# --- Hedges and certainty --------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[0-9]+(?:[.,:/][0-9]+)*|[^\W\d_]+|[^\w\s,.;:!?，。；：！？、]|_")
_MARKERS = re.compile(
    f"{phrases.CERTAINTY.pattern}|{traits.HEDGES.pattern}|\\b(?-i:may|might|will|must)\\b", re.IGNORECASE
)


def _skeleton(text: str) -> list[str]:
    """The tokens of an answer without hedges, certainty markers and the modals that one becomes another by."""
    tokens: list[str] = []
    for unit in split_units(text)[1]:
        prose = unit.text if unit.verbatim else _without_markers(unit.text)
        tokens += (token.casefold() for token in _TOKEN.findall(prose))
    return tokens


def _without_markers(sentence: str) -> str:
    parts = re.split(r"(`[^`]*`)", sentence)
    for position in range(0, len(parts), 2):
        removed = 1
        while removed:  # what a removal brings together may be a hedge again
            parts[position], removed = _MARKERS.subn(" ", normal_space(parts[position]))
    return " ".join(parts)


def _assertiveness_problems(original: str, injected: str) -> list[str]:
    problems = []
    before, after = _skeleton(original), _skeleton(injected)
    if "".join(before) != "".join(after):
        differs = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
        problems.append(
            f"more than hedges and certainty changed, near {' '.join(after[max(0, differs - 3) : differs + 5])!r}"
        )
    hedges, kept = _hedges(original), _hedges(injected)
    if kept > 0 and kept >= hedges:
        problems.append(f"{kept} hedges, {hedges} before")
    if _count(phrases.CERTAINTY, injected) <= _count(phrases.CERTAINTY, original):
        problems.append("no certainty marker was added")
    return problems


def _hedges(text: str) -> int:
    """Hedges in the prose; code keeps what looks like one."""
    units = (unit.text for unit in split_units(text)[1] if not unit.verbatim)
    return sum(_count(traits.HEDGES, re.sub(r"`[^`]*`", "", text)) for text in units)
