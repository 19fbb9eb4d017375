"""Measure how far a reward model is moved by one bias, or by all of them.

    python -m codes.evaluate.eval_rm all --model_path output/my_reward_model
    python -m codes.evaluate.eval_rm beauty --scorer length --data_dir data/eval
    python -m codes.evaluate.eval_rm position --scorer judge --base_url http://127.0.0.1:8000/v1 --model_name M

Each row of DATA_DIR/<bias>_bias.jsonl is scored as two original and two rewritten answers; every distinct conversation
is scored once. Results go to OUTPUT_DIR/<name>: <bias>_<name>.jsonl (rows with scores), <bias>_summary_<name>.json, and
with `all` all_biases_summary_<name>.json. BIAS may be one of your own: any name with a file in DATA_DIR. `all`
evaluates these too and lists them under `other_biases`; the averages stay those of the built-in biases, so that they
mean the same in every folder, unless --average_other_biases is given.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codes.common.cli import EXIT_DONE, command_parser, run_main
from codes.common.records import (
    EVALUATED_BIASES,
    JUDGE_BIASES,
    REFINEMENT_BIAS,
    InputError,
    bias_name_problem,
    write_json,
    write_jsonl,
)
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell
from codes.common.run_info import write_run_info
from codes.evaluate.api import Preferences
from codes.evaluate.bias_data import REFINEMENT_REQUEST, BiasData, bias_file, other_biases, read_bias
from codes.evaluate.bias_summary import (
    PairOutcomes,
    average_rates,
    average_summary,
    length_outcomes,
    pair_outcomes,
    pairwise_rates,
    pairwise_summary,
    question_name,
    refinement_summary,
)
from codes.evaluate.ensemble_scorer import EnsembleScores
from codes.evaluate.judge_biases import (
    JUDGES_ONLY,
    JudgeBiasData,
    counts_without_verdict,
    evaluate_judge_bias,
    judge_bias_text,
    missing_verdicts_text,
    read_judge_bias,
    summed_counts,
    with_verdicts,
)
from codes.evaluate.ranks import is_first_rank
from codes.evaluate.results import (
    add_result_flags,
    model_name,
    model_reference,
    refuse_other_results,
    refuse_other_scorer,
    result_folder,
    stored_configuration,
)
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Scorer, add_scorer_flags, check_scorer_flags, gives_logits, load_scorer
from codes.evaluate.scoring import exit_status, score_pairs, self_check_if_asked

ALL = "all"
NO_LOGIT = "the scorer gives no logit, which the refinement-aware figures are made from"


@dataclass(frozen=True)
class ResultFiles:
    """The names of the result files of one model."""

    folder: Path
    name: str

    def rows(self, bias: str) -> Path:
        return self.folder / f"{bias}_{self.name}.jsonl"

    def summary(self, bias: str) -> Path:
        return self.folder / f"{bias}_summary_{self.name}.json"

    @property
    def all_biases(self) -> Path:
        return self.folder / f"all_biases_summary_{self.name}.json"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    check_scorer_flags(args)
    name = model_name(args)
    files = ResultFiles(result_folder(args, name), name)
    biases, skipped = _available_biases(args)
    data = [_read(args, bias) for bias in biases]
    scorer = load_scorer(args)
    configurations = {part.bias: _configuration(part, scorer, args) for part in data}
    over_all = _configuration_over_all(data, scorer, args)
    _refuse_other_results(files, scorer, configurations, over_all if args.bias == ALL else None)

    conversations = [conversation for part in data for conversation in part.all_conversations()]
    pairs = [pair for part in data for pair in part.pairs]
    scores = score_pairs(scorer, pairs, None if args.no_cache else files.folder, alone=conversations)
    if not is_first_rank():
        return EXIT_DONE
    checked = self_check_if_asked(args, scorer, conversations, scores)
    summaries, outcomes = {}, {}
    for part in data:
        rows, figures, outcome = evaluate_bias(part, scores, scorer, args.seed)
        if outcome is not None:
            outcomes[part.bias] = outcome
        if part.bias == REFINEMENT_BIAS:
            figures["refinement_request"] = args.refinement_request
        facts = _provenance(part, scores, scorer)
        summaries[part.bias] = {
            "schema_version": SCHEMA_VERSION,
            "eval_model": name,
            "bias_type": part.bias,
            **figures,
            **checked,
            "provenance": facts,
        }
        write_run_info(files.rows(part.bias), configurations[part.bias], model=model_reference(args), **facts)
        write_jsonl(files.rows(part.bias), rows)
        write_json(files.summary(part.bias), summaries[part.bias])
    average = None
    if args.bias == ALL and summaries:
        averaged = [part for part in data if part.bias in EVALUATED_BIASES or args.average_other_biases]
        average = _average(averaged, outcomes, skipped, scorer, args.seed)
        if args.scorer == "judge" and average is not None:
            average["counts"] |= summed_counts([summaries[bias]["counts"] for bias in average["biases_averaged"]])
        write_run_info(files.all_biases, over_all, model=model_reference(args), **scorer.facts)
        write_json(files.all_biases, all_biases_summary(summaries, average))
    _print_results(name, summaries, average, skipped, files.folder)
    return exit_status(scorer)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.eval_rm")
    parser.add_argument(
        "bias",
        metavar="BIAS",
        help=f"one of {', '.join(EVALUATED_BIASES)}; of judges {' or '.join(JUDGE_BIASES)}; all; or your own",
    )
    parser.add_argument("--data_dir", default="data/eval", help="folder with <bias>_bias.jsonl files")
    parser.add_argument(
        "--refinement_request", default=REFINEMENT_REQUEST, help="the user turn that asks for a polished answer"
    )
    parser.add_argument(
        "--average_other_biases",
        action="store_true",
        help="let the averages of `all` count biases of your own like the built-in ones",
    )
    add_result_flags(parser)
    add_scorer_flags(parser)
    args = parser.parse_args(argv)
    if args.bias in JUDGE_BIASES and (args.scorer, args.judge_mode or "pairwise") != ("judge", "pairwise"):
        raise InputError(f"BIAS {args.bias!r}: {JUDGES_ONLY}")
    if args.bias not in (ALL, *EVALUATED_BIASES, *JUDGE_BIASES) and (problem := bias_name_problem(args.bias)):
        raise InputError(
            f"BIAS {args.bias!r}: is not one of {', '.join(EVALUATED_BIASES)}, all; as your own it {problem}"
        )
    if not args.refinement_request.strip():
        raise InputError("--refinement_request: is empty")
    return args


def _available_biases(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The biases to evaluate, and why each of the others is skipped."""
    folder, wanted = Path(args.data_dir), (args.bias,)
    if args.bias in JUDGE_BIASES:
        return [args.bias], {}
    misnamed = {}
    if args.bias == ALL:
        others, misnamed = other_biases(folder)
        wanted = (*EVALUATED_BIASES, *others)
    present = [bias for bias in wanted if bias_file(folder, bias).is_file()]
    if not present:
        what = "has no <bias>_bias.jsonl file" if args.bias == ALL else f"has no {args.bias}_bias.jsonl"
        if args.bias not in (ALL, *EVALUATED_BIASES):
            raise InputError(f"BIAS {args.bias!r}: is not one of {', '.join(EVALUATED_BIASES)}, and {folder} {what}")
        raise InputError(f"--data_dir {folder}: {what}")
    skipped = {bias: f"{bias_file(folder, bias).name} is absent" for bias in wanted if bias not in present} | misnamed
    if not gives_logits(args) and REFINEMENT_BIAS in present:
        present.remove(REFINEMENT_BIAS)
        skipped[REFINEMENT_BIAS] = NO_LOGIT
    if args.bias == ALL and args.scorer == "judge" and present:
        if args.judge_mode == "pairwise":
            present += JUDGE_BIASES
        else:
            skipped |= dict.fromkeys(JUDGE_BIASES, JUDGES_ONLY)
    return present, skipped


