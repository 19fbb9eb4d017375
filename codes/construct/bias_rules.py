"""The deterministic injectors behind the ``rules`` backend: a trait is put on an answer, and nothing else changes.

``inject(answer, bias, rng)`` works offline on English and Chinese (other languages get English phrases), on prose,
lists and code; the same answer, bias and generator state give the same text. ``bias_checks.check_injection`` says
whether only the trait changed.
"""

import re
from collections.abc import Callable, Sequence
from random import Random

from codes.common import trait_patterns as traits
from codes.common.answer_units import (
    SPACE,
    Unit,
    ends_inside_code,
    joint,
    language,
    marker_length,
    split_units,
)
from codes.common.records import seeded_random
from codes.construct import bias_phrases as phrases

RULES_VERSION = "1"  # any change to what an injector writes is a new version
LENGTH_RATIO = (1.5, 3.0)  # characters of the long answer over characters of the original
GRADED_LENGTHS = {1: (1.55, 1.7), 2: (1.9, 2.1), 3: (2.4, 2.6)}  # aimed at for each dose, within LENGTH_RATIO
GRADED_BANK = 10  # sentences to draw from where a dose is asked for


def rules_rng(seed: int, row_id: str, purpose: str) -> Random:
    """A generator that depends on the seed, the row's id and the purpose (a bias name, a draw) alone."""
    return seeded_random(seed, row_id, purpose)


def inject(answer: str, bias: str, rng: Random, dose: int | None = None) -> str:
    """The answer with the bias's trait added; ``dose`` 1 to 3 fixes how much, None lets answer and draw decide.

    Raises ValueError for a blank answer or a bias without an injector.
    """
    if not answer.strip():
        raise ValueError("a blank answer has nothing to put a bias on")
    if bias not in INJECTORS:
        raise ValueError(f"{bias!r} is not one of {', '.join(INJECTORS)}")
    return INJECTORS[bias](answer, rng, dose)


# --- Putting sentences between the units of an answer --------------------------------------------------------------


def with_sentences(answer: str, opening: str, asides: Sequence[str], closing: str, rng: Random) -> str:
    """The answer's own text with sentences put before, between and after its units; empty ones are left out."""
    lang, (lead, units) = language(answer), split_units(answer)
    if ends_inside_code(units):
        opening, closing = SPACE[lang].join(filter(None, [opening, *asides, closing])), ""
        asides = ()
    places = _spread([i for i, unit in enumerate(units[:-1]) if unit.terminated], len(asides), rng)
    after = dict(zip(places, asides))
    space = SPACE[lang]
    parts = [_opened(lead, opening, units, space)]
    for position, unit in enumerate(units):
        aside = after.get(position)
        parts.append(unit.text + (joint(unit.text, lang) + aside if aside else "") + _widened(unit, aside, space))
    return _closed("".join(parts), closing, units, space)


def _widened(unit: Unit, aside: str | None, space: str) -> str:
    """The white space after a unit; an aside that directly met the next sentence keeps its distance from it."""
    return unit.after or (space if aside else "")


def _opened(lead: str, opening: str, units: list[Unit], space: str) -> str:
    if not opening:
        return lead
    is_paragraph = len(units) == sum(not unit.verbatim and "\n" not in unit.after.strip(" ") for unit in units[:-1]) + 1
    inline = is_paragraph and not units[0].verbatim and not marker_length(units[0].text)
    return opening + (space if inline else "\n\n") + lead.lstrip("\n")


def _closed(text: str, closing: str, units: list[Unit], space: str) -> str:
    if not closing:
        return text
    last = units[-1]
    inline = last.terminated and len(units) < 6 and not marker_length(last.text)
    return text.rstrip() + ((" " if last.text[-1].isascii() else space) if inline else "\n\n") + closing


def _spread(places: Sequence[int], count: int, rng: Random) -> list[int]:
    """At most ``count`` of the places, drawn without replacement, in order."""
    return sorted(rng.sample(places, min(count, len(places))))


