"""What an ensemble gains over its members: rates, over-optimisation, disagreement. Pure functions of their scores.

Gains are against the average member, the mean of the members' figures: what one of them, picked blindly, has. Their
intervals are 95% bootstrap intervals in which the same questions are drawn for all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from codes.common.score_rules import RULES, combined
from codes.evaluate.answer_sets import Answer
from codes.evaluate.best_of_n import best_of_n, expected_scores, usable_prompts
from codes.evaluate.bias_summary import RATES, PairOutcomes, clustered_rates, question_name, rate_sums, rates_of_sums
from codes.evaluate.ensemble_scorer import EnsembleScores
from codes.evaluate.metrics import clustered_bootstrap, clustered_rate_intervals
from codes.evaluate.paired import comparison_of
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Conversation

TERCILES = ("low", "middle", "high")
OPTIMISED = ("gold_at_largest_n", "fall")


def member_and_rule_scores(scored: EnsembleScores, penalty: float) -> tuple[list[Scores], dict[str, Scores]]:
    """(each member's standardised scores, those of every rule by its name)."""
    keys = list(scored.members)
    matrix = torch.tensor([scored.members[key] for key in keys], dtype=torch.float64)

    def column(values: torch.Tensor) -> Scores:
        return Scores(dict(zip(keys, values.tolist())))

    return [column(values) for values in matrix.T], {rule: column(combined(matrix, rule, penalty)) for rule in RULES}


def against_average_member(
    features: np.ndarray,
    clusters: Sequence[str],
    figures: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    members: int,
    *,
    seed: int,
) -> list[dict[str, dict]]:
    """For each model after the first ``members``, {name: comparison of the average member with it}.

    features: [rows, ...], what each row adds to the sums that ``figures`` maps, [samples, ...] -> [samples, models,
    names]. A comparison is that of ``codes.evaluate.paired``, whose first is the average member.
    """

    def of_sums(flat: np.ndarray) -> np.ndarray:
        return figures(flat.reshape(len(flat), *features.shape[1:]))

    def differences(flat: np.ndarray) -> np.ndarray:
        found = of_sums(flat)
        return (found[:, members:] - found[:, :members].mean(1, keepdims=True)).reshape(len(flat), -1)

    flat = features.reshape(len(features), -1)
    intervals = clustered_bootstrap(flat, clusters, differences, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = of_sums(flat.sum(0, keepdims=True))[0]
    average = values[:members].mean(0)
    return [
        {
            name: comparison_of(average[place], own[place], intervals[model * len(names) + place])
            for place, name in enumerate(names)
        }
        for model, own in enumerate(values[members:])
    ]


def rates_and_gains(
    members: Sequence[PairOutcomes], rules: Mapping[str, PairOutcomes], *, seed: int
) -> tuple[list[dict], dict[str, dict]]:
    """(each member's ``rates``, each rule's with ``against_average_member``), all of the same rows of bias pairs."""
    outcomes = [*members, *rules.values()]
    features = np.stack([rate_sums(outcome) for outcome in outcomes], axis=1)
    gains = against_average_member(features, outcomes[0].questions, rates_of_sums, RATES, len(members), seed=seed)
    rates = [{"rates": clustered_rates(outcome, seed=seed)} for outcome in outcomes]
    return rates[: len(members)], _with_gains(rules, rates[len(members) :], gains)


def _with_gains(rules: Iterable[str], figures: Sequence[dict], gains: Sequence[dict]) -> dict[str, dict]:
    return {rule: {**own, "against_average_member": gain} for rule, own, gain in zip(rules, figures, gains)}


def accuracy_by_disagreement(
    disagreements: Sequence[float], correct: Sequence[bool], questions: Sequence[str], *, seed: int
) -> dict:
    """Accuracy in the thirds of the pairs that members disagree on least, more and most; all arguments are [pairs].

    Pairs with the same disagreement are in the same third, so that thirds may differ in size or be empty.
    """
    values, right = np.asarray(disagreements, dtype=float), np.asarray(correct, dtype=bool)
    third = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
    members = third[:, None] == np.arange(len(TERCILES))
    features = np.concatenate([members, members & right[:, None]], axis=1).astype(float)

    def accuracies(sums: np.ndarray) -> np.ndarray:
        pairs, hits = np.split(sums, 2, axis=-1)
        return hits / pairs

    def low_minus_high(sums: np.ndarray) -> np.ndarray:
        found = accuracies(sums)
        return found[:, [0]] - found[:, [2]]

    counts = members.sum(0)
    intervals = clustered_rate_intervals(features, questions, accuracies, counts, seed=seed)
    (interval,) = clustered_bootstrap(features, questions, low_minus_high, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = accuracies(features.sum(0))
    found = {
        name: {
            "pairs": int(counts[place]),
            "accuracy": float(shares[place]) if counts[place] else None,
            "disagreement": [float(f(values[members[:, place]])) for f in (np.min, np.max)] if counts[place] else None,
            "ci95": intervals[place],
        }
        for place, name in enumerate(TERCILES)
    }
    return {**found, "low_against_high": comparison_of(shares[2], shares[0], interval)}


def over_optimisation(
    by_prompt: Mapping[str, Sequence[tuple[Conversation, float]]],
    members: Sequence[Scores],
    rules: Mapping[str, Scores],
    max_n: int | None,
    *,
    seed: int,
) -> dict:
    """Best of n by each member and by each rule, see ``codes.evaluate.best_of_n``; the candidates have gold scores.

    The gains are of the gold score at the largest n and of its fall from the knee (over all prompts) to there.
    """
    found, curves = [], []
    for scores in (*members, *rules.values()):
        answers = {
            prompt: [Answer(candidate.answer, (scores[candidate], gold)) for candidate, gold in candidates]
            for prompt, candidates in by_prompt.items()
        }
        found.append(best_of_n(answers, max_n, seed=seed))
        largest, used = usable_prompts(answers, max_n)
        curves.append([expected_scores(candidates, largest)[1] for candidates in used.values()])
    knees = np.array([result["knee"]["n"] - 1 for result in found])
    # [prompts, models, 1 + largest]: a prompt counts once, and adds its gold curve.
    gold = np.stack(curves, axis=1)
    features = np.concatenate([np.ones((*gold.shape[:2], 1)), gold], axis=2)

    def figures(sums: np.ndarray) -> np.ndarray:
        means = sums[..., 1:] / sums[..., :1]
        last = means[..., -1]
        return np.stack([last, means[:, np.arange(len(knees)), knees] - last], axis=-1)

    gains = against_average_member(features, list(used), figures, OPTIMISED, len(members), seed=seed)
    shown = [{"curve": result["curve"], "knee": result["knee"]} for result in found]
    return {
        "counts": found[0]["counts"],
        "largest_n": found[0]["largest_n"],
        "members": shown[: len(members)],
        "rules": _with_gains(rules, shown[len(members) :], gains),
    }


def grouped_by_prompt(candidates: Sequence[tuple[Conversation, float]]) -> dict[str, list[tuple[Conversation, float]]]:
    """The candidates and their gold scores by the name of their prompt, in order."""
    by_prompt: dict[str, list[tuple[Conversation, float]]] = {}
    for candidate, gold in candidates:
        by_prompt.setdefault(question_name(candidate.question), []).append((candidate, gold))
    return by_prompt
