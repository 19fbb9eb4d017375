"""The temperature that stands beside a model's weights, and P(A > B) in the rows of results where one does."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from codes.common.records import InputError, write_json
from codes.common.result_files import SCHEMA_VERSION, refuse_other_format
from codes.evaluate.calibration import preference_probability

logger = logging.getLogger(__name__)

FILE_NAME = "calibration.json"
FORMAT = "contrastrm-temperature"
# What the scores that a temperature was fitted to depend on; rounding and cut conversations change few of them.
BELONGS_TO = ("weights_sha256", "template_hash")
# What a scorer with a temperature tells of it.
FACT = "preference_temperature"
FIELD = "preference_probability"


def store_temperature(folder: Path, temperature: float, identity: Mapping, facts: Mapping) -> Path:
    """Write calibration.json into the model's folder. ``identity``: the scorer's whose scores were calibrated."""
    path = folder / FILE_NAME
    belongs_to = {name: identity[name] for name in BELONGS_TO}
    write_json(
        path, {"format": FORMAT, "schema_version": SCHEMA_VERSION, "temperature": temperature, **belongs_to, **facts}
    )
    return path


def require_storable(folder: Path, weights_sha256: str, identities: Mapping[Path, Mapping]) -> None:
    """Raise InputError where a file of scores is not this model's, or the folder has a calibration.json of others."""
    for path, identity in identities.items():
        if identity.get("scorer") != "model":
            raise InputError(
                f"--store {folder}: {path} has no {path.name}.run_info.json that says which reward model scored it"
            )
        if identity["weights_sha256"] != weights_sha256:
            raise InputError(f"--store {folder}: {path} was scored by another model (weights_sha256 differs)")
    refuse_other_format(folder / FILE_NAME, FORMAT, "--store")


def read_temperature(folder: Path, identity: Mapping) -> float | None:
    """The temperature stored in a model's folder; None without one, and (said once) for another template.

    Raises InputError for a file of another model's or none of ours.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        temperature = stored["temperature"] if stored["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        temperature = None
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise InputError(f"{path}: is no calibration of codes.evaluate.calibrate; remove it")
    differing = [name for name in BELONGS_TO if stored.get(name) != identity.get(name)]
    if "weights_sha256" in differing:
        raise InputError(f"{path}: belongs to another model (weights_sha256 differs); calibrate this one, or remove it")
    if differing:
        logger.warning("%s: was fitted with another %s; no probabilities are given", path, differing[0])
        return None
    return float(temperature)


def with_probabilities(rows: Iterable[dict], facts: Mapping) -> Iterator[dict]:
    """The rows; those of one better and one worse answer gain ``preference_probability`` where the scorer has a T."""
    temperature = facts.get(FACT)
    for row in rows:
        # One that came with the data is another model's.
        row = {name: value for name, value in row.items() if name != FIELD}
        if temperature is not None and (pair := _one_pair(row)):
            row[FIELD] = float(preference_probability(pair[0] - pair[1], temperature))
        yield row


def _one_pair(row: Mapping) -> tuple[float, float] | None:
    if "chosen_score" in row:
        return row["chosen_score"], row["rejected_score"]
    scores = [*row.get("chosen_scores", ()), *row.get("rejected_scores", ())]
    return tuple(scores) if len(scores) == 2 else None
