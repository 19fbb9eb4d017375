"""Raise an alarm where answers grow long, their words repeat or their scores collapse: a policy that games its reward.

    python -m codes.evaluate.answer_drift before.jsonl after.jsonl --most_length 1.5 -o drift.json --figure drift.png

A row of either file is one answer: prompt and response (or messages), and optionally `score`, as codes.evaluate.score
writes them. The answers of the policy AFTER training are set against those BEFORE, on the prompts that both files have
and with as many answers to each (the first ones). What is left out is counted. Each figure's ratio, AFTER over BEFORE,
has a bootstrap interval over prompts and a threshold. Exit status: 0, or 1 where a ratio passes its threshold.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from codes.common.cli import (
    RunFailed,
    command_parser,
    positive_float,
    positive_int,
    random_seed,
    require_files,
    run_main,
)
from codes.common.figure_files import pyplot, refuse_foreign_figure, save_figure
from codes.common.records import InputError, file_sha256, write_json
from codes.common.result_files import SCHEMA_VERSION, aligned_table, refuse_other_format
from codes.evaluate.answer_sets import Answer, has_field, read_answers
from codes.evaluate.metrics import clustered_bootstrap, ratio

FORMAT = "contrastrm-answer-drift"
SCORE_FIELD = "score"
RATIO_TICKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
# Words of languages that put spaces between them; of Chinese and Japanese each character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)?")

Answers = Mapping[str, Sequence[Answer]]
WordsByPrompt = Mapping[str, Sequence[list[str]]]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    before, after, counts = matched(*(read_answers(path, _score_fields(args)) for path in (args.before, args.after)))
    limits = {
        "score_spread": ("least", args.least_spread),
        "length": ("most", args.most_length),
        "type_token_ratio": ("least", args.least_diversity),
        "distinct_2": ("least", args.least_diversity),
    }
    figures = drift_figures(before, after, args.window, seed=args.seed)
    for name, part in figures.items():
        side, threshold = limits[name]
        part |= {"side": side, "threshold": threshold, "alarm": passes(part["ratio"], side, threshold)}
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "counts": counts,
        "figures": figures,
        "alarms": [name for name, part in figures.items() if part["alarm"]],
        "settings": {"window": args.window, "seed": args.seed},
        "provenance": {"files": [{"file": p.name, "sha256": file_sha256(p)} for p in (args.before, args.after)]},
    }
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.figure is not None:
        draw_ratios(result, args.figure)
    print_drift(result)
    if result["alarms"]:
        told = (f"{name} x {figures[name]['ratio']:.3g}" for name in result["alarms"])
        raise RunFailed(f"alarm: {', '.join(told)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.answer_drift")
    parser.add_argument("before", type=Path, metavar="BEFORE", help="JSONL of the answers before training")
    parser.add_argument("after", type=Path, metavar="AFTER", help="JSONL of the answers after it")
    parser.add_argument(
        "--score_field", help=f"the field with the answer's score (default: {SCORE_FIELD}, where both files have it)"
    )
    parser.add_argument(
        "--least_spread",
        type=positive_float,
        default=0.5,
        metavar="RATIO",
        help="alarm where the standard deviation of the scores falls below so many times what it was",
    )
    parser.add_argument(
        "--most_length",
        type=positive_float,
        default=1.5,
        metavar="RATIO",
        help="alarm where the mean length in characters rises above so many times what it was",
    )
    parser.add_argument(
        "--least_diversity",
        type=positive_float,
        default=0.8,
        metavar="RATIO",
        help="alarm where a measure of lexical diversity falls below so many times what it was",
    )
    parser.add_argument("--window", type=positive_int, default=50, help="words that diversity is measured within")
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures as JSON")
    parser.add_argument("--figure", type=Path, help="draw ratios and thresholds into this .png, .svg or .pdf file")
    parser.add_argument("--seed", type=random_seed, default=42, help="of the bootstrap intervals over prompts")
    args = parser.parse_args(argv)
    require_files([args.before], "BEFORE")
    require_files([args.after], "AFTER")
    if args.window < 2:
        raise InputError("--window 1: holds no two words to compare; at least 2 are needed")
    refuse_other_format(args.output_file, FORMAT)
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


def _score_fields(args: argparse.Namespace) -> tuple[str, ...]:
    if args.score_field is not None:
        return (args.score_field,)
    return (SCORE_FIELD,) if all(has_field(path, SCORE_FIELD) for path in (args.before, args.after)) else ()


# --- Figures -----------------------------------------------------------------------------------------------------


def matched(before: Answers, after: Answers) -> tuple[Answers, Answers, dict[str, int]]:
    """The answers to the prompts that both have, as many to each prompt, and what was used and left out.

    Raises InputError where no prompt is in both.
    """
    shared = [prompt for prompt in before if prompt in after]
    if not shared:
        raise InputError("BEFORE and AFTER have no prompt in common: their answers do not compare")
    number = {prompt: min(len(before[prompt]), len(after[prompt])) for prompt in shared}
    kept = [{prompt: answers[prompt][:count] for prompt, count in number.items()} for answers in (before, after)]
    used = sum(number.values())
    counts = {
        "prompts": len(shared),
        "answers": used,
        "left_out_before": sum(map(len, before.values())) - used,
        "left_out_after": sum(map(len, after.values())) - used,
    }
    return *kept, counts


def drift_figures(before: Answers, after: Answers, window: int, *, seed: int) -> dict[str, dict]:
    """{figure: before, after, ratio, ci95 of the ratio} of two sets of answers to the same prompts.

    ``score_spread``: sample standard deviation of the scores. ``length``: mean characters. ``type_token_ratio``: mean
    share of different words in whole windows of ``window`` words, for the share in whole texts falls with their length
    (Covington and McFall 2010, who move the window word by word). ``distinct_2``: of all pairs of neighbouring words in
    the first words of every answer, the share that are different (Li et al. 2016, arXiv 1510.03055); it also falls
    where answers are alike, and where there are more pairs, so of both answers that are compared as many words are
    taken, at most ``window``. That one depends on all answers together, so that a resample, which holds some twice,
    tells nothing of it: it has no interval. A figure that cannot be made is None.
    """
    words = [_words_by_prompt(answers) for answers in (before, after)]
    sums = [_sums_by_prompt(answers, split, window) for answers, split in zip((before, after), words)]

    def ratios(flat: np.ndarray) -> np.ndarray:
        one, other = (_means(part) for part in np.split(flat, 2, axis=1))
        return other / one

    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.stack([_means(part.sum(0, keepdims=True))[0] for part in sums])
    intervals = clustered_bootstrap(np.concatenate(sums, axis=1), list(before), ratios, seed=seed)
    found = {
        name: _compared(*column, interval)
        for name, column, interval in zip(("score_spread", "length", "type_token_ratio"), values.T, intervals)
    }
    found["distinct_2"] = _compared(*map(distinct_pairs, cut_alike(*words, window)), None)
    if not all(answer.scores for answers in before.values() for answer in answers):
        del found["score_spread"]
    return found


def cut_alike(before: WordsByPrompt, after: WordsByPrompt, most: int) -> tuple[list[list[str]], list[list[str]]]:
    """The first words of all answers: at most ``most``, and as many of an answer as of its counterpart."""
    pairs = [pair for prompt, answers in before.items() for pair in zip(answers, after[prompt], strict=True)]
    number = [min(most, *map(len, pair)) for pair in pairs]
    return tuple([pair[side][:count] for pair, count in zip(pairs, number)] for side in (0, 1))


def distinct_pairs(answers: Sequence[Sequence[str]]) -> float:
    """Share of different ones among the pairs of neighbouring words of all answers; NaN without any."""
    pairs = [pair for words in answers for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def passes(value: float | None, side: str, threshold: float) -> bool | None:
    """Whether a ratio is beyond its threshold; None where there is no ratio."""
    if value is None:
        return None
    return value < threshold if side == "least" else value > threshold


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; characters in place of words in Chinese and Japanese."""
    return _WORD.findall(text.lower())