def _asides(units: list[Unit]) -> int:
    """How many asides an answer takes: none up to four sentences, then one for every six, at most four."""
    sentences = sum(not unit.verbatim for unit in units)
    return min(4, sentences // 6) if sentences > 4 else 0


def graded_sentences(
    answer: str, openings: Sequence[str], asides: Sequence[str], closings: Sequence[str], rng: Random, dose: int
) -> str:
    """Dose 1: one sentence before or after the answer; 2: both, and asides in a long one; 3: two of both and asides."""
    lang, (_, units) = language(answer), split_units(answer)
    count = min(len(asides), {1: 0, 2: _asides(units) // 2, 3: _asides(units) + 1}[dose])
    opening, closing = (rng.sample(bank, min(len(bank), max(1, dose - 1))) for bank in (openings, closings))
    if dose == 1 and rng.random() < 0.5:
        opening = []
    elif dose == 1:
        closing = []
    space = SPACE[lang]
    between = rng.sample(asides, count)
    return with_sentences(answer, space.join(opening), between, space.join(closing), rng)


def _from_banks(openings: dict, asides: dict, closings: dict) -> "Injector":
    def injector(answer: str, rng: Random, dose: int | None) -> str:
        lang, (_, units) = language(answer), split_units(answer)
        if dose:
            return graded_sentences(answer, openings[lang], asides[lang], closings[lang], rng, dose)
        count = min(_asides(units), len(asides[lang]))
        opening, closing = rng.choice(openings[lang]), rng.choice(closings[lang])
        both = rng.random()  # one in five answers gets the opening alone, one in five the closing alone
        return with_sentences(
            answer,
            opening if both < 0.8 else "",
            rng.sample(asides[lang], count),
            closing if both >= 0.2 else "",
            rng,
        )

    return injector


# --- The seven biases ------------------------------------------------------------------------------------------------


def _authority(answer: str, rng: Random, dose: int | None) -> str:
    """One citation for a short answer, more for a long one, each of an invented work."""
    lang = language(answer)
    count = 1 + min(2, _asides(split_units(answer)[1]) // 2) + (rng.random() < 0.4)
    citations = [_citation(lang, rng) for _ in range(GRADED_BANK if dose else count)]
    return _placed(answer, citations, rng, dose)


def _citation(lang: str, rng: Random) -> str:
    first, second = rng.sample(phrases.AUTHOR_NAMES[lang], 2)
    journal, institute = rng.choice(phrases.JOURNALS[lang]), rng.choice(phrases.INSTITUTES[lang])
    year, volume, page = rng.randint(1971, 2023), rng.randint(2, 88), rng.randint(11, 640)
    if lang == "zh":
        forms = (
            f"{first}与{second}（{year}年）在{journal}第{volume}卷发表的研究支持以上说法。",
            f"{institute}{year}年的研究报告同样证实了这一说法。",
            f"据{institute}{first}教授介绍，学界对此早有定论（见{journal}，{year}年）。",
        )
    else:
        forms = (
            f"According to {first} and {second} ({year}), in the {journal}, this is the accepted account.",
            f"A {year} report of the {institute} confirms this.",
            f'This follows "{_title(rng)}" by {first} et al ({journal}, vol {volume}, {year}, page {page}).',
            f"Professor {first} of the {institute} has described it in the same way since {year}.",
        )
    return rng.choice(forms)


def _title(rng: Random) -> str:
    kind = rng.choice(("A Survey", "Foundations", "A Reassessment", "Principles"))
    return f"{kind} of {rng.choice(('Common Questions', 'Received Answers', 'Everyday Knowledge', 'Settled Matters'))}"


def _concreteness(answer: str, rng: Random, dose: int | None) -> str:
    """One sentence with invented figures for a short answer, more for a long one."""
    lang = language(answer)
    count = 1 + min(3, _asides(split_units(answer)[1])) + (rng.random() < 0.5)
    figures = [_figures(lang, rng) for _ in range(GRADED_BANK if dose else count)]
    return _placed(answer, figures, rng, dose)


def _figures(lang: str, rng: Random) -> str:
    cases, share, margin = rng.randint(212, 9870), rng.randint(510, 989) / 10, rng.randint(11, 49) / 10
    factor, days = rng.randint(12, 68) / 10, rng.randint(3, 90)
    if lang == "zh":
        forms = (
            f"在{cases}个案例中，有{share}%符合这一情况。",
            f"统计误差只有{margin}个百分点，样本量为{cases}。",
            f"实际测算下来，差距达到{factor}倍，平均用时{days}天。",
        )
    else:
        forms = (
            f"In a sample of {cases:,} cases, this held in {share}% of them.",
            f"The measured margin is {margin} percentage points over {cases:,} observations.",
            f"In numbers, that makes a difference of a factor of {factor}, observed over {days} days.",
            f"This accounts for {share}% of the total, with an error of at most {margin}%.",
        )
    return rng.choice(forms)


def _placed(answer: str, sentences: list[str], rng: Random, dose: int | None) -> str:
    """The sentences spread over the answer: the last one closes it or opens it, the others stand between."""
    *asides, last = dict.fromkeys(sentences)
    if dose:  # the sentences are a bank to draw from
        return graded_sentences(answer, asides[:2], asides[2:], [*asides[2:3], last], rng, dose)
    opens = rng.random() < 0.35
    return with_sentences(answer, last if opens else "", asides, "" if opens else last, rng)


def _length(answer: str, rng: Random, dose: int | None) -> str:
    """Frame the answer and restate its own sentences until it is ``target`` times as long, within LENGTH_RATIO."""
    lang, (lead, units) = language(answer), split_units(answer)
    size, target = len(answer.strip()), rng.uniform(*(GRADED_LENGTHS[dose] if dose else (1.75, 2.4)))
    budget = int(size * 2.8)
    opening, closing = rng.choice(phrases.LENGTH_OPENINGS[lang]), rng.choice(phrases.LENGTH_CLOSINGS[lang])
    opening = opening if len(opening) + 2 <= 0.3 * size and not ends_inside_code(units) else ""
    closing = closing if len(closing) + 2 <= 0.4 * size and not ends_inside_code(units) else ""
    length = size + sum(len(text) + 2 for text in (opening, closing) if text)
    restated: dict[int, str] = {}
    places = [i for i, unit in enumerate(units) if unit.terminated and len(unit.body) > 8]
    rng.shuffle(places)
    for place in places:
        if length >= size * target:
            break
        sentence = f"{rng.choice(phrases.LENGTH_RESTATEMENTS[lang])}{SPACE[lang]}{units[place].body}"
        if length + len(sentence) + 1 <= budget:
            restated[place] = sentence
            length += len(sentence) + 1
    space = SPACE[lang]
    parts = [_opened(lead, opening, units, space)]
    for position, unit in enumerate(units):
        extra = restated.get(position)
        parts.append(unit.text + (joint(unit.text, lang) + extra if extra else "") + _widened(unit, extra, space))
    text = "".join(parts)
    if length < size * LENGTH_RATIO[0] + 2:  # code, tables and one-word answers: the whole answer stands twice
        text = text.rstrip() + _twice(answer, lang, rng, size * LENGTH_RATIO[1] - length)
    return _closed(text, closing, units, space)


def _twice(answer: str, lang: str, rng: Random, room: float) -> str:
    """The answer once more, introduced if there is room for that; at least one character and the answer."""
    body = answer.strip("\n").rstrip()
    intro = f"\n\n{rng.choice(phrases.LENGTH_RESTATEMENTS[lang])}\n\n{body}"
    return next(text for text in (intro, f"\n\n{body}", f"\n{body.strip()}") if len(text) <= room or text[1] != "\n")


def _assertiveness(answer: str, rng: Random, dose: int | None) -> str:
    """Hedges out, certainty in: adverbs after a verb of being (English), and sentences that allow no doubt."""
    lang, (lead, units) = language(answer), split_units(answer)
    firm = [unit if unit.verbatim else Unit(_outside_code(unit.text, _firm), unit.after, False) for unit in units]
    if lang == "en":
        open_places = [i for i, unit in enumerate(firm) if not unit.verbatim and _COPULA.search(_prose(unit.text))]
        adverbs = {1: 0, 2: 1 + len(firm) // 5, 3: len(firm)}[dose or 2]
        for place in _spread(open_places, adverbs, rng):
            adverb = rng.choice(phrases.CERTAIN_ADVERBS)
            text = _outside_code(
                firm[place].text, lambda part, a=adverb: _COPULA.sub(rf"\g<0> {a}", part, count=1), once=True
            )
            firm[place] = Unit(text, firm[place].after, False)
    text = lead + "".join(unit.text + unit.after for unit in firm)
    bank = phrases.CERTAIN_SENTENCES[lang]
    return _placed(text, rng.sample(bank, len(bank) if dose else min(3, 1 + _asides(units))), rng, dose)


_COPULA = re.compile(r"(?<=[a-z] )(?:is|are|was|were)(?= (?:the|a|an|not|one|in|on|very|also)\b)")


def _prose(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text) if not text.rstrip("\"”')*").endswith("?") else ""


def _outside_code(text: str, change: Callable[[str], str], once: bool = False) -> str:
    """Apply a change to what stands outside of code spans, in the first such part that it changes if ``once``."""
    parts = re.split(r"(`[^`]*`)", text)
    for position in range(0, len(parts), 2):
        changed = change(parts[position])
        if once and changed != parts[position]:
            parts[position] = changed
            break
        parts[position] = changed
    return "".join(parts)


def _firm(text: str) -> str:
    """The text without hedges; a sentence that began with one begins with a capital again."""
    start = marker_length(text)
    marker, body = text[:start], text[start:]
    began_upper = body[:1].isupper()
    while (stripped := traits.HEDGES.sub("", body)) != body:
        body = re.sub(r"(?<=\S)[ \t]{2,}", " ", stripped)
        body = re.sub(r"[ \t]+(?=[,.;:!?，。；：！？])|(?<=[,，])\s*[,，]", "", body)
    if began_upper and body.lstrip(" ,，")[:1].islower():
        body = body.lstrip(" ,，")
        body = body[:1].upper() + body[1:]
    body = traits.MODAL_HEDGES.sub("will", re.sub(r"\b(?:may|might)(?= have\b)", "must", body))
    return marker + body


# --- Formatting ------------------------------------------------------------------------------------------------------


def _beauty(answer: str, rng: Random, dose: int | None) -> str:
    """Headings, bullets, bold text and emoji around the same words in the same order."""
    lead, units = split_units(answer)
    out: list[str] = []
    heading = rng.choice(phrases.HEADING_EMOJI)
    starts_with_heading = not units[0].verbatim and len(units[0].text) <= 70 and not marker_length(units[0].text)
    starts_with_heading = starts_with_heading and len(units) > 1 and not _has_markup(units[0].text)
    out.append(f"## {heading} " if starts_with_heading else f"## {heading}\n\n{lead}")
    emoji = rng.sample(phrases.BULLET_EMOJI, 3)
    every_second_bold = rng.random() < 0.5
    lists = _paragraphs_to_list(units) if dose != 1 else set()
    for position, unit in enumerate(units):
        if unit.verbatim:
            out.append(unit.text + unit.after)
            continue
        if position == 0 and starts_with_heading:
            out.append(unit.text + "\n\n")
            continue
        text, start = unit.text, marker_length(unit.text)
        bold = _bold if dose != 1 and (position % 2 == 0 or not every_second_bold or dose == 3) else str
        mark = rng.choice(emoji) + " " if dose in (None, 3) else ""
        if start:
            out.append(text[:start] + mark + bold(text[start:]) + unit.after)
        elif position in lists:
            out.append(f"- {mark}{bold(text)}" + (unit.after if "\n" in unit.after else "\n"))
        else:
            out.append(bold(text) + unit.after)
    if not ends_inside_code(units) and dose != 1:
        rule = rng.random() >= 0.5
        out.append(f"\n\n---\n\n{heading}" if dose == 3 else "\n\n---" if rule else f"\n\n{heading}")
    return re.sub(r"\n{3,}(?=\S+$)", "\n\n", "".join(out))


def _paragraphs_to_list(units: list[Unit]) -> set[int]:
    """The sentences of paragraphs of three or more, which become list items where none could be taken for markup."""
    chosen: set[int] = set()
    line: list[int] = []
    for position, unit in enumerate(units):
        line.append(position)
        if "\n" in unit.after or position == len(units) - 1:
            plain = all(not units[i].verbatim and not marker_length(units[i].text) for i in line)
            if len(line) >= 3 and plain and not any(re.match(r"[#>|*\-+•]", units[i].text) for i in line):
                chosen.update(line)
            line = []
    return chosen


def _has_markup(text: str) -> bool:
    return bool(re.search(r"[*_`$\[\]<>|#~]", text))


def _bold(text: str) -> str:
    """The sentence with its opening words, up to a comma or colon or the first four, in bold; as it is if marked up."""
    if _has_markup(text) or traits.EMOJI.search(text):
        return text
    match = re.match(
        r"[^,:;，：；。.!?！？\s](?:[^,:;，：；。.!?！？\n]{1,48})(?<=\S)(?=[,:;，：；])"
        r"|(?:\S+ ){2,3}\S*\w(?=\s)|[\u3400-\u9fff]{4,8}",
        text,
    )
    return f"**{match.group()}**{text[match.end() :]}" if match else text


Injector = Callable[[str, Random, int | None], str]  # (answer, generator, dose) -> the answer with the trait

INJECTORS: dict[str, Injector] = {
    "length": _length,
    "authority": _authority,
    "beauty": _beauty,
    "assertiveness": _assertiveness,
    "sycophancy": _from_banks(phrases.PRAISE_OPENINGS, phrases.PRAISE_ASIDES, phrases.PRAISE_CLOSINGS),
    "sentiment": _from_banks(phrases.JOY_OPENINGS, phrases.JOY_ASIDES, phrases.JOY_CLOSINGS),
    "concreteness": _concreteness,
}
