"""From candidates, weights and constraints to what is chosen and every figure of the result. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from codes.evaluate.metrics import clustered_bootstrap, clustered_rate_intervals, ratio, spearman
from codes.evaluate.objective_choice import Constraint, order_of_choice, violations, weighted_sums
from codes.evaluate.objective_scores import Candidates
from codes.evaluate.pareto import pair_agreement, pareto_ranks, trade_off

MOST_STEPS = 200


@dataclass(frozen=True)
class Decision:
    """What was found of each row [rows], and which row each prompt's choice is [prompts]."""

    rewards: np.ndarray
    pareto_ranks: np.ndarray
    meets_constraints: np.ndarray
    ranks: np.ndarray
    chosen: np.ndarray
    by_weights: np.ndarray
    by_objective: np.ndarray  # [prompts, objectives]
    tied: np.ndarray

    @property
    def on_front(self) -> np.ndarray:
        return self.pareto_ranks == 1


def decide(
    candidates: Candidates, weights: Mapping[str, np.ndarray], constraints: Sequence[Constraint] = ()
) -> Decision:
    """Judge every candidate and choose one of each prompt; weights: {group: [objectives]}."""
    rows, objectives = candidates.scores.shape
    rewards, fronts, ranks = np.empty(rows), np.empty(rows, dtype=int), np.empty(rows, dtype=int)
    violated = violations(candidates.scores, constraints)
    nothing = np.zeros((rows, 1))
    chosen, by_weights, by_objective, tied = [], [], [], []
    for prompt, places in candidates.rows.items():
        scores = candidates.scores[places]
        rewards[places] = weighted_sums(scores, weights[candidates.groups[prompt]])
        fronts[places] = pareto_ranks(scores)
        on_front = fronts[places] == 1

        def order(values: np.ndarray, bounds: np.ndarray, places=places, on_front=on_front) -> tuple[np.ndarray, bool]:
            found, level = order_of_choice(values, bounds[places], on_front)
            return places[found], level

        best_first, level = order(rewards[places], violated)
        ranks[best_first] = np.arange(1, len(places) + 1)
        chosen.append(best_first[0])
        tied.append(level)
        by_weights.append(order(rewards[places], nothing)[0][0])
        by_objective.append([order(scores[:, objective], nothing)[0][0] for objective in range(objectives)])
    return Decision(
        rewards,
        fronts,
        (violated == 0).all(1),
        ranks,
        np.array(chosen),
        np.array(by_weights),
        np.array(by_objective),
        np.array(tied),
    )


def summary(
    candidates: Candidates,
    weights: Mapping[str, np.ndarray],
    constraints: Sequence[Constraint],
    decision: Decision,
    *,
    seed: int,
) -> dict:
    """All figures of the result; intervals are over prompts."""
    sizes = np.array([len(places) for places in candidates.rows.values()])
    choices = _choices(candidates, decision, seed)
    return {
        "counts": {
            "prompts": len(sizes),
            "candidates": int(sizes.sum()),
            "prompts_with_one_candidate": int((sizes == 1).sum()),
            "tied_choices": int(decision.tied.sum()),
        },
        "groups": _groups(candidates, weights, decision, seed),
        "constraints": _constraint_figures(candidates, constraints, decision),
        "choices": choices,
        "front": _front(candidates, decision, seed),
        "conflict": [_conflict(candidates, pair, seed) for pair in _pairs(candidates)],
        "trade_offs": [_trade_off(candidates, pair, seed) for pair in _pairs(candidates)],
    }


def _pairs(candidates: Candidates) -> list[list[int]]:
    """Every two objectives."""
    return [list(pair) for pair in combinations(range(len(candidates.objectives)), 2)]


def _over_first(sums: np.ndarray) -> np.ndarray:
    """Means from sums [samples, 1 + figures] whose first is how many there are."""
    return sums[:, 1:] / sums[:, :1]


# --- Choices -----------------------------------------------------------------------------------------------------


def _choices(candidates: Candidates, decision: Decision, seed: int) -> dict:
    """What ways to choose are worth: any candidate, by one objective, by the weights, and under constraints too."""
    of_row = _of_rows(candidates, decision)
    any_candidate = np.array([of_row[places].mean(0) for places in candidates.rows.values()])
    by_objective = [of_row[decision.by_objective[:, place]] for place in range(len(candidates.objectives))]
    ways = [any_candidate, of_row[decision.by_weights], of_row[decision.chosen], *by_objective]
    trials = [len(of_row), *(len(way) for way in ways[1:])]
    first, second, third, *others = _means(ways, trials, list(candidates.rows), candidates.objectives, seed)
    return {
        "any_candidate": first,
        "by_objective": dict(zip(candidates.objectives, others)),
        "by_weights": second,
        "chosen": third,
    }


def _of_rows(candidates: Candidates, decision: Decision) -> np.ndarray:
    """[rows, objectives + 2]: the scores, and whether on the front and meeting all constraints."""
    return np.concatenate([candidates.scores, decision.on_front[:, None], decision.meets_constraints[:, None]], axis=1)


