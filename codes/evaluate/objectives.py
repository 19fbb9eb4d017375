"""From several scores of each candidate answer to one decision, and what each objective costs in the others.

    python -m codes.evaluate.objectives candidates.jsonl --weights helpfulness=1,safety=0.5 \\
        --constraint "safety >= 0" -o objectives.json --figure pareto.png --rows chosen.jsonl
    python -m codes.evaluate.objectives candidates.jsonl --weights_file weights.json --group_field category
    python -m codes.evaluate.objectives candidates.jsonl --fit pairs.jsonl --save_weights weights.json

A row is one answer: prompt and response (or messages), with its scores in `head_scores` ({name: number}), or in number
fields that --fields names; the rows of a prompt are its candidates. In every objective more is better. The answer with
the largest weighted sum is chosen, after the --constraint's: an answer that misses one loses against all that meet it,
and where none does the least violation wins; the first constraint comes first. Among equals one on the Pareto front is
taken, then the earlier one. Weights are given, by group of prompts (WEIGHTS_FILE: {group: {objective: weight}}, with
`default` for rows without the field), or fitted to preferences: rows with `chosen_scores` and `rejected_scores`
({name: number}) and their prompt, by P(chosen > rejected) = sigmoid(weights . score difference). --rows adds reward,
on_pareto_front, pareto_rank, meets_constraints and rank_in_prompt (1: chosen) to every row.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from codes.common.cli import (
    command_parser,
    positive_float,
    positive_int,
    printable,
    random_seed,
    require_files,
    run_main,
)
from codes.common.figure_files import refuse_foreign_figure
from codes.common.records import InputError, file_sha256, iter_jsonl, write_json, write_jsonl
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell, refuse_other_format
from codes.common.run_info import write_run_info
from codes.evaluate.objective_choice import parse_constraints
from codes.evaluate.objective_figure import draw_objectives
from codes.evaluate.objective_scores import (
    DEFAULT_GROUP,
    parse_weights,
    read_candidates,
    read_preferences,
    read_weights,
    weight_vectors,
)
from codes.evaluate.objective_summary import Decision, decide, summary
from codes.evaluate.objective_weights import MOST_NON_NEGATIVE, WithoutMaximum, fit
from codes.evaluate.results import refuse_other_results, warn_of_replaced_fields

FORMAT = "contrastrm-objectives"
ADDED_FIELDS = ("reward", "on_pareto_front", "pareto_rank", "meets_constraints", "rank_in_prompt")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    given = _given_weights(args)
    candidates = read_candidates(args.file, args.fields, args.group_field, list(given))
    objectives = candidates.objectives
    _check_names(args, objectives)
    constraints = parse_constraints(args.constraint, objectives)
    fitted = _fitted_weights(args, objectives) if args.fit is not None else None
    by_group = given or {DEFAULT_GROUP: fitted["weights"] if fitted else dict.fromkeys(objectives, 1.0)}
    weights = weight_vectors(by_group, objectives, _source(args))
    settings = {
        "weights": _source(args).split()[0].lstrip("-"),
        "constraints": list(map(str, constraints)),
        "group_field": args.group_field,
        "seed": args.seed,
    }
    decides = {"objectives": list(objectives), "weights": by_group, "data_sha256": file_sha256(args.file)}
    outputs = {args.rows: decides | {name: settings[name] for name in ("constraints", "group_field")}}
    if fitted:
        made = {"objectives": list(objectives), "data_sha256": file_sha256(args.fit)}
        outputs[args.save_weights] = made | {name: fitted[name] for name in ("ridge", "non_negative")}
    outputs.pop(None, None)
    for path, configuration in outputs.items():
        refuse_other_results([path], configuration)

    decision = decide(candidates, weights, constraints)
    files = [path for path in (args.file, args.weights_file, args.fit) if path is not None]
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "objectives": list(objectives),
        **summary(candidates, weights, constraints, decision, seed=args.seed),
        "fit": fitted,
        "settings": settings,
        "provenance": {"files": [{"file": path.name, "sha256": file_sha256(path)} for path in files]},
    }
    for path, configuration in outputs.items():
        write_run_info(path, configuration)
    if args.rows is not None:
        write_rows(args.file, decision, args.rows)
    if args.save_weights is not None:
        write_json(args.save_weights, by_group)
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.figure is not None:
        draw_objectives(result, candidates, decision, constraints, args.figure)
    print_objectives(result)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.objectives")
    parser.add_argument("file", type=Path, metavar="FILE", help="JSONL of answers with several scores, one a row")
    parser.add_argument(
        "--fields", nargs="+", metavar="NAME", help="the objectives (default: all in the first row's head_scores)"
    )
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--weights", metavar="NAME=NUMBER,...", help="0 for objectives not named (default: 1 for all)")
    one_of.add_argument("--weights_file", type=Path, help="JSON of {group: {objective: weight}}")
    one_of.add_argument("--fit", type=Path, metavar="PAIRS", help="fit the weights to this JSONL of preferences")
    parser.add_argument("--group_field", help="the rows' field with the group of WEIGHTS_FILE that their prompt is in")
    parser.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="CONDITION",
        help="OBJECTIVE >= NUMBER or <=, ahead of all weights; repeatable, the first one first",
    )
    of_fit = parser.add_argument_group("with --fit")
    of_fit.add_argument("--save_weights", type=Path, help="write the fitted weights here, for --weights_file")
    of_fit.add_argument(
        "--ridge",
        type=positive_float,
        help="take ridge / 2 x the squared weights (in units of each objective's root mean square difference) off the "
        "mean log likelihood, which then has a maximum for separable preferences too",
    )
    of_fit.add_argument("--non_negative", action="store_true", help="fit no weight below 0")
    of_fit.add_argument("--folds", type=positive_int, default=5, help="parts that the questions are held out in")
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures as JSON")
    parser.add_argument("--figure", type=Path, help="draw fronts and trade-offs into this .png, .svg or .pdf file")
    parser.add_argument("--rows", type=Path, help="write every row with its reward, its rank and what else is found")
    parser.add_argument("--seed", type=random_seed, default=42, help="of folds and of the bootstrap intervals")
    args = parser.parse_args(argv)
    for flag in ("save_weights", "ridge", "non_negative", "folds"):
        if args.fit is None and getattr(args, flag) != parser.get_default(flag):
            raise InputError(f"--{flag}: is for weights that are fitted; add --fit PAIRS")
    if args.group_field is not None and args.weights_file is None:
        raise InputError("--group_field: is for weights by group; add --weights_file")
    if args.folds < 2:
        raise InputError("--folds 1: leaves no pairs to fit to; at least 2 are needed")
    require_files([args.file], "FILE")
    require_files([path for path in (args.weights_file,) if path], "--weights_file")
    require_files([path for path in (args.fit,) if path], "--fit")
    outputs = [path.resolve() for path in (args.output_file, args.figure, args.rows, args.save_weights) if path]
    if repeated := next((path for path in outputs if outputs.count(path) > 1), None):
        raise InputError(f"{repeated}: is the output of two flags; one would replace the other")
    for flag in ("rows", "save_weights"):
        if (path := getattr(args, flag)) is not None and path.is_dir():
            raise InputError(f"--{flag} {path}: is a folder")
    refuse_other_format(args.output_file, FORMAT)
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


def _source(args: argparse.Namespace) -> str:
    """Where the weights come from, the flag first."""
    if args.fit is not None or args.weights_file is not None:
        return f"--fit {args.fit}" if args.fit is not None else f"--weights_file {args.weights_file}"
    return "equal" if args.weights is None else "--weights"


def _given_weights(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Weights by group as they were given; empty without any. Raises InputError for several groups without a field."""
    if args.weights is not None:
        return {DEFAULT_GROUP: parse_weights(args.weights)}
    if args.weights_file is None:
        return {}
    by_group = read_weights(args.weights_file)
    if args.group_field is None and list(by_group) != [DEFAULT_GROUP]:
        raise InputError(
            f"{args.weights_file}: has weights of {', '.join(by_group)}; name the rows' field with --group_field"
        )
    return by_group


