"""Files with several scores of each answer: candidates to choose from, preferences to fit weights to, and weights.

    {"prompt": "...", "response": "...", "head_scores": {"helpfulness": 1.5, "safety": -0.5}}
    {"prompt": "...", "response": "...", "helpfulness": 1.5, "safety": -0.5}
    {"prompt": "...", "chosen_scores": {"helpfulness": 2, ...}, "rejected_scores": {"helpfulness": 3, ...}}
    {"default": {"helpfulness": 1, "safety": 0.5}, "medical": {"helpfulness": 1, "safety": 2}}

Two candidates' rows, a preference's, and a file of weights by prompt group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codes.common.records import FieldError, InputError, finite_number, iter_jsonl, parse_record
from codes.evaluate.bias_summary import question_name
from codes.evaluate.score import conversation_of
from codes.evaluate.scored_pairs import QUESTION_FIELDS

HEAD_SCORES = "head_scores"
DEFAULT_GROUP = "default"
# So that no product or sum of them leaves the range of floats.
LARGEST = 1e100

Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Candidates:
    """scores [rows, objectives] in the file's order; of each prompt its rows [candidates] and its group."""

    objectives: tuple[str, ...]
    scores: np.ndarray
    rows: dict[str, np.ndarray]
    groups: dict[str, str]


@dataclass(frozen=True)
class Preferences:
    """differences [pairs, objectives]: the chosen answer's scores minus the rejected one's; questions [pairs]."""

    differences: np.ndarray
    questions: list[str]


# --- Candidates --------------------------------------------------------------------------------------------------


def objectives_of(path: Path, fields: Sequence[str] | None) -> tuple[str, ...]:
    """The fields asked for, or else the names in the first row's head_scores. Raises InputError without any."""
    if fields is not None:
        if repeated := next((name for place, name in enumerate(fields) if name in fields[:place]), None):
            raise InputError(f"--fields: {repeated!r} stands twice")
        return tuple(fields)
    number, row = next(iter_jsonl(path))
    if HEAD_SCORES not in row:
        raise InputError(f"{path}:{number}: field '{HEAD_SCORES}': is missing; or name number fields with --fields")
    if not isinstance(row[HEAD_SCORES], dict) or not row[HEAD_SCORES]:
        raise InputError(f"{path}:{number}: field '{HEAD_SCORES}': expected an object of at least one score by name")
    return tuple(row[HEAD_SCORES])


def read_candidates(
    path: Path, fields: Sequence[str] | None, group_field: str | None = None, known_groups: Sequence[str] = ()
) -> Candidates:
    """The candidates of every prompt. Rows without the group field are of the group ``default``.

    Raises InputError naming file, line and field for a row without an answer or one of the scores, with scores that
    others have not, of an unknown group, or of another group than an earlier answer to its prompt.
    """
    objectives = objectives_of(path, fields)
    scores, rows, groups = [], {}, {}

    def take(row: dict) -> None:
        prompt = question_name(conversation_of(row).question)
        if fields is None:
            _require_names(row, objectives)
        found = [_score_in(row, name) for name in objectives]
        group = _group_of(row, group_field, known_groups)
        if groups.setdefault(prompt, group) != group:
            raise FieldError(group_field, f"{group!r}, but an earlier answer to this prompt has {groups[prompt]!r}")
        rows.setdefault(prompt, []).append(len(scores))
        scores.append(found)

    for _ in iter_jsonl(path, take):
        pass
    places = {prompt: np.array(found) for prompt, found in rows.items()}
    return Candidates(objectives, np.array(scores), places, groups)


def _require_names(row: dict, objectives: Sequence[str]) -> None:
    named = row.get(HEAD_SCORES)
    if not isinstance(named, dict):
        raise FieldError(HEAD_SCORES, "is missing" if named is None else "expected an object of scores by name")
    if other := next((name for name in named if name not in objectives), None):
        raise FieldError(f"{HEAD_SCORES}.{other}", f"the first row has no such score, but {', '.join(objectives)}")


def _score_in(row: dict, name: str) -> float:
    """The row's score of that name: a field of its own, or one of head_scores."""
    heads = row.get(HEAD_SCORES)
    in_heads = isinstance(heads, dict) and name in heads
    if name in row and in_heads:
        raise FieldError(name, f"stands both in the row and in {HEAD_SCORES}")
    if in_heads:
        return bounded_number(heads[name], f"{HEAD_SCORES}.{name}")
    if name not in row:
        raise FieldError(f"{HEAD_SCORES}.{name}" if isinstance(heads, dict) else name, "is missing")
    return bounded_number(row[name], name)