def _read(args: argparse.Namespace, bias: str) -> BiasData | JudgeBiasData:
    folder = Path(args.data_dir)
    return read_judge_bias(folder, bias) if bias in JUDGE_BIASES else read_bias(folder, bias, args.refinement_request)


# --- Results -----------------------------------------------------------------------------------------------------


def evaluate_bias(
    part: BiasData | JudgeBiasData, scores: Scores | Preferences, scorer: Scorer, seed: int
) -> tuple[list[dict], dict, PairOutcomes | None]:
    """(rows with scores, figures of the summary, outcomes by row where averages may count them) of one bias."""
    if part.bias in JUDGE_BIASES:
        return *evaluate_judge_bias(part, scores, seed), None
    if part.bias == REFINEMENT_BIAS:
        values = [[scores[conversation] for conversation in row] for row in part.conversations]
        questions = [question_name(row["question"]) for row in part.rows]
        alone, polished = zip(*values)
        rows = [
            {**row, "score_no_context": no_context, "score_with_context": with_context}
            for row, (no_context, with_context) in zip(part.rows, values)
        ]
        return rows, refinement_summary(questions, alone, polished, seed=seed), None
    original, biased = ([list(scores.pair(pair)) for pair in pairs] for pairs in (part.original, part.rewritten))
    outcome = pair_outcomes(part.rows, original, biased)
    rows = [
        {
            **row,
            "scores_original": original[i],
            "scores_biased": biased[i],
            "original_evaluation_correct": bool(outcome.original_correct[i]),
            "bias_evaluation_correct": bool(outcome.biased_correct[i]),
        }
        for i, row in enumerate(part.rows)
    ]
    figures = pairwise_summary(outcome, seed=seed)
    if scorer.identity["scorer"] != "length":
        figures["length_baseline"] = pairwise_rates(length_outcomes(part.rows))
    if scorer.identity["scorer"] == "judge":
        figures["counts"] |= counts_without_verdict(scores, part.original, part.rewritten, figures["counts"])
    if isinstance(scores, EnsembleScores):
        spread = zip(rows, scores.disagreements(part.original), scores.disagreements(part.rewritten))
        rows = [{**row, "disagreement_original": o, "disagreement_biased": b} for row, o, b in spread]
    if isinstance(scores, Preferences):
        rows, figures["position_bias"] = with_verdicts(rows, part.original, part.rewritten, scores, seed)
    return rows, figures, outcome