def _check_names(args: argparse.Namespace, objectives: Sequence[str]) -> None:
    if args.fields and args.rows and (taken := next((name for name in objectives if name in ADDED_FIELDS), None)):
        raise InputError(f"--fields {taken}: --rows would replace this field by its own")
    if args.figure is not None and len(objectives) == 1:
        raise InputError(f"--figure {args.figure}: {objectives[0]!r} is the only objective; there is nothing to trade")


def _fitted_weights(args: argparse.Namespace, objectives: Sequence[str]) -> dict:
    how = {"ridge": args.ridge or 0.0, "non_negative": args.non_negative}
    if args.non_negative and len(objectives) > MOST_NON_NEGATIVE:
        raise InputError(f"--non_negative: is for {MOST_NON_NEGATIVE} objectives at most, not for {len(objectives)}")
    try:
        return fit(read_preferences(args.fit, objectives), objectives, folds=args.folds, seed=args.seed, how=how)
    except WithoutMaximum as problem:
        raise InputError(f"{args.fit}: {problem}") from None


# --- What is shown -----------------------------------------------------------------------------------------------


def write_rows(source: Path, decision: Decision, path: Path) -> None:
    """Every row of the source with what was found of it, in the same order."""
    found = zip(
        decision.rewards.tolist(),
        decision.on_front.tolist(),
        decision.pareto_ranks.tolist(),
        decision.meets_constraints.tolist(),
        decision.ranks.tolist(),
    )
    number, first = next(iter_jsonl(source))
    warn_of_replaced_fields(f"{source}:{number}", first, ADDED_FIELDS)
    write_jsonl(
        path, ({**row, **dict(zip(ADDED_FIELDS, values))} for (_, row), values in zip(iter_jsonl(source), found))
    )