def bounded_number(value: object, field: str) -> float:
    """The field's number. Raises FieldError for what is none, or one beyond LARGEST."""
    number = finite_number(value, field)
    if abs(number) > LARGEST:
        raise FieldError(field, f"{number:g} is beyond {LARGEST:g}, the largest number that is taken")
    return number


def _group_of(row: dict, group_field: str | None, known_groups: Sequence[str]) -> str:
    if group_field is None:
        return DEFAULT_GROUP
    group = row.get(group_field, DEFAULT_GROUP)
    if not isinstance(group, str):
        raise FieldError(group_field, f"expected the name of a group, found {group!r:.80}")
    if group not in known_groups:
        told = f"{group!r} has no weights" if group_field in row else f"is missing, and {group!r} has no weights"
        raise FieldError(group_field, f"{told} (there are: {', '.join(known_groups)})")
    return group


# --- Preferences -------------------------------------------------------------------------------------------------


def read_preferences(path: Path, objectives: Sequence[str]) -> Preferences:
    """Differences of these objectives, of which each row has two objects: ``chosen_scores`` and ``rejected_scores``.

    A row's question is its prompt (or question, input, instruction); one without is a question of its own. Raises
    InputError naming file, line and field for a row without one of the scores.
    """
    differences, questions = [], []

    def take(row: dict) -> None:
        sides = [_named_scores(row, field, objectives) for field in ("chosen_scores", "rejected_scores")]
        differences.append(np.subtract(*sides))

    for number, row in iter_jsonl(path, take):
        questions.append(question_name(next((row[name] for name in QUESTION_FIELDS if name in row), f"line {number}")))
    return Preferences(np.array(differences), questions)


def _named_scores(row: dict, field: str, objectives: Sequence[str]) -> list[float]:
    named = row.get(field)
    if not isinstance(named, dict):
        raise FieldError(field, "is missing" if field not in row else "expected an object of scores by name")
    if absent := next((name for name in objectives if name not in named), None):
        raise FieldError(f"{field}.{absent}", "is missing")
    return [bounded_number(named[name], f"{field}.{name}") for name in objectives]


# --- Weights -----------------------------------------------------------------------------------------------------


def parse_weights(text: str) -> dict[str, float]:
    """Weights as --weights takes them: ``helpfulness=1,safety=0.5``. Raises InputError saying what is wrong."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, sign, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = bounded_number(float(number), name)
        except (ValueError, FieldError):
            raise InputError(f"--weights {text!r}: expected NAME=NUMBER, found {part.strip()!r}") from None
        if not sign or not name or name in weights:
            raise InputError(f"--weights {text!r}: {part.strip()!r} " + ("stands twice" if name else "has no name"))
        weights[name] = weight
    return weights


def read_weights(path: Path) -> dict[str, dict[str, float]]:
    """Weights by group from a JSON file. Raises InputError naming file, group and objective."""
    try:
        groups = parse_record(path.read_bytes())
        for group, weights in groups.items():
            if not isinstance(weights, dict):
                raise FieldError(group, "expected an object of weights by objective")
            for name, weight in weights.items():
                weights[name] = bounded_number(weight, f"{group}.{name}")
    except FieldError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not groups:
        raise InputError(f"{path}: has no group of weights; expected {{GROUP: {{OBJECTIVE: WEIGHT}}}}")
    return groups


def weight_vectors(weights: Weights, objectives: Sequence[str], source: str) -> dict[str, np.ndarray]:
    """{group: weights [objectives]}, 0 for objectives that are not named. Raises InputError for others than these."""
    vectors = {}
    for group, named in weights.items():
        which = source if group == DEFAULT_GROUP else f"{source}: group {group!r}"
        if unknown := next((name for name in named if name not in objectives), None):
            raise InputError(f"{which}: no objective is named {unknown!r} (there are: {', '.join(objectives)})")
        vectors[group] = np.array([float(named.get(name, 0.0)) for name in objectives])
        if not vectors[group].any():
            raise InputError(f"{which}: all weights are 0, which decides nothing")
    return vectors
