"""Fit the temperature T of P(A > B) = sigmoid((score_A - score_B) / T), and tell how far it can be believed.

    python -m codes.evaluate.eval_benchmark pairs --data validation.jsonl --model_path output/my_model
    python -m codes.evaluate.calibrate results/my_model/pairs_validation_evaluation_my_model.jsonl \\
        --store output/my_model --figure reliability.png -o calibration.json

Takes the rows that eval_reward_bench, eval_benchmark and eval_rm write, or any with prompt, chosen_score and
rejected_score. What stands under `after` is held out: each pair is judged with the T that fits the other folds, and
folds are made of whole questions. The T that is printed and stored is fitted to all pairs. --store writes it into the
model's folder, where evaluations find it and add P(chosen > rejected) to the rows of pairs. Nothing is written where
the pairs have no finite T: where all are right (T falls to 0), or the scores do not favour the better answers.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codes.common.cli import command_parser, positive_int, random_seed, require_files, run_main
from codes.common.figure_files import pyplot, refuse_foreign_figure, save_figure
from codes.common.folds import held_out_folds
from codes.common.records import InputError, file_sha256, write_json
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell, refuse_other_format
from codes.common.run_info import configuration_difference
from codes.evaluate.calibration import (
    ERRORS,
    LOSSES,
    calibration_figures,
    fit_temperatures,
    loss_intervals,
    temperature_interval,
    temperatures_without_fold,
)
from codes.evaluate.metrics import accuracy
from codes.evaluate.results import stored_configuration
from codes.evaluate.scored_pairs import BIAS_PAIRS, ScoredPairs, read_scored_pairs
from codes.evaluate.stored_temperature import require_storable, store_temperature

logger = logging.getLogger(__name__)

FORMAT = "contrastrm-calibration"
IDENTITY = ("scorer", "weights_sha256", "members_sha256", "rule", "penalty", "template_hash", "dtype", "max_length")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    identities = _one_model(args.files)
    if args.store is not None:
        require_storable(args.store, _weights_of(args.store), identities)
    pairs = read_scored_pairs(args.files, args.bias_pairs)
    figures = calibrate(pairs, folds=args.folds, bins=args.bins, seed=args.seed)
    files = [{"file": path.name, "sha256": file_sha256(path)} for path in args.files]
    scored_by = next(iter(identities.values()))
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **figures,
        "settings": {"folds": args.folds, "bins": args.bins, "seed": args.seed, "bias_pairs": args.bias_pairs},
        "provenance": {**scored_by, "files": files},
    }
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.figure is not None:
        draw_reliability(result, args.figure)
    print_calibration(result)
    if figures["difference"][LOSSES[0]] >= 0:
        logger.warning("on held-out questions T predicts no better than T = 1 does (log loss): keep T = 1")
    if args.store is not None:
        facts = {name: figures[name] for name in ("ci95", "counts")}
        print("stored:", store_temperature(args.store, figures["temperature"], scored_by, facts | {"files": files}))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.calibrate")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL of rows with the scores of pairs")
    parser.add_argument(
        "--bias_pairs",
        choices=tuple(BIAS_PAIRS),
        default="original",
        help="which pairs of eval_rm's rows; biased ones are made to mislead, as a model's inputs mostly are not",
    )
    parser.add_argument("--folds", type=positive_int, default=5, help="parts that the questions are held out in")
    parser.add_argument("--bins", type=positive_int, default=10, help="of confidence, from 0.5 to 1")
    parser.add_argument(
        "--store", type=Path, metavar="MODEL_DIR", help="write calibration.json into this model's folder"
    )
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures as JSON")
    parser.add_argument("--figure", type=Path, help="draw the reliability diagram into this .png, .svg or .pdf file")
    parser.add_argument("--seed", type=random_seed, default=42, help="of folds, intervals and simulations")
    args = parser.parse_args(argv)
    require_files(args.files, "FILE")
    if args.folds < 2:
        raise InputError("--folds 1: leaves no pairs to fit to; at least 2 are needed")
    if args.store is not None and not args.store.is_dir():
        raise InputError(f"--store {args.store}: is not a folder")
    refuse_other_format(args.output_file, FORMAT)
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


def _one_model(files: Sequence[Path]) -> dict[Path, dict]:
    """What scored each file, as far as its provenance tells. Raises InputError where two say different things."""
    found = {}
    for path in files:
        stored = stored_configuration(path)
        found[path] = {name: stored[name] for name in IDENTITY if name in stored}
        if difference := configuration_difference(found[files[0]], found[path]):
            raise InputError(f"{path}: was not scored like {files[0]} ({difference})")
    return found


def _weights_of(folder: Path) -> str:
    # torch and transformers take seconds to import.
    from codes.evaluate.model_scorer import weights_hash

    return weights_hash(str(folder))


# --- Figures -----------------------------------------------------------------------------------------------------


def calibrate(pairs: ScoredPairs, *, folds: int, bins: int, seed: int) -> dict:
    """Every figure of the result. Raises InputError where all pairs, or all but a fold's, have no finite T."""
    questions = len(set(pairs.questions))
    if questions < folds:
        raise InputError(f"{questions} questions make no {folds} folds; more pairs, or fewer --folds, are needed")
    margins, everything = pairs.margins, np.ones((1, len(pairs.margins)))
    temperature = _finite(fit_temperatures(margins, everything), margins, "")[0]
    fold_of = held_out_folds(pairs.questions, folds, seed)
    of_fold = _finite(temperatures_without_fold(margins, fold_of), margins, " without one of the folds")
    held_out = margins / of_fold[fold_of]
    intervals = loss_intervals(margins, held_out, pairs.questions, seed=seed)
    before, after = (
        {**calibration_figures(logits, pairs.questions, bins, seed=seed), "ci95": intervals[name]}
        for name, logits in (("before", margins), ("after", held_out))
    )
    return {
        "temperature": float(temperature),
        "ci95": {"temperature": temperature_interval(margins, pairs.questions, seed=seed)},
        "fold_temperatures": of_fold.tolist(),
        "counts": {
            "pairs": len(margins),
            "questions": questions,
            "correct": int((margins > 0).sum()),
            "ties": int((margins == 0).sum()),
            "repeated": pairs.repeated,
        },
        "accuracy": accuracy(margins > 0),
        "before": before,
        "after": after,
        "difference": {**{name: after[name] - before[name] for name in LOSSES}, "ci95": intervals["difference"]},
    }