def print_objectives(result: Mapping) -> None:
    counts, objectives = result["counts"], result["objectives"]
    print(
        f"{counts['candidates']} candidates of {counts['prompts']} prompts, {result['front']['candidates']} on the "
        f"Pareto front; {counts['tied_choices']} choices with another as good; 95% intervals over prompts"
    )
    if result["settings"]["weights"] == "equal":
        print("no weights were given: each objective weighs 1")
    for group, part in result["groups"].items():
        told = ", ".join(f"{name} {weight:.4g}" for name, weight in part["weights"].items())
        of_group = "" if group == DEFAULT_GROUP else f" of {group}"
        print(printable(f"weights{of_group}: {told} ({part['prompts']} prompts)"))
    choices = result["choices"]
    ways = {"any candidate": choices["any_candidate"]}
    ways |= {f"best by {name}": part for name, part in choices["by_objective"].items()}
    ways |= {"best by the weights": choices["by_weights"]}
    if result["constraints"]:
        ways |= {"under constraints": choices["chosen"]}
    rows = [
        (
            way,
            *(_cell(part["means"][name], part["ci95"]["means"][name]) for name in objectives),
            rate_cell(part["on_front"], part["ci95"]["on_front"]),
            *([rate_cell(part["meets_constraints"])] if result["constraints"] else []),
        )
        for way, part in ways.items()
    ]
    header = ("choice", *objectives, "on the front", *(["meets constraints"] if result["constraints"] else []))
    print(aligned_table(header, rows))
    if result["constraints"]:
        _print_constraints(result["constraints"], counts)
    for part in result["conflict"]:
        pairs, ci95 = part["pairs"], part["ci95"]
        share, ordered = rate_cell(part["contrary_share"], ci95["contrary_share"]), pairs["alike"] + pairs["contrary"]
        print(
            f"{printable(' and '.join(part['objectives']))} order {share} of {ordered} pairs contrarily "
            f"({pairs['level']} more are level in one); mean Spearman within prompts "
            f"{_cell(part['mean_spearman'], ci95['mean_spearman'])}"
        )
    if result["fit"]:
        _print_fit(result["fit"])


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")


def _print_constraints(constraints: Mapping, counts: Mapping) -> None:
    for part in constraints["each"]:
        print(
            f"{part['constraint']}: met by {part['candidates_that_meet_it']} of {counts['candidates']} candidates, and "
            f"by none in {part['prompts_where_none_does']} of {counts['prompts']} prompts"
        )
    print(
        f"all constraints: met by none in {constraints['prompts_where_none_does']} prompts, where the least violation "
        f"is taken; they change {constraints['changed_choices']} of {counts['prompts']} choices"
    )


def _print_fit(fitted: Mapping) -> None:
    counts, held_out = fitted["counts"], fitted["held_out"]
    how = f", ridge {fitted['ridge']:g}" if fitted["ridge"] else ""
    print(f"fitted to {counts['pairs']} pairs of {counts['questions']} questions{how}")
    ci95 = held_out["ci95"]
    rows = [
        (
            name,
            _cell(weight, fitted["ci95"]["weights"][name]),
            rate_cell(held_out["accuracy_alone"][name], ci95["accuracy_alone"][name]),
        )
        for name, weight in fitted["weights"].items()
    ]
    rows.append(("together, held out", "-", rate_cell(held_out["accuracy"], ci95["accuracy"])))
    print(aligned_table(("objective", "weight", "accuracy"), rows))
    if fitted["resamples_without_weights"] and None in fitted["ci95"]["weights"].values():
        print(f"no intervals of the weights: {fitted['resamples_without_weights']:.1%} of the resamples have none")


if __name__ == "__main__":
    run_main(main)
