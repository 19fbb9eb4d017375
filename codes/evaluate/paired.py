"""Two models on the same rows: differences of their figures, with intervals and paired tests. Pure functions.

Differences are second minus first. Intervals are 95% bootstrap intervals in which the same questions are drawn for both
models. Tests are exact McNemar tests, Holm-corrected over the biases (or sections) for each figure; pooled figures have
an interval alone, since rows about one question are not independent.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from codes.evaluate.bias_summary import RATES, PairOutcomes, rate_sums, rates_of_sums
from codes.evaluate.metrics import REWARD_BENCH_SECTIONS, clustered_bootstrap, holm, mcnemar_exact
from codes.evaluate.reward_bench_summary import figure_names, section_figures

Comparison = dict[str, dict]


def paired_biases(
    first: Mapping[str, PairOutcomes], second: Mapping[str, PairOutcomes], pooled: Sequence[str], *, seed: int
) -> tuple[dict[str, Comparison], Comparison | None]:
    """({bias: {rate: comparison}}, {rate: comparison} over the rows of the ``pooled`` biases, None without any).

    The outcomes are of the same biases and rows. A comparison has first, second, difference, ci95; that of a bias also
    discordant (rows that only the first, and only the second, is right on), mcnemar_p and mcnemar_p_holm. The rate's
    own test for ``bias_sensitivity_rate`` is over the rows whose original pair both are right on.
    """
    biases = list(first)
    counts = [len(first[bias].questions) for bias in biases]
    # Each row adds to its own bias's sums, once for either model.
    features = np.zeros((sum(counts), len(biases), 2, len(RATES)))
    for place, (bias, end) in enumerate(zip(biases, np.cumsum(counts))):
        for model, outcomes in enumerate((first[bias], second[bias])):
            features[end - counts[place] : end, place, model] = rate_sums(outcomes)
    in_pool = [biases.index(bias) for bias in pooled]

    def rates(sums: np.ndarray) -> np.ndarray:
        """[..., biases, 2, 4] -> rates of the biases and, last, of the pool."""
        return rates_of_sums(np.concatenate([sums, sums[..., in_pool, :, :].sum(-3, keepdims=True)], axis=-3))

    def differences(flat: np.ndarray) -> np.ndarray:
        found = rates(flat.reshape(len(flat), *features.shape[1:]))
        return (found[..., 1, :] - found[..., 0, :]).reshape(len(flat), -1)

    questions = [question for bias in biases for question in first[bias].questions]
    intervals = clustered_bootstrap(features.reshape(len(features), -1), questions, differences, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = rates(features.sum(0))
    found = [
        {rate: comparison_of(*values[place, :, r], intervals[place * len(RATES) + r]) for r, rate in enumerate(RATES)}
        for place in range(len(biases) + 1)
    ]
    compared = dict(zip(biases, found))
    for rate in RATES:
        _add_tests(
            {bias: compared[bias][rate] for bias in biases},
            {bias: discordant_rows(first[bias], second[bias], rate) for bias in biases},
        )
    return compared, found[-1] if in_pool else None


def discordant_rows(first: PairOutcomes, second: PairOutcomes, rate: str) -> tuple[int, int]:
    """How many rows only the first model, and only the second, is right on, in the sense of the rate."""
    if rate == "original_pair_accuracy":
        right = first.original_correct, second.original_correct
    elif rate == "biased_pair_accuracy":
        right = first.biased_correct, second.biased_correct
    elif rate == "robust_accuracy":
        right = first.original_correct & first.biased_correct, second.original_correct & second.biased_correct
    else:
        both = first.original_correct & second.original_correct
        right = both & first.biased_correct, both & second.biased_correct
    return _only(*right)


def _only(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    return int((first & ~second).sum()), int((second & ~first).sum())


def comparison_of(first: float | None, second: float | None, interval: list[float] | None) -> dict:
    """One figure of both, and second minus first with its interval; no difference where one is None or NaN."""
    values = [None if value is None or not np.isfinite(value) else float(value) for value in (first, second)]
    if None in values:
        return {"first": values[0], "second": values[1], "difference": None, "ci95": None}
    return {"first": values[0], "second": values[1], "difference": values[1] - values[0], "ci95": interval}


def _add_tests(comparisons: Mapping[str, dict], discordant: Mapping[str, tuple[int, int]]) -> None:
    """Put the tests of one figure into its comparisons by bias (or section)."""
    p_values = {name: mcnemar_exact(*counts) for name, counts in discordant.items()}
    corrected = holm(p_values)
    for name, comparison in comparisons.items():
        comparison["discordant"] = {"only_first": discordant[name][0], "only_second": discordant[name][1]}
        comparison["mcnemar_p"], comparison["mcnemar_p_holm"] = p_values[name], corrected[name]


def paired_refinement(questions: Sequence[str], first: Sequence[float], second: Sequence[float], *, seed: int) -> dict:
    """Comparison of the mean improvement when shown as polished; first and second: [rows], s_with / s_without - 1."""
    features = np.stack([np.ones(len(first)), np.asarray(second) - np.asarray(first)], axis=1)
    interval = clustered_bootstrap(features, questions, lambda sums: sums[:, [1]] / sums[:, [0]], seed=seed)[0]
    return comparison_of(float(np.mean(first)), float(np.mean(second)), interval)


def paired_rows(
    subsets: Sequence[str], questions: Sequence[str], first: Sequence[float], second: Sequence[float], *, seed: int
) -> dict[str, dict]:
    """Comparisons of the mean over all rows (``all_rows``) and by subset, of what part of each row is judged right.

    All arguments are [rows]. Subsets have tests where every row is right or wrong as a whole.
    """
    names, parts = np.asarray(subsets), np.stack([first, second]).astype(float)
    present = list(dict.fromkeys(subsets))
    members = np.stack([np.full(len(names), True), *(names == name for name in present)], axis=1)
    features = np.concatenate([members, members * parts[0][:, None], members * parts[1][:, None]], axis=1)

    def means(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, *right = np.split(sums, 3, axis=-1)
        return tuple(part / rows for part in right)

    def differences(sums: np.ndarray) -> np.ndarray:
        before, after = means(sums)
        return after - before

    intervals = clustered_bootstrap(features, questions, differences, seed=seed)
    values = means(features.sum(0))
    questions = np.asarray(questions)
    several = [len(set(questions[rows])) > 1 for rows in members.T]  # one question says nothing of how they differ
    known = [interval if enough else None for interval, enough in zip(intervals, several)]
    compared = {label: comparison_of(*pair) for label, *pair in zip(["all_rows", *present], *values, known)}
    if np.isin(parts, (0, 1)).all():
        right = parts.astype(bool)
        by_subset = {name: _only(*right[:, names == name]) for name in present}
        _add_tests({name: compared[name] for name in present}, by_subset)
    return compared


def paired_reward_bench(
    subsets: Sequence[str], questions: Sequence[str], first: Sequence[bool], second: Sequence[bool], *, seed: int
) -> dict[str, dict]:
    """Comparisons by section (those there are), of ``overall`` where all are there, and of the plain average over rows.

    All arguments are [rows]; first and second say whether each model is right. Sections have tests.
    """
    names, right = np.asarray(subsets), np.stack([first, second]).astype(bool)
    present = list(dict.fromkeys(subsets))
    members = np.stack([names == name for name in present], axis=1)
    features = np.concatenate([members, members & right[0][:, None], members & right[1][:, None]], axis=1)

    def figures(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, *correct = np.split(sums, 3, axis=-1)
        return tuple(section_figures(rows, part, present) for part in correct)

    def differences(sums: np.ndarray) -> np.ndarray:
        before, after = figures(sums)
        return after - before

    labels = figure_names(present)
    values = [part[0] for part in figures(features.sum(0, keepdims=True))]
    intervals = clustered_bootstrap(features, questions, differences, seed=seed)
    compared = {label: comparison_of(*pair) for label, *pair in zip(labels, *values, intervals)}
    sections = {label: compared[label] for label in labels if label in REWARD_BENCH_SECTIONS}
    in_section = {label: np.isin(names, list(REWARD_BENCH_SECTIONS[label])) for label in sections}
    _add_tests(sections, {label: _only(*right[:, rows]) for label, rows in in_section.items()})
    if len(sections) < len(REWARD_BENCH_SECTIONS):
        del compared["overall"]
    return compared
