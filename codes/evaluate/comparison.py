"""Two result folders on the same rows: every difference of their figures, and the names these go by."""

import re
from collections.abc import Mapping

import numpy as np

from codes.common.records import PAIRWISE_BIASES, REFINEMENT_BIAS, InputError
from codes.common.result_files import SCHEMA_VERSION
from codes.evaluate.bias_summary import PairOutcomes, question_name
from codes.evaluate.metrics import refinement_score
from codes.evaluate.paired import paired_biases, paired_refinement, paired_reward_bench, paired_rows
from codes.evaluate.read_results import (
    BENCHMARK_FIGURES,
    PAIR_DATA,
    REFINEMENT_DATA,
    REWARD_BENCH_DATA,
    Results,
    require_same_rows,
)
from codes.evaluate.scored_pairs import QUESTION_FIELDS

FORMAT = "contrastrm-comparison"
# What a rate is called in conditions and tables.
SHORT_NAMES = {
    "original_pair_accuracy": "original_accuracy",
    "biased_pair_accuracy": "biased_accuracy",
    "bias_sensitivity_rate": "bsr",
    "robust_accuracy": "robust_accuracy",
}


def compare(before: Results, after: Results, *, seed: int) -> dict:
    """All differences of the two. Raises InputError where they are on other data or share no evaluation."""
    shared = [bias for bias in before.biases if bias in after.biases]
    with_reward_bench = bool(before.reward_bench and after.reward_bench)
    benchmarks = [stem for stem in before.benchmarks if stem in after.benchmarks]
    if not shared and not with_reward_bench and not benchmarks:
        raise InputError(f"{after.folder}: has no evaluation in common with {before.folder}")
    pairwise = [bias for bias in shared if bias != REFINEMENT_BIAS]
    rows = {bias: _same_pairs(before, after, bias) for bias in pairwise}
    outcomes = [{bias: pair[model] for bias, pair in rows.items()} for model in (0, 1)]
    by_bias, pooled = {}, None
    if pairwise:
        pool = [bias for bias in pairwise if _is_averaged(bias, before, after)]
        by_bias, pooled = paired_biases(*outcomes, pool, seed=seed)
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "first": before.name,
        "second": after.name,
        "only_first": [bias for bias in before.biases if bias not in shared],
        "only_second": [bias for bias in after.biases if bias not in shared],
        "rows": {bias: len(pair[0].questions) for bias, pair in rows.items()},
        "biases": by_bias,
        "pooled": pooled,
        "refinement_aware": _compare_refinement(before, after, seed) if REFINEMENT_BIAS in shared else None,
        "reward_bench": _compare_reward_bench(before, after, seed) if with_reward_bench else None,
        "benchmarks": {stem: _compare_benchmark(before, after, stem, seed) for stem in benchmarks},
    }


def _is_averaged(bias: str, *results: Results) -> bool:
    """Whether the bias counts in the averages of all results that have averages; without any, built-in ones do."""
    return all(bias in (r.overall.get("biases_averaged") or PAIRWISE_BIASES) for r in results)


def _same_pairs(before: Results, after: Results, bias: str) -> tuple[PairOutcomes, PairOutcomes]:
    rows = before.rows(bias), after.rows(bias)
    require_same_rows(before.row_file(bias), rows[0], after.row_file(bias), rows[1], PAIR_DATA)
    return before.outcomes(bias), after.outcomes(bias)


def _compare_refinement(before: Results, after: Results, seed: int) -> dict:
    rows = before.rows(REFINEMENT_BIAS), after.rows(REFINEMENT_BIAS)
    files = before.row_file(REFINEMENT_BIAS), after.row_file(REFINEMENT_BIAS)
    require_same_rows(files[0], rows[0], files[1], rows[1], REFINEMENT_DATA)
    gains = [
        [refinement_score(row["score_with_context"]) / refinement_score(row["score_no_context"]) - 1 for row in part]
        for part in rows
    ]
    return paired_refinement([question_name(row["question"]) for row in rows[0]], *gains, seed=seed)


def _compare_reward_bench(before: Results, after: Results, seed: int) -> dict:
    rows = before.reward_bench_rows(), after.reward_bench_rows()
    require_same_rows(before.reward_bench_file, rows[0], after.reward_bench_file, rows[1], REWARD_BENCH_DATA)
    right = [[row["chosen_score"] > row["rejected_score"] for row in part] for part in rows]
    questions = [question_name(row["prompt"]) for row in rows[0]]
    return paired_reward_bench([row["subset"] for row in rows[0]], questions, *right, seed=seed)


def _compare_benchmark(before: Results, after: Results, stem: str, seed: int) -> dict:
    rows = before.benchmark_rows(stem), after.benchmark_rows(stem)
    data = [field for field in rows[0][0] if field not in BENCHMARK_FIGURES]
    require_same_rows(before.benchmark_file(stem), rows[0], after.benchmark_file(stem), rows[1], data)
    # A row of RM-Bench holds nine comparisons, of others one.
    right = [[float(np.mean(row["correct"])) for row in part] for part in rows]
    questions = [question_name(next((row[f] for f in QUESTION_FIELDS if f in row), i)) for i, row in enumerate(rows[0])]
    return paired_rows([row["subset"] for row in rows[0]], questions, *right, seed=seed)


def by_name(comparison: Mapping) -> dict[str, dict]:
    """Every comparison by the name of its figure."""
    found = {SHORT_NAMES[rate]: part for rate, part in (comparison["pooled"] or {}).items()}
    for bias, parts in comparison["biases"].items():
        found |= {f"{bias}.{SHORT_NAMES[rate]}": part for rate, part in parts.items()}
    if comparison["refinement_aware"]:
        found[f"{REFINEMENT_BIAS}.improvement"] = comparison["refinement_aware"]
    for figure, part in (comparison["reward_bench"] or {}).items():
        found[f"reward_bench.{section_name(figure)}"] = part
    for stem, parts in comparison["benchmarks"].items():
        found |= {f"{stem}.{section_name(figure)}": part for figure, part in parts.items()}
    return found


def section_name(section: str) -> str:
    """A section or subset as conditions and the command line write it: ``chat-hard``."""
    return re.sub(r"[^\w-]+", "-", section.lower()).strip("-")
