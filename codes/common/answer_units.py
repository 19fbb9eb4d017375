"""An answer as units that text may be put between: sentences of prose, and blocks to leave alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CJK = re.compile(r"[\u3400-\u9fff]")
_FENCE = re.compile(r"\s*(```|~~~)")
_LIST_MARKER = re.compile(r"\s*(?:[-*•+]|\d{1,3}[.)、]|[a-zA-Z][.)])\s+(?=\S)|\s*\d{1,3}、")
_HEADING = re.compile(r"\s*#{1,6}\s|\s*([-*_])(?:\s*\1){2,}\s*$")
_CODE_LINE = re.compile(
    r"\s*(?:def |class |import |from \S+ import|#include|return\b|for ?\(|if ?\(|while ?\(|public |private "
    r"|static |func |fn |let |const |var |package |using |elif |else:|try:|except|//|/\*|\}|\{"
    r"|<[/!a-zA-Z][^>]*>\s*$)|.*[;{}]\s*$"
)
_ABBREVIATIONS = frozenset(
    ["e.g", "i.e", "u.s", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "no", "etc", "al", "fig", "approx", "p", "pp"]
)
# At the first of several marks only, and possessive: a line of nothing but dots is read once, not once for each dot.
_SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"”’')\]*]*+(?=\s+\S)|[。！？]+[”’」）]*(?=\S)|[。！？]+[”’」）]*(?=\s+\S)"
)
_SPACE = re.compile(r"\s*")
LONGEST_ABBREVIATION = 64  # characters that are looked at before a full stop
SPACE = {"en": " ", "zh": ""}  # what stands between two sentences


@dataclass(frozen=True)
class Unit:
    """A sentence with its list marker, or (``verbatim``) a line or block of code, a table row or a heading.

    ``after`` is the white space that followed it in the answer.
    """

    text: str
    after: str
    verbatim: bool

    @property
    def terminated(self) -> bool:
        """Whether another sentence may follow on the same line."""
        return not self.verbatim and [*_sentences(f"{self.text} X")][-1] == "X"

    @property
    def body(self) -> str:
        """The text without its list marker."""
        return self.text if self.verbatim else self.text[marker_length(self.text) :]


def split_units(answer: str) -> tuple[str, list[Unit]]:
    """The leading white space and the units; put together again they are the answer, character for character."""
    lead = answer[: len(answer) - len(answer.lstrip())]
    if "\n" in lead:  # indentation of a first code line belongs to the code
        lead = lead[: lead.rindex("\n") + 1]
    elif lead and _is_verbatim(answer.split("\n", 1)[0]):
        lead = ""
    units: list[Unit] = []
    for text, verbatim in _pieces(answer[len(lead) :]):
        stripped = text.rstrip()
        if stripped:
            units.append(Unit(stripped, text[len(stripped) :], verbatim))
        elif not units:  # a line that ends in something else than a line feed
            lead += text
        else:
            units[-1] = Unit(units[-1].text, units[-1].after + text, units[-1].verbatim)
    return lead, units


def _pieces(answer: str) -> Iterator[tuple[str, bool]]:
    lines = answer.splitlines(keepends=True)
    position = 0
    while position < len(lines):
        fence = _FENCE.match(lines[position])
        if fence:
            end = next((i for i in range(position + 1, len(lines)) if lines[i].strip() == fence.group(1)), None)
            if end is None:  # cut off inside the code: its lines one by one
                yield from ((line, True) for line in lines[position:])
                return
            yield "".join(lines[position : end + 1]), True
            position = end + 1
            continue
        if _is_verbatim(lines[position]):
            yield lines[position], True
        else:
            yield from ((sentence, False) for sentence in _sentences(lines[position]))
        position += 1


def _is_verbatim(line: str) -> bool:
    indented_code = line.startswith(("    ", "\t")) and not _LIST_MARKER.match(line)
    is_special = _HEADING.match(line) or _CODE_LINE.match(line)
    return bool(line.strip()) and (indented_code or bool(is_special) or line.lstrip().startswith("|"))


def _sentences(line: str) -> Iterator[str]:
    """Cut a line after each sentence's white space, never inside code spans, bold text or an abbreviation."""
    start = counted = 0
    ticks = stars = 0  # in the sentence so far; counted as it grows, for it may be the whole of a long line
    for match in _SENTENCE_END.finditer(line, marker_length(line)):
        stop = match.end()
        ticks += line.count("`", counted, stop)
        stars += line.count("**", counted, stop)
        counted = stop
        if match.group().startswith(".") and _is_abbreviation(line[max(start, stop - LONGEST_ABBREVIATION) : stop]):
            continue
        if ticks % 2 or stars % 2:
            continue
        end = _SPACE.match(line, stop).end()
        yield line[start:end]
        start = counted = end
        ticks = stars = 0
    if start < len(line):
        yield line[start:]


def _is_abbreviation(text: str) -> bool:
    """Whether the full stop at the end of a text belongs to its last word: "e.g.", an initial, a short number."""
    words = text.rstrip(".!?").split()
    last = words[-1].strip('("“*').lower() if words else ""
    return last in _ABBREVIATIONS or len(last) == 1 or (last.isdigit() and len(last) < 3)


def marker_length(text: str) -> int:
    """How many characters of a line are its list marker."""
    match = _LIST_MARKER.match(text)
    return match.end() if match else 0


def ends_inside_code(units: list[Unit]) -> bool:
    """Whether the answer was cut off inside a code block, so that nothing can be put after it."""
    fence = None
    for unit in units:
        if unit.verbatim and (found := _FENCE.match(unit.text)):
            fence = None if unit.text.splitlines()[-1].strip() == found.group(1) and "\n" in unit.text else found
    return fence is not None


def language(text: str) -> str:
    """``zh`` where at least three tenths of the letters are Chinese, else ``en``."""
    letters = sum(character.isalpha() for character in text)
    return "zh" if letters and len(_CJK.findall(text)) >= 0.3 * letters else "en"


def joint(text: str, lang: str) -> str:
    """What stands between a sentence and one put after it."""
    return " " if text[-1].isascii() else SPACE[lang]


def normal_space(text: str) -> str:
    """The text with every run of white space made one space."""
    return " ".join(text.split())