def all_biases_summary(summaries: dict[str, dict], average: dict | None) -> dict:
    """Built-in bias -> its summary, the averages, and the other biases' summaries, if any, under names of their own."""
    built_in = {bias: summary for bias, summary in summaries.items() if bias in EVALUATED_BIASES}
    judge = {bias: summary for bias, summary in summaries.items() if bias in JUDGE_BIASES}
    others = {bias: summary for bias, summary in summaries.items() if bias not in (*EVALUATED_BIASES, *JUDGE_BIASES)}
    named = {name: listed for name, listed in (("other_biases", others), ("judge_biases", judge)) if listed}
    return {**built_in, **named, "average_across_all_biases": average}


def _average(
    data: list[BiasData], outcomes: dict[str, PairOutcomes], skipped: dict[str, str], scorer: Scorer, seed: int
) -> dict | None:
    """The summary over all pairwise biases in ``data``; null where there is none."""
    outcomes = {part.bias: outcomes[part.bias] for part in data if part.bias in outcomes}
    if not outcomes:
        return None
    average = {
        "schema_version": SCHEMA_VERSION,
        "biases_averaged": list(outcomes),
        **average_summary(outcomes, seed=seed),
    }
    if scorer.identity["scorer"] != "length":
        baselines = {part.bias: length_outcomes(part.rows) for part in data if part.bias in outcomes}
        average["length_baseline"] = average_rates(baselines, seed=seed)
    return {**average, "skipped": skipped, "provenance": {**scorer.facts, **scorer.identity}}


def _configuration(part: BiasData | JudgeBiasData, scorer: Scorer, args: argparse.Namespace) -> dict:
    """What makes a result another one: weights, template, max_length, dtype or scorer, and the data."""
    configuration = {**scorer.identity, "data_sha256": part.sha256}
    if part.bias == REFINEMENT_BIAS:
        configuration["refinement_request"] = args.refinement_request
    return configuration


def _configuration_over_all(data: list[BiasData], scorer: Scorer, args: argparse.Namespace) -> dict:
    """What makes the summary over all biases another one."""
    hashes = {_data_key(part.bias): part.sha256 for part in data}
    return {**scorer.identity, "average_other_biases": args.average_other_biases, **hashes}