def _finite(temperatures: np.ndarray, margins: np.ndarray, which: str) -> np.ndarray:
    if np.isinf(temperatures).any():
        raise InputError(
            f"the {len(margins)} pairs{which} have no finite temperature: the better answers do not score higher on "
            f"average (mean difference {margins.mean():.4g}), so the likeliest probability is one half for all"
        )
    if (temperatures == 0).any():
        raise InputError(
            f"the {len(margins)} pairs{which} have no temperature above 0: no answer that is worse scores higher, and "
            "the likelihood grows without bound as T falls; pairs that the model gets wrong are needed"
        )
    return temperatures


# --- What is shown -----------------------------------------------------------------------------------------------


def print_calibration(result: Mapping) -> None:
    counts, interval = result["counts"], result["ci95"]["temperature"]
    told = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else " (no finite interval)"
    print(
        f"temperature {result['temperature']:.4g}{told} from {counts['pairs']} pairs of {counts['questions']} questions"
    )
    print(
        f"accuracy {result['accuracy']:.3f}, {counts['ties']} ties, {counts['repeated']} repeated pairs left out; "
        f"after: on held-out questions, {result['settings']['folds']} folds"
    )
    before, after = result["before"], result["after"]
    rows = []
    for name in ERRORS:
        noise = after["if_calibrated"][name]
        cells = f"{before[name]:.3f}", f"{after[name]:.3f}", f"{noise['mean']:.3f}, below {noise['quantile95']:.3f}"
        rows.append((name.replace("_", " "), *cells))
    for name in LOSSES:
        cells = (rate_cell(part[name], part["ci95"][name]) for part in (before, after))
        rows.append((name.replace("_", " "), *cells, "-"))
    print(aligned_table(("with 95% interval", "before (T = 1)", "after", "if it were calibrated"), rows))
    if counts["pairs"] > counts["questions"]:
        print("if it were calibrated: of independent pairs; several pairs a question, as here, leave more to chance")


def draw_reliability(result: Mapping, path: Path) -> None:
    """Accuracy against confidence before and after, each with the number of pairs a bin has."""
    figure, axes = pyplot().subplots(
        2, 2, figsize=(9, 5.6), sharex=True, sharey="row", height_ratios=(4, 1), layout="constrained"
    )
    labels = {"before": "before (T = 1)", "after": f"after (T = {result['temperature']:.3g}; held-out questions)"}
    for (name, title), (diagram, counts) in zip(labels.items(), axes.T):
        part = result[name]
        centres = [entry["confidence"] for entry in part["bins"]]
        heights = [entry["accuracy"] for entry in part["bins"]]
        spans = [entry["ci95"] or (entry["accuracy"],) * 2 for entry in part["bins"]]
        bars = [
            [max(height - low, 0) for height, (low, _) in zip(heights, spans)],
            [max(high - height, 0) for height, (_, high) in zip(heights, spans)],
        ]
        diagram.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1, linestyle="--", zorder=0)
        diagram.errorbar(centres, heights, yerr=bars, fmt="o", color="C0", capsize=2)
        error, noise = part[ERRORS[0]], part["if_calibrated"][ERRORS[0]]["mean"]
        diagram.set_title(title)
        told = f"expected calibration error {error:.3f}\n(of a calibrated model {noise:.3f})"
        background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        diagram.text(0.98, 0.04, told, transform=diagram.transAxes, ha="right", bbox=background)
        counts.bar(centres, [entry["pairs"] for entry in part["bins"]], width=0.3 / result["settings"]["bins"])
        counts.set_xlabel("confidence in the predicted winner")
        counts.set_xlim(0.49, 1.01)
    axes[0, 0].set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel("share of predicted winners\nthat are the better answer")
    axes[1, 0].set_ylabel("pairs")
    save_figure(figure, path)


if __name__ == "__main__":
    run_main(main)