def _means(
    ways: Sequence[np.ndarray], trials: Sequence[int], prompts: Sequence[str], objectives: Sequence[str], seed: int
) -> list[dict]:
    """Means over prompts of each way to choose, [prompts, objectives + 2]; trials: answers that its shares are of."""
    features = np.concatenate([np.ones((len(prompts), 1)), *ways], axis=1)
    width = len(objectives) + 2
    values = features[:, 1:].mean(0).reshape(len(ways), width)
    by_way = np.arange(len(ways) * width).reshape(len(ways), width)
    is_share = by_way[:, -2:].ravel()
    intervals = clustered_bootstrap(features, prompts, _over_first, seed=seed)
    for place, interval in zip(
        is_share,
        clustered_rate_intervals(
            features, prompts, lambda sums: _over_first(sums)[:, is_share], np.repeat(trials, 2), seed=seed
        ),
    ):
        intervals[place] = interval
    return [
        {
            "means": dict(zip(objectives, map(float, values[way]))),
            "on_front": float(values[way, -2]),
            "meets_constraints": float(values[way, -1]),
            "ci95": {
                "means": dict(zip(objectives, (intervals[place] for place in places))),
                "on_front": intervals[places[-2]],
                "meets_constraints": intervals[places[-1]],
            },
        }
        for way, places in enumerate(by_way)
    ]


def _groups(candidates: Candidates, weights: Mapping[str, np.ndarray], decision: Decision, seed: int) -> dict:
    """For each group its weights, its prompts, and what the choices among them are worth."""
    of_row, prompts = _of_rows(candidates, decision), list(candidates.rows)
    group_of = np.array([candidates.groups[prompt] for prompt in prompts])
    found = {}
    for group, vector in weights.items():
        members = np.flatnonzero(group_of == group)
        names = [prompts[place] for place in members]
        ways = [of_row[decision.chosen[members]]]
        found[group] = {
            "weights": dict(zip(candidates.objectives, map(float, vector))),
            "prompts": len(names),
            "chosen": _means(ways, [len(names)], names, candidates.objectives, seed)[0] if names else None,
        }
    return found


def _constraint_figures(candidates: Candidates, constraints: Sequence[Constraint], decision: Decision) -> dict | None:
    """How many meet each constraint and all; None without constraints."""
    if not constraints:
        return None
    met = violations(candidates.scores, constraints) == 0
    met = np.concatenate([met, met.all(1, keepdims=True)], axis=1)
    without = [
        sum(not met[places, column].any() for places in candidates.rows.values()) for column in range(met.shape[1])
    ]
    each = [
        {
            "constraint": str(constraint),
            "candidates_that_meet_it": int(met[:, place].sum()),
            "prompts_where_none_does": int(without[place]),
        }
        for place, constraint in enumerate(constraints)
    ]
    return {
        "each": each,
        "candidates_that_meet_all": int(met[:, -1].sum()),
        "prompts_where_none_does": int(without[-1]),
        "changed_choices": int((decision.chosen != decision.by_weights).sum()),
    }


# --- Front, conflict, trade-off ----------------------------------------------------------------------------------


def _front(candidates: Candidates, decision: Decision, seed: int) -> dict:
    """How many candidates are on the Pareto front of their prompt."""
    sizes = np.array([decision.on_front[places].sum() for places in candidates.rows.values()])
    features = np.stack([np.ones(len(sizes)), sizes], axis=1)
    interval = clustered_bootstrap(features, list(candidates.rows), _over_first, seed=seed)
    return {
        "candidates": int(sizes.sum()),
        "mean_size": float(sizes.mean()),
        "ci95": {"mean_size": interval[0]},
        "prompts_by_size": {str(size): count for size, count in sorted(Counter(sizes.tolist()).items())},
    }


def _conflict(candidates: Candidates, pair: list[int], seed: int) -> dict:
    """How far two objectives order the candidates of a prompt contrarily."""
    prompts = list(candidates.rows)
    counts = np.array([pair_agreement(candidates.scores[places][:, pair]) for places in candidates.rows.values()])
    alike, contrary, level = counts.sum(0).tolist()
    interval = clustered_rate_intervals(
        counts, prompts, lambda sums: sums[:, [1]] / (sums[:, [0]] + sums[:, [1]]), [alike + contrary], seed=seed
    )
    found = [spearman(*candidates.scores[places][:, pair].T) for places in candidates.rows.values()]
    defined = [value for value in found if value is not None]
    features = np.array([[value is not None, value or 0.0] for value in found])
    of_mean = clustered_bootstrap(features, prompts, _over_first, seed=seed)
    return {
        "objectives": [candidates.objectives[place] for place in pair],
        "pairs": {"alike": alike, "contrary": contrary, "level": level},
        "contrary_share": ratio(contrary, alike + contrary),
        "mean_spearman": ratio(sum(defined), len(defined)),
        "prompts_with_spearman": len(defined),
        "ci95": {"contrary_share": interval[0], "mean_spearman": of_mean[0]},
    }


def _trade_off(candidates: Candidates, pair: list[int], seed: int) -> dict:
    """Means of two objectives at the choices by them alone, as the weight of the second rises from 0 to 1."""
    found = trade_off([candidates.scores[places][:, pair] for places in candidates.rows.values()], MOST_STEPS)
    prompts, steps, _ = found.chosen.shape
    features = np.concatenate([np.ones((prompts, 1)), found.chosen.reshape(prompts, -1)], axis=1)
    intervals = clustered_bootstrap(features, list(candidates.rows), _over_first, seed=seed)
    means = found.chosen.mean(0)
    return {
        "objectives": [candidates.objectives[place] for place in pair],
        "turns": found.turns,
        "steps": [
            {
                "from": float(found.low[step]),
                "to": float(found.high[step]),
                "means": means[step].tolist(),
                "ci95": intervals[2 * step : 2 * step + 2],
            }
            for step in range(steps)
        ],
    }
