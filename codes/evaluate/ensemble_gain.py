"""Tell what an ensemble gains over its members, and what it costs.

    python -m codes.evaluate.ensemble_gain output/ensemble.json --data_dir data/eval --figure gain.png -o gain.json
    python -m codes.evaluate.ensemble_gain output/ensemble.json --candidates candidates.jsonl -o gain.json

Every member scores each conversation once; from these scores follow the members' figures and those of all three rules,
whatever rule the file names. By rule: accuracy on original and on biased pairs, bias sensitivity rate (BSR) and robust
accuracy over all rows of the built-in pairwise biases in --data_dir, and the difference to the average member: to what
one of them, picked blindly, has. With --candidates (rows of `codes.evaluate.best_of_n`: prompt, response, gold_score)
also how far each holds against over-optimisation: the gold score of the best of n by it. Where members disagree more
the ensemble should be wrong more often: its accuracy stands by thirds of the members' disagreement on the pair.
Intervals are 95%, over questions. Scores are kept in score_store/ beside the output: in the result folder of an
evaluation by this ensemble or by a member, those that it has are not computed again, nor counted in the seconds.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from codes.common.cli import command_parser, positive_int, printable, random_seed, require_files, run_main
from codes.common.figure_files import pyplot, refuse_foreign_figure, save_figure
from codes.common.records import PAIRWISE_BIASES, InputError, file_sha256, iter_jsonl, write_json
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell, refuse_other_format
from codes.evaluate.answer_sets import score_of
from codes.evaluate.best_of_n import usable_prompts
from codes.evaluate.bias_data import BiasData, bias_file, read_bias
from codes.evaluate.bias_summary import RATES, PairOutcomes, joined, pair_outcomes
from codes.evaluate.compare import comparison_cells
from codes.evaluate.ensemble_figures import (
    OPTIMISED,
    TERCILES,
    accuracy_by_disagreement,
    grouped_by_prompt,
    member_and_rule_scores,
    over_optimisation,
    rates_and_gains,
)
from codes.evaluate.ensemble_scorer import EnsembleScorer, EnsembleScores
from codes.evaluate.ranks import is_first_rank
from codes.evaluate.score import conversation_of
from codes.evaluate.score_store import Scores
from codes.evaluate.scorer_flags import add_model_flags, check_model_flags, local_model_options
from codes.evaluate.scorers import Batch, Conversation, Pair, Scorer
from codes.evaluate.scoring import score_conversations

FORMAT = "contrastrm-ensemble-gain"
SHORT_RATES = ("original", "biased", "BSR", "robust")  # of RATES
DRAWN_RATES = ("bias_sensitivity_rate", "robust_accuracy")
Candidates = dict[str, list[tuple[Conversation, float]]]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    biases = [bias for bias in PAIRWISE_BIASES if bias_file(args.data_dir, bias).is_file()]
    if not biases:
        raise InputError(f"--data_dir {args.data_dir}: has no <bias>_bias.jsonl of a built-in pairwise bias")
    data = [read_bias(args.data_dir, bias) for bias in biases]
    candidates = read_candidates(args.candidates, args.gold_field, args.max_n) if args.candidates else {}
    scorer = EnsembleScorer.load(args.ensemble, prefix_sharing=args.prefix_sharing, **local_model_options(args))
    conversations = [conversation for part in data for conversation in part.all_conversations()]
    conversations += [candidate for of_prompt in candidates.values() for candidate, _ in of_prompt]
    folder = None if args.no_cache or args.output_file is None else args.output_file.parent
    scored, cost = score_and_time(scorer, conversations, folder)
    if not is_first_rank():
        return
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "biases": biases,
        **gains(scored, data, candidates, scorer, args),
        "cost": cost,
        "settings": {"gold_field": args.gold_field, "max_n": args.max_n, "seed": args.seed},
        "provenance": {**scorer.identity, **scorer.facts, "files": _files(args, data)},
    }
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.figure is not None:
        draw_gains(result, args.figure)
    print_gains(result)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.ensemble_gain")
    parser.add_argument("ensemble", type=Path, metavar="ENSEMBLE", help="the file of `codes.evaluate.ensemble`")
    parser.add_argument("--data_dir", type=Path, default=Path("data/eval"), help="folder with <bias>_bias.jsonl files")
    parser.add_argument("--candidates", type=Path, metavar="FILE", help="JSONL of answers with gold scores, one a row")
    parser.add_argument("--gold_field", default="gold_score", help="the score that says how good a candidate really is")
    parser.add_argument("--max_n", type=positive_int, help="largest n (default: the fewest candidates of any prompt)")
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures as JSON")
    parser.add_argument("--figure", type=Path, help="draw members and rules into this .png, .svg or .pdf file")
    parser.add_argument("--seed", type=random_seed, default=42, help="of the bootstrap intervals")
    add_model_flags(parser)
    args = parser.parse_args(argv)
    check_model_flags(args)
    require_files([args.ensemble], "ENSEMBLE")
    if args.candidates is not None:
        require_files([args.candidates], "--candidates")
    for flag in ("gold_field", "max_n"):
        if args.candidates is None and getattr(args, flag) != parser.get_default(flag):
            raise InputError(f"--{flag}: is for answers with gold scores; add --candidates FILE")
    refuse_other_format(args.output_file, FORMAT)
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


def read_candidates(path: Path, gold_field: str, max_n: int | None) -> Candidates:
    """Candidates and gold scores by prompt. Raises InputError naming file, line and field, or for too large an n."""
    candidates = []

    def take(row: dict) -> None:
        candidates.append((conversation_of(row), score_of(row, gold_field)))

    for number, _ in iter_jsonl(path, take):
        candidate, gold = candidates[-1]
        candidates[-1] = replace(candidate, where=f"{path}:{number}"), gold
    by_prompt = grouped_by_prompt(candidates)
    usable_prompts(by_prompt, max_n)
    return by_prompt


def _files(args: argparse.Namespace, data: Sequence[BiasData]) -> list[dict]:
    files = [{"file": part.data_file, "sha256": part.sha256} for part in data]
    given = [path for path in (args.ensemble, args.candidates) if path is not None]
    return [*files, *({"file": path.name, "sha256": file_sha256(path)} for path in given)]


# --- Scoring -----------------------------------------------------------------------------------------------------


class TimedScorer:
    """A member that counts the conversations it computes scores of, and the seconds that takes."""

    def __init__(self, scorer: Scorer):
        self.identity, self.facts, self.keeps_scores = scorer.identity, scorer.facts, scorer.keeps_scores
        self.plan, self.prepare, self._score = scorer.plan, scorer.prepare, scorer.score
        self.conversations, self.seconds = 0, 0.0

    def score(self, batch: Batch) -> list[float]:
        start = time.perf_counter()
        scores = self._score(batch)
        self.seconds += time.perf_counter() - start
        self.conversations += len(batch.conversations)
        return scores


def score_and_time(
    scorer: EnsembleScorer, conversations: Sequence[Conversation], folder: Path | None
) -> tuple[EnsembleScores, dict]:
    """The scores, and what they cost in this process: see the schema."""
    members = []

    def score_timed(member: Scorer) -> Scores:
        timed = TimedScorer(member)
        scores = score_conversations(timed, conversations, folder)
        each = timed.seconds / timed.conversations if timed.conversations else None
        cost = {"computed": timed.conversations, "seconds": timed.seconds, "seconds_per_conversation": each}
        members.append(cost)
        return scores

    scored = scorer.combine(score_timed)
    each = [cost["seconds_per_conversation"] for cost in members]
    whole = None if None in each else sum(each)
    for name, cost in zip(scorer.ensemble.names(), members):
        cost["name"] = name
        cost["ensemble_over_member"] = whole and whole / cost["seconds_per_conversation"]
    return scored, {
        "conversations": len(scored.values),
        "scores": len(scored.values) * len(members),
        "seconds_per_conversation": whole,
        "members": members,
    }


# --- Figures -----------------------------------------------------------------------------------------------------


def gains(
    scored: EnsembleScores,
    data: Sequence[BiasData],
    candidates: Candidates,
    scorer: EnsembleScorer,
    args: argparse.Namespace,
) -> dict:
    """Every figure of the result that scores decide."""
    ensemble, seed = scorer.ensemble, args.seed
    of_members, of_rules = member_and_rule_scores(scored, ensemble.penalty)
    outcomes = {rule: _outcomes(data, scores) for rule, scores in of_rules.items()}
    members, rules = rates_and_gains([_outcomes(data, scores) for scores in of_members], outcomes, seed=seed)
    own = outcomes[ensemble.rule]
    disagreement = {"rule": ensemble.rule}
    for name, correct in (("original", own.original_correct), ("biased", own.biased_correct)):
        kind = "original" if name == "original" else "rewritten"
        spread = [value for part in data for value in scored.disagreements(getattr(part, kind))]
        disagreement[name] = accuracy_by_disagreement(spread, correct, own.questions, seed=seed)
    names = ensemble.names()
    optimised = None
    if candidates:
        optimised = over_optimisation(candidates, of_members, of_rules, args.max_n, seed=seed)
        optimised["members"] = [{"name": name, **part} for name, part in zip(names, optimised["members"])]
    return {
        "members": [{"name": name, **part} for name, part in zip(names, members)],
        "rules": rules,
        "penalty": ensemble.penalty,
        "disagreement": disagreement,
        "over_optimisation": optimised,
    }


def _outcomes(data: Sequence[BiasData], scores: Scores) -> PairOutcomes:
    """The outcomes of all biases' rows by these scores."""

    def of(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        return [scores.pair(pair) for pair in pairs]

    return joined([pair_outcomes(part.rows, of(part.original), of(part.rewritten)) for part in data])


# --- What is shown -----------------------------------------------------------------------------------------------


def print_gains(result: Mapping) -> None:
    members, rules, cost = result["members"], result["rules"], result["cost"]
    rows = members[0]["rates"]["total_records_evaluated"]
    print(f"{len(members)} members on {rows} rows of {len(result['biases'])} biases, with 95% interval")
    rates = [(name, part["rates"]) for name, part in _named(result)]
    table = [(name, *(rate_cell(part[rate], part["ci95"][rate]) for rate in RATES)) for name, part in rates]
    compared = next(iter(rules.values()))["against_average_member"]
    table.insert(len(members), ("average member", *(rate_cell(compared[rate]["first"]) for rate in RATES)))
    print(aligned_table(("model", *SHORT_RATES), table))
    print("difference to the average member:")
    gained = {rule: part["against_average_member"] for rule, part in rules.items()}
    table = [(rule, *(comparison_cells(gain[rate])[2] for rate in RATES)) for rule, gain in gained.items()]
    print(aligned_table(("rule", *SHORT_RATES), table))
    _print_disagreement(result["disagreement"])
    if result["over_optimisation"]:
        _print_over_optimisation(result["over_optimisation"])
    print(f"cost: {cost['conversations']} conversations x {len(members)} members = {cost['scores']} scores")
    for part in cost["members"]:
        told = "none computed anew"
        if part["computed"]:
            told = f"{part['computed']} computed in {part['seconds']:.1f} s"
        if part["ensemble_over_member"]:
            told += f"; the ensemble takes {part['ensemble_over_member']:.1f} times as long"
        print(f"  {printable(part['name'])}: {told}")


def _print_disagreement(disagreement: Mapping) -> None:
    rows = []
    for name in ("original", "biased"):
        part = disagreement[name]
        cells = (rate_cell(part[third]["accuracy"], part[third]["ci95"]) for third in TERCILES)
        rows.append((f"{name} pairs", *cells, comparison_cells(part["low_against_high"])[2]))
    print(f"accuracy of rule {disagreement['rule']} where members disagree little, more and much:")
    print(aligned_table(("", *TERCILES, "low - high"), rows))


def _print_over_optimisation(found: Mapping) -> None:
    largest, counts = found["largest_n"], found["counts"]
    print(f"gold score of the best of n over {counts['prompts']} prompts, {counts['candidates']} candidates:")
    rows = []
    for name, part in _named(found):
        knee, last = part["knee"], part["curve"][-1]
        at_knee = f"{knee['gold']:.3f} (n = {knee['n']})"
        gain = part.get("against_average_member")
        told = [comparison_cells(gain[figure])[2] for figure in OPTIMISED] if gain else ["", ""]
        rows.append((name, at_knee, rate_cell(last["gold"], last["ci95"]["gold"]), f"{knee['fall']:.3f}", *told))
    header = ("model", "at its knee", f"at n = {largest}", "fall", "gold against average member", "fall against it")
    print(aligned_table(header, rows))


def _named(part: Mapping) -> list[tuple[str, Mapping]]:
    """(label, figures) of the members, then of the rules."""
    members = [(member["name"], member) for member in part["members"]]
    return members + [(f"rule: {rule}", figures) for rule, figures in part["rules"].items()]


def draw_gains(result: Mapping, path: Path) -> None:
    """BSR against robust accuracy of members and rules; with candidates their gold curves against the KL divergence."""
    optimised = result["over_optimisation"]
    figure, panels = pyplot().subplots(
        1, 2 if optimised else 1, figsize=(12 if optimised else 7, 5), layout="constrained", squeeze=False
    )
    colors = {f"rule: {rule}": f"C{place}" for place, rule in enumerate(result["rules"])}
    for name, part in _named(result):
        rates, intervals = part["rates"], part["rates"]["ci95"]
        point = [rates[rate] for rate in DRAWN_RATES]
        if None in point:
            continue
        bars = [_bars(rates[rate], intervals[rate]) for rate in DRAWN_RATES]
        look = {"fmt": "o", "color": "0.6", "zorder": 2}
        if name in colors:
            look = {"fmt": "D", "color": colors[name], "zorder": 3, "label": name}
        panels[0, 0].errorbar(*point, xerr=bars[0], yerr=bars[1], elinewidth=0.8, **look)
    panels[0, 0].set_xlabel("bias sensitivity rate (lower is better)")
    panels[0, 0].set_ylabel("robust accuracy")
    panels[0, 0].set_title("members (grey) and rules, 95% intervals")
    panels[0, 0].legend()
    if optimised:
        for name, part in _named(optimised):
            x, y = ([step[axis] for step in part["curve"]] for axis in ("kl", "gold"))
            color = colors.get(name, "0.6")
            panels[0, 1].plot(x, y, color=color, linewidth=2 if name in colors else 1, zorder=2 + (name in colors))
            knee = part["knee"]
            panels[0, 1].plot(knee["kl"], knee["gold"], marker="D" if name in colors else "o", color=color)
        panels[0, 1].set_xlabel("KL divergence from the sampling policy, nats: log n - (n - 1) / n")
        panels[0, 1].set_ylabel("gold score of the best of n")
        panels[0, 1].set_title("over-optimisation; marks: knees")
    save_figure(figure, path)


def _bars(value: float, interval: Sequence[float] | None) -> list[list[float]]:
    """What errorbar draws below and above the value."""
    low, high = interval or (value, value)
    return [[max(value - low, 0)], [max(high - value, 0)]]


if __name__ == "__main__":
    run_main(main)