def _words_by_prompt(answers: Answers) -> WordsByPrompt:
    return {prompt: [words_of(answer.text) for answer in part] for prompt, part in answers.items()}


def _sums_by_prompt(answers: Answers, words: WordsByPrompt, window: int) -> np.ndarray:
    """[prompts, 6]: what each adds to the sums that ``_means`` takes."""
    scores = [answer.scores[0] for part in answers.values() for answer in part if answer.scores]
    # Of squares of scores far from 0 rounding would leave little.
    middle = float(np.mean(scores)) if scores else 0.0
    return np.array([_sums(answers[prompt], words[prompt], window, middle) for prompt in answers])


def _sums(answers: Sequence[Answer], words: Sequence[Sequence[str]], window: int, middle: float) -> list[float]:
    """What one prompt adds: answers, scores less ``middle``, their squares, characters, windows, shares in these."""
    scores = [answer.scores[0] - middle if answer.scores else 0.0 for answer in answers]
    shares = [
        len(set(part[start : start + window])) / window
        for part in words
        for start in range(0, len(part) - window + 1, window)
    ]
    characters = sum(len(answer.text) for answer in answers)
    return [len(answers), sum(scores), sum(s * s for s in scores), characters, len(shares), sum(shares)]


def _means(sums: np.ndarray) -> np.ndarray:
    """[samples, 6] -> spread, mean length and mean share: [samples, 3]."""
    answers, total, squares, characters, windows, shares = sums.T
    variance = np.maximum(squares - total**2 / answers, 0) / (answers - 1)
    return np.stack([np.sqrt(variance), characters / answers, shares / windows], axis=1)