def _data_key(bias: str) -> str:
    return f"data_sha256 of {bias}"


def _refuse_other_results(
    files: ResultFiles, scorer: Scorer, configurations: dict[str, dict], over_all: dict | None
) -> None:
    """``over_all`` is the configuration of the summary over all biases, where one is to be written.

    It may cover more biases than the one that is there, but not fewer and none on other data.
    """
    for bias, configuration in configurations.items():
        refuse_other_results([files.rows(bias), files.summary(bias)], configuration)
    refuse_other_scorer(files.folder, scorer.identity)
    if over_all is not None and files.all_biases.exists():
        refuse_other_results([files.all_biases], _as_far_as_stored(over_all, files.all_biases, configurations))


def _as_far_as_stored(over_all: dict, path: Path, biases: Iterable[str]) -> dict:
    stored = stored_configuration(path)
    added = {key for bias in biases if (key := _data_key(bias)) not in stored}
    return {key: value for key, value in over_all.items() if key not in added}


def _provenance(part: BiasData | JudgeBiasData, scores: Scores | Preferences, scorer: Scorer) -> dict:
    data = {"data_file": part.data_file, "data_sha256": part.sha256}
    return {**scorer.facts, **scorer.identity, **data, **scores.truncation(c.key for c in part.all_conversations())}


# --- What is printed ---------------------------------------------------------------------------------------------


def _print_results(name: str, summaries: dict, average: dict | None, skipped: dict[str, str], folder: Path) -> None:
    apart = (REFINEMENT_BIAS, *JUDGE_BIASES)
    pairwise = {bias: summary for bias, summary in summaries.items() if bias not in apart}
    averaged = pairwise if average is None else average["biases_averaged"]
    table = [_table_row(bias, summary, summary) for bias, summary in pairwise.items() if bias in averaged]
    if average is not None:
        renamed = {
            key: average[key]
            for key in ("total_records_evaluated", "bias_sensitivity_rate", "counts", "robust_accuracy", "ci95")
        }
        renamed["original_pair_accuracy"] = average["average_original_pair_accuracy"]
        renamed["biased_pair_accuracy"] = average["average_biased_pair_accuracy"]
        table.append(_table_row("all (pooled)", renamed, average))
    table += [_table_row(bias, summary, summary) for bias, summary in pairwise.items() if bias not in averaged]
    if table:
        print(f"{name}: accuracy on original and on biased pairs, bias sensitivity rate (BSR) with 95% interval")
        print(aligned_table(("bias", "rows", "original", "biased", "BSR", "robust", "ties", "BSR of length"), table))
    if refinement := summaries.get(REFINEMENT_BIAS):
        print(
            f"{REFINEMENT_BIAS}: {refinement['total_records_evaluated']} rows, score alone "
            f"{refinement['average_score_no_context']:.3f}, as a polished version "
            f"{refinement['average_score_with_context']:.3f}, mean improvement "
            f"{refinement['average_improvement_rate_with_context']:+.4f}"
        )
    if missing := missing_verdicts_text(pairwise.values()):
        print(missing)
    for bias in JUDGE_BIASES:
        if bias in summaries:
            print(judge_bias_text(bias, summaries[bias]))
    for bias, reason in skipped.items():
        print(f"skipped {bias}: {reason}")
    if summaries:
        print(f"results: {folder}")


def _table_row(label: str, rates: dict, summary: dict) -> tuple[str, ...]:
    counts = rates["counts"]
    baseline = summary.get("length_baseline", rates)
    return (
        label,
        str(rates["total_records_evaluated"]),
        rate_cell(rates["original_pair_accuracy"]),
        rate_cell(rates["biased_pair_accuracy"]),
        rate_cell(rates["bias_sensitivity_rate"], rates["ci95"]["bias_sensitivity_rate"]),
        rate_cell(rates["robust_accuracy"]),
        f"{counts['ties_original']}/{counts['ties_biased']}",
        rate_cell(baseline["bias_sensitivity_rate"]),
    )


if __name__ == "__main__":
    run_main(main)
