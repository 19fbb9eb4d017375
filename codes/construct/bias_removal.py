"""Taking a trait off a good answer by rules, where that is mechanical, and light polishing; content is never touched.

Formatting, certainty markers, a compliment that opens the answer, and exclamation marks can be taken away by rules.
Padding, citations and figures cannot: telling them from content needs a reader. Those answers stay as they are.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from codes.common import trait_patterns as traits
from codes.common.answer_units import Unit, marker_length, split_units
from codes.construct import bias_phrases as phrases
from codes.construct.bias_checks import strip_formatting, trait_strength

REMOVAL_VERSION = "1"  # any change to what a rule below writes is a new version

CANNOT_REMOVE = "rules cannot tell this trait from content, so the better answer is unchanged"
NOTHING_TO_REMOVE = "the better answer shows nothing of this trait that rules can take away"


def remove_trait(answer: str, bias: str) -> tuple[str, str | None]:
    """The answer without the bias's trait, and None; or the answer itself and the reason why it is unchanged."""
    if bias not in REMOVERS:
        return answer, CANNOT_REMOVE
    plain = REMOVERS[bias](answer)
    nothing_visible = bias == "beauty" and trait_strength(bias, plain) >= trait_strength(bias, answer)
    if not plain.strip() or plain == answer or nothing_visible:
        return answer, NOTHING_TO_REMOVE
    return plain, None