def _compared(before: float, after: float, interval: list[float] | None) -> dict:
    before, after = (None if np.isnan(value) else float(value) for value in (before, after))
    change = None if before is None or after is None else ratio(after, before)
    return {"before": before, "after": after, "ratio": change, "ci95": interval if change is not None else None}


# --- What is shown -----------------------------------------------------------------------------------------------


def print_drift(result: Mapping) -> None:
    counts, rows = result["counts"], []
    for name, part in result["figures"].items():
        values = ("-" if part[key] is None else f"{part[key]:.4g}" for key in ("before", "after"))
        told = "-" if part["ratio"] is None else f"{part['ratio']:.3f}"
        if part["ci95"]:
            told += f" [{part['ci95'][0]:.2f}, {part['ci95'][1]:.2f}]"
        rows.append((name, *values, told, f"{part['side']} {part['threshold']:g}", "ALARM" if part["alarm"] else ""))
    print(f"{counts['answers']} answers to {counts['prompts']} prompts of each; ratio with 95% interval")
    print(aligned_table(("figure", "before", "after", "ratio", "threshold", ""), rows))
    if left := counts["left_out_before"] + counts["left_out_after"]:
        print(f"{left} answers without a counterpart left out")
    if "score_spread" not in result["figures"]:
        print("score_spread: the rows have no scores (codes.evaluate.score adds them)")


def draw_ratios(result: Mapping, path: Path) -> None:
    """Each figure's ratio with its interval, on the side of its threshold where it raises an alarm or not."""
    figures = {name: part for name, part in result["figures"].items() if part["ratio"]}
    figure, axes = pyplot().subplots(figsize=(7, 0.6 * len(figures) + 1.6), layout="constrained")
    for place, part in enumerate(figures.values()):
        value, color = part["ratio"], "C3" if part["alarm"] else "C0"
        low, high = part["ci95"] or (value, value)
        bars = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar(value, place, xerr=bars, fmt="o", color=color, capsize=2)
        axes.plot(part["threshold"], place, marker="|", markersize=22, markeredgewidth=2, color="0.4")
    axes.axvline(1, color="0.7", linewidth=1, linestyle="--", zorder=0)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    ticks = [tick for tick in RATIO_TICKS if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(figures)), [name.replace("_", " ") for name in figures])
    axes.set_ylim(len(figures) - 0.4, -0.6)
    axes.set_xlabel("after / before, with 95% interval; bars: thresholds; red: alarm")
    save_figure(figure, path)


if __name__ == "__main__":
    run_main(main)
