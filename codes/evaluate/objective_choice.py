"""Which of several candidates is taken: hard constraints first, then the weighted sum of the scores. Pure functions.

A constraint bounds one objective. An answer that violates the first constraint more than another loses against it,
whatever else it has; among equals in this the second constraint decides, and so on; and among equals in all of them,
such as all that meet them, the weighted sum. Violations of several constraints are never added up: their units differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codes.common.records import InputError
from codes.evaluate.conditions import parse_condition


@dataclass(frozen=True)
class Constraint:
    """``objective >= threshold`` or ``objective <= threshold``; ``place``: which of the objectives it is."""

    objective: str
    sign: str
    threshold: float
    place: int

    def __str__(self) -> str:
        return f"{self.objective} {self.sign} {self.threshold!r}".removesuffix(".0")

    def violation(self, scores: np.ndarray) -> np.ndarray:
        """By how much each of [candidates, objectives] misses the threshold: [candidates], 0 where it is met."""
        beyond = self.threshold - scores[:, self.place]
        return np.maximum(beyond if self.sign == ">=" else -beyond, 0.0)


def parse_constraints(texts: Sequence[str], objectives: Sequence[str]) -> list[Constraint]:
    """The constraints that --constraint states, in this order. Raises InputError saying what is wrong."""
    found = []
    for text in texts:
        for left, sign, right in parse_condition(text, "--constraint").comparisons:
            if not isinstance(left, str) or sign not in (">=", "<=") or isinstance(right, str):
                raise InputError(f"--constraint {text!r}: expected OBJECTIVE >= NUMBER or OBJECTIVE <= NUMBER")
            if left not in objectives:
                raise InputError(
                    f"--constraint {text!r}: no objective is named {left!r} (there are: {', '.join(objectives)})"
                )
            found.append(Constraint(left, sign, right, list(objectives).index(left)))
    return found


def weighted_sums(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[candidates, objectives] . [objectives] -> [candidates].

    Added up in the same order for every row, which a matrix product does not promise: equal rows have equal sums, and
    with weights above 0 a row that another dominates never has the larger one, rounding included.
    """
    return sum(weight * column for weight, column in zip(weights, scores.T))


def violations(scores: np.ndarray, constraints: Sequence[Constraint]) -> np.ndarray:
    """[candidates, constraints]: by how much each candidate violates each constraint."""
    return np.stack([constraint.violation(scores) for constraint in constraints] or [np.zeros(len(scores))], axis=1)


def order_of_choice(rewards: np.ndarray, violated: np.ndarray, on_front: np.ndarray) -> tuple[np.ndarray, bool]:
    """(places [candidates] from the one that is taken down, whether another is as good as that one).

    rewards, on_front: [candidates]; violated: [candidates, constraints]. Among equals those on the Pareto front come
    first, then the earlier ones.
    """
    order = np.lexsort((~on_front, -rewards, *violated.T[::-1]))
    first, second = order[0], order[min(1, len(order) - 1)]
    tied = first != second and rewards[first] == rewards[second] and (violated[first] == violated[second]).all()
    return order, bool(tied)
