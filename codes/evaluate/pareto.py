"""Answers with several scores: those that no other is better than, and what one objective costs in another.

Pure functions; in every objective more is better. A vector of scores dominates another where it is at least as large
in all objectives and larger in one. What nothing dominates is the Pareto front; equal vectors are on it together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def pareto_ranks(scores: np.ndarray) -> np.ndarray:
    """The front that each of [n, objectives] belongs to, [n] from 1: 1 is the Pareto front, 2 the front of the rest...

    Non-dominated sorting (Deb et al. 2002, NSGA-II, section III), one vector after the other as in Zhang et al. 2015
    (efficient non-dominated sort, sequential search).
    """
    scores = np.asarray(scores, dtype=float)
    ranks = np.empty(len(scores), dtype=int)
    fronts: list[np.ndarray] = []
    # By falling scores, the first objective foremost, whatever dominates a vector stands before it.
    for place in np.lexsort(-scores.T[::-1]):
        vector = scores[place]
        rank = next((i for i, front in enumerate(fronts) if not _dominated(vector, front)), len(fronts))
        if rank == len(fronts):
            fronts.append(vector[None])
        else:
            fronts[rank] = np.concatenate([fronts[rank], vector[None]])
        ranks[place] = rank + 1
    return ranks


def _dominated(vector: np.ndarray, others: np.ndarray) -> bool:
    return bool(((others >= vector).all(1) & (others > vector).any(1)).any())


# --- Trade-off of two objectives ---------------------------------------------------------------------------------


class SupportedPath(NamedTuple):
    """places [m]: the candidates chosen as the second objective's weight rises; weights [m - 1]: where it turns."""

    places: np.ndarray
    weights: np.ndarray


class TradeOff(NamedTuple):
    """What each prompt's choice scores as the weight w on the second objective rises from 0 to 1.

    low, high [steps]: between these weights no choice changes. chosen [prompts, steps, 2]: both scores of the choices.
    turns: at how many weights some choice changes; there is one step more, unless steps were left out.
    """

    low: np.ndarray
    high: np.ndarray
    chosen: np.ndarray
    turns: int


def supported_path(scores: np.ndarray) -> SupportedPath:
    """The candidates, [n, 2], that are best by (1 - w) first + w second for some w in (0, 1): the upper hull, exactly.

    It leads from the largest first score to the largest second one; a candidate that is best at one w alone, where
    others are as good, is no part of it. Of equal candidates the first stands for all.
    """
    first, second = np.asarray(scores, dtype=float).T
    places: list[int] = []
    weights: list[float] = []
    for place in np.lexsort((-second, -first)):
        if places and second[place] <= second[places[-1]]:
            continue
        while places:
            loss, gain = first[places[-1]] - first[place], second[place] - second[places[-1]]
            turn = float(loss / (loss + gain))
            if not weights or weights[-1] < turn:
                weights.append(turn)
                break
            places.pop()
            weights.pop()
        places.append(int(place))
    return SupportedPath(np.array(places), np.array(weights))


def trade_off(prompts: Sequence[np.ndarray], most_steps: int) -> TradeOff:
    """The trade-off over prompts, each [candidates, 2]; of more steps than ``most_steps`` about that many are kept.

    These are then the ones at evenly spaced weights, with the first and the last.
    """
    paths = [supported_path(scores) for scores in prompts]
    turns = np.unique(np.concatenate([path.weights for path in paths]))
    low, high = np.concatenate([[0.0], turns]), np.concatenate([turns, [1.0]])
    if len(low) > most_steps:
        kept = np.unique(np.searchsorted(low, np.linspace(0, 1, most_steps), side="right") - 1)
        low, high = low[kept], high[kept]
    chosen = [
        scores[path.places[np.searchsorted(path.weights, low, side="right")]] for path, scores in zip(paths, prompts)
    ]
    return TradeOff(low, high, np.stack(chosen), len(turns))


# --- Conflict of two objectives ----------------------------------------------------------------------------------


def pair_agreement(scores: np.ndarray) -> tuple[int, int, int]:
    """Of all pairs of candidates [n, 2]: how many both objectives order alike, contrarily, and at least one not."""
    first, second = np.asarray(scores, dtype=float).T
    signs = [np.sign(first[i] - first[i + 1 :]) * np.sign(second[i] - second[i + 1 :]) for i in range(len(first))]
    signs = np.concatenate(signs)
    return int((signs > 0).sum()), int((signs < 0).sum()), int((signs == 0).sum())
