"""Scores that were paid for once: an append-only file for each scoring configuration, under the output folder."""

import math
from pathlib import Path

from codes.common.records import AppendOnlyFile, FieldError, InputError, content_hash, iter_jsonl, to_json

FOLDER = "score_store"


class ScoreStore:
    """Scores by conversation key, for one scoring configuration (weights, template, dtype, max_length).

    ``folder/score_store/<hash of the configuration>.jsonl`` opens with the configuration; each further line holds one
    batch and is synced before ``add`` returns, so a killed run loses one batch at most. Raises InputError for a file
    that holds something else.
    """

    def __init__(self, folder: Path, configuration: dict):
        self.path = folder / FOLDER / f"{content_hash(configuration)[:16]}.jsonl"
        self.scores: dict[str, float] = {}
        self._file = AppendOnlyFile(self.path)
        if self.path.stat().st_size == 0:
            self._file.append({"configuration": configuration})
        else:
            self._load(configuration)

    def _load(self, configuration: dict) -> None:
        for number, line in iter_jsonl(self.path, _check_line):
            if "configuration" not in line:
                self.scores.update(zip(line["conversations"], line["scores"], strict=True))
            elif to_json(line["configuration"], sort_keys=True) != to_json(configuration, sort_keys=True):
                raise InputError(f"{self.path}:{number}: field 'configuration': is not the one its name stands for")

    def add(self, keys: list[str], scores: list[float]) -> None:
        """Keep the finite scores of one batch."""
        self._file.append({"conversations": keys, "scores": scores})
        self.scores.update(zip(keys, scores, strict=True))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_line(line: dict) -> None:
    if "configuration" in line:
        return
    keys, scores = line.get("conversations"), line.get("scores")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FieldError("conversations", "expected a list of conversation hashes; remove this file to score afresh")
    well_formed = isinstance(scores, list) and len(scores) == len(keys)
    if not well_formed or not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise FieldError("scores", "expected one number a conversation; remove this file to score afresh")
