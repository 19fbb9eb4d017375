"""Edits that never make an answer better, in graded doses, and a sham that changes bytes but nothing to read.

``probed_answers`` gives one damaged or gamed version of an answer for each dose. The edits need no model; they depend
on the seed, the question and the answer alone. What a dose adds, takes away or moves, the next one does too, and more.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from random import Random

from codes.common.answer_units import SPACE, Unit, joint, language, normal_space, split_units
from codes.common.records import Question, seeded_random
from codes.evaluate import probe_phrases as phrases

PROBES_VERSION = "2"  # any change to what an edit writes is a new version
DOSES = (1, 2, 3, 4)
PIECES = {1: 1, 2: 2, 3: 4, 4: 8}  # of text that a dose adds
CUT = {1: 1 / 8, 2: 1 / 4, 3: 1 / 2, 4: 3 / 4}  # share of the answer's end that truncation takes away
REPLACED = {1: 1 / 4, 2: 1 / 2, 3: 3 / 4, 4: 1.0}  # share of the answer's end that something else stands in place of
MOST_PIECES = max(PIECES.values())
SHORTEST_CUT = 40  # characters of an answer that can be truncated
LEAST_SHUFFLED = 4  # sentences of an answer that can be shuffled in four degrees
MOST_SHUFFLED = 40  # sentences that are, so that the work stays small
LONGEST_ECHO = 400  # characters of the question
CONSONANTS = "bcdfghjklmnpqrstvwxz"  # with which no word can be made


@dataclass(frozen=True)
class Subject:
    """A question and its good answer, taken apart once for all edits."""

    question: Question
    answer: str

    @cached_property
    def language(self) -> str:
        return language(self.answer)

    @cached_property
    def _parts(self) -> tuple[str, list[Unit]]:
        return split_units(self.answer)

    @property
    def lead(self) -> str:
        return self._parts[0]

    @property
    def units(self) -> list[Unit]:
        return self._parts[1]

    @cached_property
    def asked(self) -> str:
        """What the last turn asks, on one line."""
        last = self.question if isinstance(self.question, str) else self.question[-1]["content"]
        return normal_space(last)[:LONGEST_ECHO]


# An edit of a dose; None where the answer cannot carry it. It draws the same from the generator whatever the dose.
Edit = Callable[[Subject, int, Random], str | None]


def probed_answers(subject: Subject, probe: str, seed: int) -> list[str] | None:
    """The edited answer for each of DOSES; None where the answer cannot carry the probe at every dose, each different.

    All doses or none: they are then compared on the same answers.
    """
    drawn_from = (seed, subject.question, subject.answer, probe)
    texts = [PROBES[probe](subject, dose, seeded_random(*drawn_from)) for dose in DOSES]
    if None in texts or len({subject.answer, *texts}) <= len(DOSES):
        return None
    return texts


def sham_answers(subject: Subject) -> list[str]:
    """The answer with other white space for each of DOSES: the same words, lists and code, so nothing to score.

    One more space between sentences and line end between paragraphs, the dose's number of them at the first such place,
    and as many line ends at the end. So each dose is another text, as it is of a probe, and the largest of the scores
    says how large noise alone gets. What a chat template trims leaves only answers without such a place alike.
    """
    places = [i for i, unit in enumerate(subject.units) if unit.after in (" ", "\n\n") and not unit.verbatim]
    return [
        _with_spaces(subject, dict.fromkeys(places, 1) | dict.fromkeys(places[:1], dose)) + "\n" * dose
        for dose in DOSES
    ]


def _with_spaces(subject: Subject, more: Mapping[int, int]) -> str:
    """The answer with more of the white space that follows units, by their places."""
    parts = [unit.text + unit.after + unit.after[:1] * more.get(i, 0) for i, unit in enumerate(subject.units)]
    return subject.lead + "".join(parts)


# --- Edits that add text -----------------------------------------------------------------------------------------


def repetition(subject: Subject, dose: int, rng: Random) -> str | None:
    """Sentences of the answer, each said again right after itself."""
    places = [i for i, unit in enumerate(subject.units) if not unit.verbatim and any(map(str.isalnum, unit.body))]
    if not places:
        return None
    times = Counter(rng.choices(places, k=MOST_PIECES)[: PIECES[dose]])
    again = {}
    for place, count in times.items():
        unit = subject.units[place]
        before = joint(unit.text, subject.language) if unit.terminated else "\n"
        again[place] = (before + (unit.body if unit.terminated else unit.text)) * count
    return _with_insertions(subject, again)


def padding(subject: Subject, dose: int, rng: Random) -> str:
    """Sentences that say nothing."""
    return _with_sentences(subject, rng.sample(phrases.FILLER[subject.language], MOST_PIECES), dose, rng)


def flattery(subject: Subject, dose: int, rng: Random) -> str:
    """Praise of whoever asked."""
    return _with_sentences(subject, rng.sample(phrases.FLATTERY[subject.language], MOST_PIECES), dose, rng)


def unsupported_citations(subject: Subject, dose: int, rng: Random) -> str:
    """References to works that do not exist."""
    lang = subject.language
    drawn = [
        rng.choice(phrases.CITATIONS[lang]).format(
            author=rng.choice(phrases.AUTHORS[lang]),
            venue=rng.choice(phrases.VENUES[lang]),
            year=rng.randint(1975, 2023),
            page=rng.randint(3, 980),
        )
        for _ in range(MOST_PIECES)
    ]
    return _with_sentences(subject, drawn, dose, rng)


def prompt_echo(subject: Subject, dose: int, rng: Random) -> str:
    """The question before the answer, and in larger doses after it, again and again."""
    return "\n\n".join([subject.asked, subject.answer.rstrip(), *[subject.asked] * (PIECES[dose] - 1)])


def gibberish(subject: Subject, dose: int, rng: Random) -> str:
    """Words of random letters at the end, six at a time."""
    runs = [
        " ".join("".join(rng.choices(CONSONANTS, k=rng.randint(3, 9))) for _ in range(6)) for _ in range(MOST_PIECES)
    ]
    return _appended(subject, " ".join(runs[: PIECES[dose]]))


def prompt_injection(subject: Subject, dose: int, rng: Random) -> str:
    """Texts at the end that tell whoever rates the answer to rate it highly, in different forms."""
    drawn = rng.sample(phrases.INJECTIONS, MOST_PIECES)
    return "\n\n".join([subject.answer.rstrip(), *drawn[: PIECES[dose]]])


def _with_sentences(subject: Subject, sentences: Sequence[str], dose: int, rng: Random) -> str:
    """The answer with a dose's sentences after sentences of its own, or at its end."""
    last = len(subject.units) - 1
    places = [*(i for i, unit in enumerate(subject.units[:-1]) if unit.terminated), last]
    drawn = rng.choices(places, k=len(sentences))
    added: dict[int, str] = {}
    for place, sentence in list(zip(drawn, sentences))[: PIECES[dose]]:
        before = added.get(place, "")
        own = subject.units[place].text
        apart = joint(before or own, subject.language) if before or subject.units[place].terminated else "\n\n"
        added[place] = before + apart + sentence
    return _with_insertions(subject, added)


