"""Controls that measure the verifier: pairs whose right verdict is known, judged like every other and kept apart.

Sham pairs: the chosen answer against itself, as an unchanged copy or with formatting added by rules, so nothing is
worse. Damaged pairs: the chosen answer against itself broken in a known way. They never enter the training records.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from codes.common.answer_units import split_units
from codes.common.intervals import wilson_interval
from codes.common.records import content_hash
from codes.construct.bias_checks import looks_like_error
from codes.construct.bias_rules import inject, rules_rng

CONTROLS_VERSION = "1"  # any change to what is damaged, and how, is a new version
SHAM, DAMAGED = "sham", "damaged"
RATES = {SHAM: "false_alarms", DAMAGED: "detections"}


@dataclass(frozen=True)
class Control:
    """One answer to be judged against the chosen one; ``kind`` says how it was made."""

    group: str  # SHAM or DAMAGED
    kind: str
    answer: str


def is_control(row_id: str, share: float, seed: int) -> bool:
    """Whether a record's chosen answer is used for controls; depends on the seed and the id alone."""
    return int(content_hash(seed, "control", row_id)[:16], 16) < share * 2**64


def control_pairs(record: dict, seed: int) -> list[Control]:
    """A sham answer and a damaged one, their kinds drawn by seed and id; none for an error text."""
    chosen = record["chosen"]
    if looks_like_error(chosen):
        return []
    rng = rules_rng(seed, str(record["id"]), "control")
    sham = rng.choice(("copy", "formatted"))
    controls = [Control(SHAM, sham, chosen if sham == "copy" else inject(chosen, "beauty", rng))]
    damaged = {kind: text for kind, damage in DAMAGES.items() if (text := damage(chosen, rng)) is not None}
    if damaged:
        kind = rng.choice(sorted(damaged))
        controls.append(Control(DAMAGED, kind, damaged[kind]))
    return controls


def shuffled(answer: str, rng: Random) -> str | None:
    """The answer with its sentences in another order; None with fewer than four."""
    lead, units = split_units(answer)
    if len(units) < 4:
        return None
    texts = [unit.text for unit in units]
    mixed = rng.sample(texts, len(texts))
    if mixed == texts:
        mixed = texts[1:] + texts[:1]
    text = lead + "".join(text + (unit.after or " ") for text, unit in zip(mixed, units)).rstrip()
    return text if text.strip() != answer.strip() else None


def truncated(answer: str, rng: Random) -> str | None:
    """The first two fifths of the answer; None below sixty characters."""
    text = answer.strip()
    return text[: len(text) * 2 // 5].rstrip() if len(text) >= 60 else None


def changed_numbers(answer: str, rng: Random) -> str | None:
    """The answer with the sign of every number turned, or None without a number. Marks of numbered lists stay."""

    def turned(match: re.Match) -> str:
        number = match.group("number")
        if number is None:
            return match.group()
        return number[1:] if number.startswith("-") else f"-{number}"

    changed = _NUMBER.sub(turned, answer)
    return None if changed == answer else changed


_NUMBER = re.compile(r"(?m)^[ \t]*\d{1,3}[.)][ \t]|(?<![\w.,/:-])(?P<number>-?\d+(?:[.,]\d+)*)(?![\w/:-])")

DAMAGES: dict[str, Callable[[str, Random], str | None]] = {
    "sentences shuffled": shuffled,
    "truncated": truncated,
    "numbers negated": changed_numbers,
}


def controls_report(outcomes: Iterable[tuple[str, str, str]]) -> dict:
    """Rates from (group, kind, outcome) of every control pair; pairs without a verdict are counted and left out.

    False alarm: a sham answer was called worse in both orders. Detection: a damaged one was.
    """
    by_kind: dict[str, dict[str, Counter]] = {SHAM: {}, DAMAGED: {}}
    for group, kind, outcome in outcomes:
        by_kind[group].setdefault(kind, Counter())[outcome] += 1
    report = {}
    for group, name in RATES.items():
        kinds = by_kind[group]
        report[name] = _rate(sum(kinds.values(), Counter()))
        report[name]["by_kind"] = {kind: _rate(kinds[kind]) for kind in sorted(kinds)}
    return report


def controls_path(output: Path) -> Path:
    return output.with_name(output.name + ".controls.json")


def pooled_controls(reports: Sequence[dict]) -> dict:
    """One report for those of all shards, each as OUT.controls.json holds it; the settings are the first one's.

    Raises KeyError, TypeError, AttributeError or ValueError where one is no such report.
    """
    settings = {name: value for name, value in reports[0].items() if name not in RATES.values()}
    return settings | controls_report(outcome for report in reports for outcome in _outcomes_in(report))


def _outcomes_in(report: dict) -> Iterator[tuple[str, str, str]]:
    for group, name in RATES.items():
        for kind, rate in report[name]["by_kind"].items():
            yield from ((group, kind, outcome) for outcome in Counter(rate["outcomes"]).elements())


def _rate(outcomes: Counter) -> dict:
    judged = sum(count for outcome, count in outcomes.items() if outcome != "failed")
    worse = outcomes["worse"]
    return {
        "called_worse": worse,
        "pairs": judged,
        "rate": worse / judged if judged else None,
        "ci95": wilson_interval(worse, judged),
        "outcomes": dict(sorted(outcomes.items())),
    }


def report_text(report: dict) -> str:
    """The two rates on one line."""

    def figure(part: dict) -> str:
        if part["rate"] is None:
            return "no verdict"
        low, high = part["ci95"]
        return f"{part['called_worse']} of {part['pairs']} ({part['rate']:.1%}, 95% interval {low:.1%} to {high:.1%})"

    return (
        f"false alarms on sham pairs: {figure(report['false_alarms'])}; "
        f"damaged answers detected: {figure(report['detections'])}"
    )