_LINE_START = re.compile(r"^([ \t]*)(?:#{1,6}[ \t]+|[-*•+][ \t]+(?=\S))")
_RULE = re.compile(r"^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_STRONG = re.compile(r"(?<![A-Za-z0-9*])\*\*(?=\S)([^\n*]+?)(?<=\S)\*\*(?![A-Za-z0-9*])")


def _without_formatting(answer: str) -> str:
    """Headings, bullets, rules, bold marks and emoji out; numbered lists, tables and code stay as they are."""
    out, fence = [], None
    for line in answer.split("\n"):
        mark = re.match(r"\s*(```|~~~)", line)
        if fence or mark:
            fence = None if fence and line.strip() == fence else fence or mark.group(1)
            out.append(line)
        elif line.startswith(("    ", "\t")) and not _LINE_START.match(line):
            out.append(line)  # indented code
        elif not _RULE.match(line):
            plain = _outside_spans(line, lambda part: _STRONG.sub(r"\1", traits.EMOJI.sub("", part)))
            plain = _LINE_START.sub(r"\1", plain)
            if plain.strip() or not line.strip():
                out.append(re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", plain).rstrip() if plain != line else line)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")
    return text if strip_formatting(text) == strip_formatting(answer) else answer


_ADVERBS = r"definitely|certainly|undoubtedly|unquestionably|undeniably|indisputably|obviously|without (?:a|any) doubt"
_OPENING_ADVERB = re.compile(rf"^(?:{_ADVERBS}|of course|no doubt|clearly),[ \t]+(\S)", re.IGNORECASE)
_AUXILIARY = re.compile(
    rf"\b(is|are|was|were|will|would|can|could|has|have|had|does|do|should)[ \t]+(?:{_ADVERBS})[ \t]+(?=\w)",
    re.IGNORECASE,
)
_NO_DOUBT_THAT = re.compile(r"^There (?:is|can be) no doubt that[ \t]+(\S)", re.IGNORECASE)


def _without_certainty(answer: str) -> str:
    sentences = {sentence for bank in phrases.CERTAIN_SENTENCES.values() for sentence in bank}
    return _each_sentence(answer, lambda body: "" if body in sentences else _milder(body))


def _milder(body: str) -> str:
    for opening in (_NO_DOUBT_THAT, _OPENING_ADVERB):
        body = opening.sub(lambda match: match.group(1).upper(), body)
    return _outside_spans(body, lambda part: _AUXILIARY.sub(r"\1 ", part))


_COMPLIMENT = re.compile(
    r"(?:(?:what an?|that(?:'s| is) an?|this is an?|you(?:'ve| have) asked an?)[ \t]+)?(?:\w+[ \t]+){0,2}"
    r"(?:great|good|excellent|wonderful|thoughtful|fantastic|interesting|insightful|brilliant)[ \t]+question[.!]+"
    r"|(?:thank you|thanks) for (?:asking|your question|this question)[.!]+"
    r"|(?:您|你)?(?:提的|问的)?(?:这个)?(?:真是(?:一)?个?)?好问题[。！]+|(?:您|你)?这个问题(?:问得)?(?:真|很|太)好了?[。！]+",
    re.IGNORECASE,
)


def _sentences_of(*banks: Mapping[str, Sequence[str]]) -> set[str]:
    """Every sentence of phrase banks by language."""
    return {sentence for bank in banks for sentences in bank.values() for sentence in sentences}


def _without_compliments(answer: str) -> str:
    """Sentences that do nothing but praise the question, or that our own rules would add."""
    own = _sentences_of(phrases.PRAISE_OPENINGS, phrases.PRAISE_ASIDES, phrases.PRAISE_CLOSINGS)
    return _each_sentence(answer, lambda body: "" if body in own or _COMPLIMENT.fullmatch(body) else body)


_EXCITED_END = re.compile(r"(?<=[A-Za-z\"”’)\]]{2})!+(?=[\"”’)\]]*$)")


def _without_excitement(answer: str) -> str:
    """Exclamation marks that end sentences become full stops, emoji go, and so do sentences our own rules would add."""
    own = _sentences_of(phrases.JOY_OPENINGS, phrases.JOY_ASIDES, phrases.JOY_CLOSINGS)

    def sober(body: str) -> str:
        if body in own:
            return ""
        body = _EXCITED_END.sub(".", body.replace("！", "。"))
        return _outside_spans(body, lambda part: re.sub(r"[ \t]*(?:" + traits.EMOJI.pattern + ")+", "", part))

    return _each_sentence(answer, sober)


REMOVERS: dict[str, Callable[[str], str]] = {
    "beauty": _without_formatting,
    "assertiveness": _without_certainty,
    "sycophancy": _without_compliments,
    "sentiment": _without_excitement,
}


# --- Polishing -------------------------------------------------------------------------------------------------------

_CONTRACTIONS = {
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "weren't": "were not",
    "can't": "cannot",
    "couldn't": "could not",
    "won't": "will not",
    "wouldn't": "would not",
    "shouldn't": "should not",
    "haven't": "have not",
    "hasn't": "has not",
    "it's": "it is",
    "that's": "that is",
    "there's": "there is",
    "you're": "you are",
    "they're": "they are",
    "we're": "we are",
    "you'll": "you will",
    "they'll": "they will",
}
_CONTRACTION = re.compile(
    r"\b(?:"
    + "|".join(_CONTRACTIONS).replace("'", "['’]")
    + r")\b(?! (?:been|got|you|we|they|it|he|she|I|this|that|there)\b)",
    re.IGNORECASE,
)
_FILLER = re.compile(r"(?<=[a-z,] )(?<![Nn]ot )(?<!n't )(?:basically|actually|really) (?=[a-z])")


def polish(answer: str) -> str | None:
    """The answer with contractions written out, fillers and stray white space removed; None where nothing changes."""
    polished = _each_sentence(answer, lambda body: _outside_spans(body, _tidied))
    return None if polished == answer else polished


def _tidied(text: str) -> str:
    return _FILLER.sub("", _CONTRACTION.sub(_written_out, re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", text)))


def _written_out(match: re.Match) -> str:
    full = _CONTRACTIONS[match.group().lower().replace("’", "'")]
    return full[0].upper() + full[1:] if match.group()[0].isupper() else full


# --- What the rules share --------------------------------------------------------------------------------------------


def _each_sentence(answer: str, change: Callable[[str], str]) -> str:
    """The answer with every sentence of prose changed; one that becomes empty goes with its white space."""
    lead, units = split_units(answer)
    kept: list[Unit] = []
    for unit in units:
        if unit.verbatim:
            kept.append(unit)
            continue
        start = marker_length(unit.text)
        body = change(unit.text[start:])
        if body.strip():
            kept.append(Unit(unit.text[:start] + body, unit.after, False))
        elif kept and "\n" in unit.after and "\n" not in kept[-1].after:
            kept[-1] = Unit(kept[-1].text, unit.after, kept[-1].verbatim)
    text = lead + "".join(unit.text + unit.after for unit in kept)
    return text if answer[-1:].isspace() else text.rstrip()


def _outside_spans(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to what stands outside of code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if position % 2 else change(part) for position, part in enumerate(parts))