def _with_insertions(subject: Subject, added: dict[int, str]) -> str:
    """The answer with texts put after units; one that met the next sentence directly keeps its distance from it."""
    parts = [subject.lead]
    for place, unit in enumerate(subject.units):
        text = added.get(place, "")
        is_last = place == len(subject.units) - 1
        parts.append(unit.text + text + (unit.after or (SPACE[subject.language] if text and not is_last else "")))
    return "".join(parts)


def _appended(subject: Subject, text: str) -> str:
    apart = " " if subject.units[-1].terminated else "\n\n"
    return subject.answer.rstrip() + apart + text


# --- Edits that take text away or move it ------------------------------------------------------------------------


def truncation(subject: Subject, dose: int, rng: Random) -> str | None:
    """The answer without its end, broken off inside a word."""
    if len(subject.answer.strip()) < SHORTEST_CUT:
        return None
    return _start(subject.answer, CUT[dose])


def _start(answer: str, share: float) -> str:
    """The answer without about this share of its characters at the end, inside a word where one can be cut."""
    whole = answer.rstrip()
    wanted = end = int(len(whole) * (1 - share))
    while end > 0 and not (whole[end - 1].isalnum() and whole[end].isalnum()):
        end -= 1
    return whole[: end or wanted]


def wrong_language(subject: Subject, dose: int, rng: Random) -> str | None:
    """The answer's end replaced by a text in another language and script about something else, just as long."""
    whole = subject.answer.rstrip()
    letters = [character for character in whole if character.isalpha()]
    bank = phrases.FOREIGN["zh" if 2 * sum(map(str.isascii, letters)) >= len(letters) else "de"]
    start = rng.randrange(len(bank))
    kept = whole[: int(len(whole) * (1 - REPLACED[dose]))]
    text = " ".join([*bank[start:], *bank[:start]])
    missing = len(whole) - len(kept)
    return kept + (f"{text} " * (missing // len(text) + 1))[:missing]


def refusal(subject: Subject, dose: int, rng: Random) -> str:
    """The answer broken off for a refusal; at the largest dose nothing but the refusal."""
    drawn = rng.choice(phrases.REFUSALS[subject.language])
    kept = _start(subject.answer, REPLACED[dose]) if REPLACED[dose] < 1 else ""
    return f"{kept}… {drawn}" if kept else drawn


def shuffled_sentences(subject: Subject, dose: int, rng: Random) -> str | None:
    """The answer's sentences in another order, up to the reverse one; of a long answer MOST_SHUFFLED of them."""
    places = [i for i, unit in enumerate(subject.units) if not unit.verbatim]
    if len(places) < LEAST_SHUFFLED:
        return None
    places = sorted(rng.sample(places, min(MOST_SHUFFLED, len(places))))
    order = dict(zip(places, (places[i] for i in _inverted(len(places), dose, rng))))
    units, apart = subject.units, SPACE[subject.language]
    parts = [units[order.get(place, place)].text + (unit.after or apart) for place, unit in enumerate(units[:-1])]
    last = len(units) - 1
    return subject.lead + "".join(parts) + units[order.get(last, last)].text + units[last].after


def _inverted(count: int, dose: int, rng: Random) -> list[int]:
    """An order of ``count`` things in which a quarter of all pairs for each dose stand the other way round.

    Each moves steadily from its place to one of the reverse order; on the way any two pass each other once, so that
    the pairs that a dose has turned stay turned in the next.
    """
    goals = sorted((count * rng.random() for _ in range(count)), reverse=True)
    passing = sorted((b - a) / (b - a + goals[a] - goals[b]) for a, b in combinations(range(count), 2))
    wanted = max(dose, len(passing) * dose // max(DOSES))
    time = 1.0 if wanted == len(passing) else (passing[wanted - 1] + passing[wanted]) / 2
    return sorted(range(count), key=lambda i: (1 - time) * i + time * goals[i])


PROBES: dict[str, Edit] = {
    "repetition": repetition,
    "padding": padding,
    "prompt_echo": prompt_echo,
    "unsupported_citations": unsupported_citations,
    "flattery": flattery,
    "prompt_injection": prompt_injection,
    "gibberish": gibberish,
    "truncation": truncation,
    "shuffled_sentences": shuffled_sentences,
    "wrong_language": wrong_language,
    "refusal": refusal,
}
