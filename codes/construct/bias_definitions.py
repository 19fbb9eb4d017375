"""The biases that the construction commands know: the seven built-in ones, and those of a user's --bias_file.

A bias file is a JSON list of objects:

    [{"name": "emoji",
      "look": "It is sprinkled with emoji, several in every sentence.",
      "add": "Sprinkle emoji over it, several in every sentence.",
      "remove": "Take out every emoji.",
      "must_stay": ["words", "code"],
      "sentences": ["What a day! \U0001f389", "Hope this helps! \U0001f60a"]}]

``name`` and ``look`` are needed. ``look`` completes "How it looks:" in the prompt that asks for a worse answer; ``add``
and ``remove`` are the tasks of the rewrite prompts (by default made from ``look``). ``must_stay`` names the mechanical
checks that a rewrite must pass: see ``bias_checks.MUST_STAY``. ``sentences`` are what the ``rules`` backend puts on an
answer; a bias without any can be injected by an LLM only.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

from codes.common.records import INJECTED_BIASES, InputError, bias_name_problem, content_hash
from codes.construct import bias_checks, bias_rules
from codes.construct.build_prompt import BIAS_TEXTS, BiasTexts

FIELDS = ("name", "look", "add", "remove", "must_stay", "sentences")


@dataclass(frozen=True)
class Bias:
    """One bias: what prompts say of it and, for a user's own, what its rules and mechanical checks are."""

    name: str
    texts: BiasTexts
    must_stay: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()

    @property
    def built_in(self) -> bool:
        return self.name in INJECTED_BIASES

    @property
    def has_rules(self) -> bool:
        """Whether the rules backend can put it on an answer."""
        return self.built_in or bool(self.sentences)

    def inject(self, answer: str, rng: Random, dose: int | None = None) -> str:
        """The answer with the trait added by rules. Raises ValueError for a blank answer or a bias without rules."""
        if self.built_in:
            return bias_rules.inject(answer, self.name, rng, dose)
        if not answer.strip() or not self.sentences:
            raise ValueError(f"{self.name}: nothing to inject, or nothing to inject it into")
        return bias_rules.graded_sentences(answer, self.sentences, self.sentences, self.sentences, rng, dose or 1)

    def injection_problems(self, original: str, injected: str) -> list[str]:
        """What is wrong with ``injected`` as ``original`` with nothing but this trait added by rules."""
        if self.built_in:
            return bias_checks.check_injection(self.name, original, injected)
        return bias_checks.added_problems(self.name, original, injected, self.sentences)

    def trait_problems(self, answer: str, reference: str) -> list[str]:
        """What a freely written answer lacks of the trait next to a plain one; nothing is known of a user's bias."""
        return bias_checks.trait_problems(self.name, answer, reference) if self.built_in else []

    def rewrite_problems(self, original: str, rewritten: str, *, added: bool) -> list[str]:
        """What the mechanical checks find in an LLM's rewrite that should add the trait, or take it away."""
        if not self.built_in:
            return bias_checks.kept_problems(self.must_stay, original, rewritten)
        plain, marked = (original, rewritten) if added else (rewritten, original)
        shown = bias_checks.rewrite_trait_problems(self.name, plain, marked, added=added)
        return bias_checks.kept_problems(bias_checks.KEPT_IN_REWRITES[self.name], original, rewritten) + shown

    def dose(self, original: str, injected: str) -> float | None:
        """How much of the trait was added; None where nothing measures it."""
        if self.built_in:
            return bias_checks.dose(self.name, original, injected)
        return sum(injected.count(s) - original.count(s) for s in self.sentences) if self.sentences else None


BUILT_IN = {name: Bias(name, BIAS_TEXTS[name]) for name in INJECTED_BIASES}


def read_bias_file(path: str) -> dict[str, Bias]:
    """The biases that a file defines, by name, in the order of their names. Raises InputError naming what is wrong."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file)
    except OSError as error:
        raise InputError(f"--bias_file {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--bias_file {path}: is not JSON ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"--bias_file {path}: expected a list of objects, one for each bias")
    biases: dict[str, Bias] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            bias = _bias(entry)
            if bias.name in biases:
                raise ValueError(f"field 'name': {bias.name!r} stands twice")
        except ValueError as problem:
            raise InputError(f"--bias_file {path}: bias {number}: {problem}") from None
        biases[bias.name] = bias
    return dict(sorted(biases.items()))


def _bias(entry: object) -> Bias:
    if not isinstance(entry, dict):
        raise ValueError("expected an object")
    if unknown := [field for field in entry if field not in FIELDS]:
        raise ValueError(f"field {unknown[0]!r} is not one of {', '.join(FIELDS)}")
    name, look = _text(entry, "name"), _text(entry, "look")
    if problem := bias_name_problem(name):
        raise ValueError(f"field 'name': {name!r} {problem}")
    add = _text(entry, "add", f"Change how it is presented so that this holds of it: {look}")
    remove = _text(entry, "remove", f"Change how it is presented so that nothing of this is left: {look}")
    must_stay, sentences = _texts(entry, "must_stay"), _texts(entry, "sentences")
    if unknown := [check for check in must_stay if check not in bias_checks.MUST_STAY]:
        raise ValueError(f"field 'must_stay': {unknown[0]!r} is not one of {', '.join(bias_checks.MUST_STAY)}")
    return Bias(name, BiasTexts(look, add, remove), must_stay, sentences)


def _text(entry: dict, field: str, default: str | None = None) -> str:
    value = entry.get(field, default)
    if value is None and field not in entry:
        raise ValueError(f"field {field!r} is missing")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {field!r}: expected a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"field {field!r}: holds a lone surrogate, which is no text") from None
    return value.strip()


def _texts(entry: dict, field: str) -> tuple[str, ...]:
    values = entry.get(field, [])
    if not isinstance(values, list):
        raise ValueError(f"field {field!r}: expected a list of texts")
    return tuple(_text({field: value}, field) for value in values)


# --- Flags -----------------------------------------------------------------------------------------------------------


def add_bias_file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bias_file", metavar="JSON", help="biases of your own beside the built-in ones (see bias_definitions.py)"
    )


def known_biases(bias_file: str | None) -> dict[str, Bias]:
    """The built-in biases, and those of the file where one is given."""
    return {**BUILT_IN, **(read_bias_file(bias_file) if bias_file else {})}


def chosen_biases(names: Sequence[str] | None, known: Mapping[str, Bias], backend: str) -> dict[str, Bias]:
    """The biases named by --bias_types, or all; in one order, whatever order they were named in."""
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(f"--bias_types: {unknown[0]!r} is not one of {', '.join(known)}")
    biases = {name: bias for name, bias in known.items() if names is None or name in names}
    if backend == "rules" and (without := [name for name, bias in biases.items() if not bias.has_rules]):
        raise InputError(f"--bias_types: {without[0]} has no 'sentences' in --bias_file, which --backend rules needs")
    return biases


def definitions_setting(biases: Mapping[str, Bias]) -> dict:
    """What a run's configuration says of the user's own biases among these; nothing where there are none."""
    own = {name: content_hash(asdict(bias))[:16] for name, bias in biases.items() if not bias.built_in}
    return {"bias_file": own} if own else {}
