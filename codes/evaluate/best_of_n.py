"""Show where choosing the best of n answers by a proxy stops making them better by a gold score.

    python -m codes.evaluate.score --score_field proxy_score --model_path P --input_file in.jsonl --output_file p.jsonl
    python -m codes.evaluate.score --score_field gold_score --model_path G --input_file p.jsonl --output_file both.jsonl
    python -m codes.evaluate.best_of_n both.jsonl --figure best_of_n.png -o best_of_n.json

A row is one answer: prompt and response (or messages), proxy_score and gold_score (other names: --proxy_field,
--gold_field); the rows of a prompt are its candidates. For each n the mean over prompts of the proxy and gold score of
the answer that the proxy likes best among n candidates is exact: the mean over all n-subsets of a prompt's candidates.
It is drawn against the KL divergence from the sampling policy, log n - (n - 1) / n. The knee is the n of the largest
gold score; what it gains and what is lost after it are flattered by having chosen it on the same prompts. Every n is
averaged over the same prompts: those with at least --max_n candidates.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codes.common.cli import command_parser, positive_int, random_seed, require_files, run_main
from codes.common.figure_files import pyplot, refuse_foreign_figure, save_figure
from codes.common.records import InputError, file_sha256, write_json
from codes.common.result_files import SCHEMA_VERSION, aligned_table, refuse_other_format
from codes.evaluate.answer_sets import Answer, read_answers
from codes.evaluate.metrics import clustered_bootstrap

FORMAT = "contrastrm-best-of-n"


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    by_prompt = read_answers(args.file, (args.proxy_field, args.gold_field))
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **best_of_n(by_prompt, args.max_n, seed=args.seed),
        "settings": {"proxy_field": args.proxy_field, "gold_field": args.gold_field, "seed": args.seed},
        "provenance": {"files": [{"file": args.file.name, "sha256": file_sha256(args.file)}]},
    }
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.figure is not None:
        draw_curves(result, args.figure)
    print_curves(result)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.evaluate.best_of_n")
    parser.add_argument("file", type=Path, metavar="FILE", help="JSONL of answers with both scores, one a row")
    parser.add_argument("--proxy_field", default="proxy_score", help="the score that the best of n is chosen by")
    parser.add_argument("--gold_field", default="gold_score", help="the score that says how good it really is")
    parser.add_argument(
        "--max_n",
        type=positive_int,
        help="largest n; prompts with fewer candidates are left out and counted (default: the fewest of any prompt)",
    )
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures as JSON")
    parser.add_argument("--figure", type=Path, help="draw the two curves into this .png, .svg or .pdf file")
    parser.add_argument("--seed", type=random_seed, default=42, help="of the bootstrap intervals over prompts")
    args = parser.parse_args(argv)
    require_files([args.file], "FILE")
    refuse_other_format(args.output_file, FORMAT)
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


# --- Figures -----------------------------------------------------------------------------------------------------


def kl_divergence(n: int) -> float:
    """KL divergence, in nats, of best-of-n from the policy that the n answers were drawn from.

    Exact where no two answers are alike (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3), else an upper bound
    (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def selection_probabilities(proxy: Sequence[float], largest: int) -> np.ndarray:
    """How likely each candidate is the best of n by the proxy, over all n-subsets: [largest, candidates], n from 1.

    The k-th smallest of N is the largest of a random n-subset with probability C(k-1, n-1) / C(N, n) (Nakano et al.
    2021, arXiv 2112.09332, appendix I, for the expectation). Among candidates with the same score each is as likely.
    Raises ValueError where there are fewer than ``largest`` candidates.
    """
    proxy = np.asarray(proxy, dtype=float)
    count = len(proxy)
    if not 1 <= largest <= count:
        raise ValueError(f"best of {largest} from {count} candidates")
    _, place, tied = np.unique(proxy, return_inverse=True, return_counts=True)
    # all_among[n - 1, k]: that a random n-subset has only candidates among the k lowest, C(k, n) / C(N, n).
    lowest, n = np.arange(count + 1), np.arange(1, largest + 1)[:, None]
    all_among = np.cumprod(np.maximum(lowest - n + 1, 0) / (count - n + 1), axis=0)
    up_to = np.cumsum(tied)
    mass = all_among[:, up_to] - all_among[:, up_to - tied]
    return (mass / tied)[:, place]


def best_of_n(by_prompt: Mapping[str, Sequence[Answer]], max_n: int | None, *, seed: int) -> dict:
    """Curves and knee over prompts whose answers have a proxy and a gold score.

    Raises InputError where no prompt has ``max_n`` candidates.
    """
    largest, used = usable_prompts(by_prompt, max_n)
    curves = np.stack([expected_scores(answers, largest) for answers in used.values()])
    gold = curves[:, 1].mean(0)
    knee = int(gold.argmax())

    def statistic(sums: np.ndarray) -> np.ndarray:
        """[samples, 1 + 2 x largest] -> both curves, then n, gain and fall of the knee."""
        means = sums[:, 1:] / sums[:, :1]
        of_gold = means[:, largest:]
        at_knee = of_gold[:, [knee]]
        own_knee = of_gold.argmax(1)[:, None] + 1
        return np.concatenate([means, own_knee, at_knee - of_gold[:, [0]], at_knee - of_gold[:, [-1]]], axis=1)

    features = np.concatenate([np.ones((len(used), 1)), curves.reshape(len(used), -1)], axis=1)
    intervals = clustered_bootstrap(features, list(used), statistic, seed=seed)
    proxy_intervals, gold_intervals, (of_n, of_gain, of_fall) = (
        intervals[:largest],
        intervals[largest : 2 * largest],
        intervals[2 * largest :],
    )
    return {
        "counts": {
            "prompts": len(used),
            "candidates": sum(map(len, used.values())),
            "prompts_left_out": len(by_prompt) - len(used),
        },
        "largest_n": largest,
        "curve": [
            {"n": i + 1, "kl": kl_divergence(i + 1), "proxy": float(proxy), "gold": float(score), "ci95": ci95}
            for i, (proxy, score) in enumerate(zip(curves[:, 0].mean(0), gold))
            for ci95 in [{"proxy": proxy_intervals[i], "gold": gold_intervals[i]}]
        ],
        "knee": {
            "n": knee + 1,
            "kl": kl_divergence(knee + 1),
            "gold": float(gold[knee]),
            "gain": float(gold[knee] - gold[0]),
            "fall": float(gold[knee] - gold[-1]),
            "at_largest_n": knee + 1 == largest,
            "ci95": {"n": of_n and [math.floor(of_n[0]), math.ceil(of_n[1])], "gain": of_gain, "fall": of_fall},
        },
    }


def usable_prompts(by_prompt: Mapping[str, Sequence], max_n: int | None) -> tuple[int, dict[str, Sequence]]:
    """(the largest n, the prompts with so many candidates). Raises InputError where there is no such prompt."""
    largest = max_n or min(map(len, by_prompt.values()))
    used = {prompt: answers for prompt, answers in by_prompt.items() if len(answers) >= largest}
    if not used:
        most = max(map(len, by_prompt.values()))
        raise InputError(f"--max_n {largest}: no prompt has so many candidates; the most are {most}")
    return largest, used


def expected_scores(answers: Sequence[Answer], largest: int) -> np.ndarray:
    """[2, largest]: expected proxy and gold score of one prompt's best of n."""
    scores = np.array([answer.scores for answer in answers])
    return (selection_probabilities(scores[:, 0], largest) @ scores).T


# --- What is shown -----------------------------------------------------------------------------------------------


def _shown(result: Mapping) -> list[int]:
    """The n of the table and of the figure's upper axis: powers of two, and the largest."""
    largest = result["largest_n"]
    return sorted({2**power for power in range(largest.bit_length())} | {largest})


def _cell(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")


def print_curves(result: Mapping) -> None:
    counts, knee = result["counts"], result["knee"]
    print(f"best of n over {counts['prompts']} prompts, {counts['candidates']} candidates, with 95% interval")
    if counts["prompts_left_out"]:
        print(f"{counts['prompts_left_out']} prompts with fewer than {result['largest_n']} candidates left out")
    rows = []
    for n in sorted({*_shown(result), knee["n"]}):
        part = result["curve"][n - 1]
        cells = (_cell(part[name], part["ci95"][name]) for name in ("proxy", "gold"))
        rows.append((f"{n} (knee)" if n == knee["n"] else str(n), f"{part['kl']:.3f}", *cells))
    print(aligned_table(("n", "KL, nats", "proxy score", "gold score"), rows))
    if knee["at_largest_n"]:
        print(f"the gold score is largest at the largest n: no over-optimisation up to n = {result['largest_n']}")
        return
    n, gain, fall = (_cell(knee[name], knee["ci95"][name]) for name in ("n", "gain", "fall"))
    print(
        f"knee: n = {n}; the gold score gains {gain} up to it and loses {fall} from there to n = {result['largest_n']}"
    )


def draw_curves(result: Mapping, path: Path) -> None:
    """Proxy and gold score against the KL divergence, with bands of the 95% intervals and the knee."""
    figure, axes = pyplot().subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    curve, knee = result["curve"], result["knee"]
    x = [part["kl"] for part in curve]
    for panel, name, color in zip(axes, ("proxy", "gold"), ("C0", "C1")):
        panel.plot(x, [part[name] for part in curve], color=color, marker="." if len(curve) <= 64 else None)
        bounds = [part["ci95"][name] or (part[name], part[name]) for part in curve]
        panel.fill_between(x, *zip(*bounds), color=color, alpha=0.2, linewidth=0)
        panel.axvline(knee["kl"], color="0.5", linewidth=1, linestyle="--")
        panel.set_ylabel(f"{name} score of the best of n")
    on_the_right = 2 * knee["kl"] > x[-1]
    axes[1].annotate(
        f"knee: n = {knee['n']}",
        (knee["kl"], 0.05),
        (-6 if on_the_right else 6, 0),
        xycoords=axes[1].get_xaxis_transform(),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        color="0.3",
    )
    axes[1].set_xlabel("KL divergence from the sampling policy, nats: log n - (n - 1) / n")
    above = axes[0].secondary_xaxis("top")
    above.set_xticks([curve[n - 1]["kl"] for n in _shown(result)], [str(n) for n in _shown(result)])
    above.set_xlabel(f"n (mean over {result['counts']['prompts']} prompts, 95% intervals)")
    save_figure(figure, path)


if __name__ == "__main__":
    run_main(main)
