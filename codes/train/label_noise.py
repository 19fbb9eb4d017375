"""Find preferences that are probably the wrong way round: what models trained on the other questions contradict.

    python -m codes.train.label_noise train.jsonl --model_name_or_path Qwen/Qwen3-0.6B --folds 5 \\
        --output_file review.jsonl --bf16 --num_train_epochs 1

Questions are split into folds. For each fold a reward model is trained on the others (flags that are not listed here
are those of codes.train.train_reward_model; --training_mode is contrast unless given) and scores the pairs it has not
seen. OUTPUT lists the pairs it ranks the other way round, the most probably mislabelled first; OUTPUT.summary.json has
the estimated share of wrong labels with its interval, and the rates by bias type. That share is of labels wrong at
random, whatever the pair: a systematic mistake, which a model can learn from the other folds, does not show. What is
done stays in the work folder: the same command continues after a kill, and --only_fold K does one fold, so that several
GPUs can share the work.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers

from codes.common.cli import (
    RunFailed,
    command_parser,
    positive_int,
    progress,
    random_seed,
    rank_of_this_process,
    require_files,
    run_main,
)
from codes.common.conversation import encode_group, fitting_max_length
from codes.common.folds import held_out_folds
from codes.common.prompt_text import as_text
from codes.common.records import (
    InputError,
    aligned_bias_types,
    file_sha256,
    iter_jsonl,
    iter_train_records,
    read_jsonl,
    write_json,
    write_jsonl,
)
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell, refuse_other_format
from codes.common.run_info import redact, redact_arguments, require_same_configuration, run_info_path, write_run_info
from codes.train.flip_estimates import FlipFit, confident_share, fit_flips, pair_accuracy, scaled_by_fold
from codes.train.inspected_records import question_name
from codes.train.record_files import RecordFile
from codes.train.reward_model import RewardModel
from codes.train.reward_settings import RewardSettings
from codes.train.train_reward_model import train
from codes.train.train_settings import RewardTrainingArguments, parse_settings
from codes.train.training_data import DataCounts, is_used

logger = logging.getLogger(__name__)

FORMAT = "contrastrm-label-noise"
# What each fold's training is told by this command alone.
OWN_FLAGS = (
    *("train_data_path", "output_dir", "eval_data_path", "resume_from_checkpoint", "overwrite_output_dir"),
    "push_to_hub",
)
RECORDS_AT_A_TIME = 4096  # encoded and scored: token ids of all would take much memory


def main(argv: Sequence[str] | None = None) -> None:
    args, training_flags = _parse(argv)
    settings, training_arguments = _training_settings(args, training_flags)
    files = [RecordFile(path) for path in args.files]
    pairs = Folds(files, settings, args.folds, args.seed)
    configuration = {
        "data_sha256": [file_sha256(path) for path in args.files],
        "folds": args.folds,
        "training_flags": redact_arguments(training_flags),
        "model_name_or_path": redact(args.model_name_or_path),
        "seed": args.seed,
    }
    _start_work(args.work_dir, configuration)
    for fold in range(args.folds) if args.only_fold is None else [args.only_fold - 1]:
        folder = args.work_dir / f"fold-{fold + 1}"
        if not (folder / "scores.jsonl").exists():
            logger.info("fold %d of %d: %d records held out", fold + 1, args.folds, (pairs.fold_of == fold).sum())
            pairs.write(fold, folder)
            _train_fold(folder, args, training_flags)
            _score_fold(folder, settings, training_arguments, args.tokens_per_batch)
            if not args.keep_models:
                shutil.rmtree(folder / "model")
    missing = [k + 1 for k in range(args.folds) if not (args.work_dir / f"fold-{k + 1}" / "scores.jsonl").exists()]
    if missing:
        print(f"folds still to be done: {', '.join(map(str, missing))}")
        return
    _review(args, pairs, configuration)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, "codes.train.label_noise")
    parser.add_argument("files", nargs="+", metavar="FILE", help="train records; before any training flag")
    parser.add_argument("--model_name_or_path", required=True, help="what each fold's reward model is trained from")
    parser.add_argument("--folds", type=positive_int, default=5, help="parts of the questions; each is held out once")
    parser.add_argument("--output_file", type=Path, required=True, help="the list of pairs to look at, JSONL")
    parser.add_argument("--work_dir", type=Path, help="folds, their models and scores (default: OUTPUT.folds)")
    parser.add_argument(
        "--only_fold", type=positive_int, metavar="K", help="do fold K alone, from 1; the last one lists"
    )
    parser.add_argument("--keep_models", action="store_true", help="keep each fold's model when it has scored")
    parser.add_argument("--all_pairs", action="store_true", help="list every pair, not only those contradicted")
    parser.add_argument("--tokens_per_batch", type=positive_int, default=16384, help="of a forward that scores")
    parser.add_argument("--seed", type=random_seed, default=42, help="of folds and of training")
    args, training_flags = parser.parse_known_args(argv)
    require_files(args.files, "FILE")
    if args.folds < 2:
        raise InputError("--folds 1: leaves nothing to train on; at least 2 are needed")
    if args.only_fold is not None and args.only_fold > args.folds:
        raise InputError(f"--only_fold {args.only_fold}: there are {args.folds} folds")
    if rank_of_this_process()[1] > 1:
        raise InputError("folds are trained in one process each; give each GPU a fold with --only_fold, no launcher")
    for flag in training_flags:
        if flag.lstrip("-").split("=")[0].replace("-", "_") in OWN_FLAGS and flag.startswith("--"):
            raise InputError(f"{flag.split('=')[0]}: is this command's to say, for every fold")
    if not any(flag.split("=")[0] in ("--training_mode", "--training-mode") for flag in training_flags):
        training_flags = ["--training_mode", "contrast", *training_flags]
    args.work_dir = args.work_dir or args.output_file.with_name(args.output_file.name + ".folds")
    args.summary_file = args.output_file.with_name(args.output_file.name + ".summary.json")
    refuse_other_format(args.summary_file, FORMAT, "--output_file")
    if args.output_file.is_dir() or (args.output_file.exists() and not args.summary_file.exists()):
        raise InputError(f"--output_file {args.output_file}: is there already and is no list of this command")
    if args.work_dir.exists() and not args.work_dir.is_dir():
        raise InputError(f"--work_dir {args.work_dir}: is a file, not a folder")
    return args, training_flags


def _training_settings(
    args: argparse.Namespace, training_flags: Sequence[str]
) -> tuple[RewardSettings, RewardTrainingArguments]:
    """The training flags, checked before any work; raises InputError as training would."""
    folder = args.work_dir / "fold-1" / "model"
    flags = _flags(args, training_flags, args.files, folder)
    settings, _, training_arguments = parse_settings(flags, __doc__)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    return settings, training_arguments


def _flags(args: argparse.Namespace, training_flags: Sequence[str], data: Sequence[str], output: Path) -> list[str]:
    named = ["--model_name_or_path", args.model_name_or_path, "--output_dir", str(output), "--seed", str(args.seed)]
    return [*training_flags, *named, "--train_data_path", *map(str, data)]


def _start_work(folder: Path, configuration: dict) -> None:
    """Raise InputError where the folder holds the folds of another configuration, or something else."""
    if folder.exists() and any(folder.iterdir()) and not run_info_path(folder).exists():
        raise InputError(f"--work_dir {folder}: holds something else than folds; choose another folder")
    require_same_configuration(folder, configuration)
    folder.mkdir(parents=True, exist_ok=True)
    write_run_info(folder, configuration)


# --- Folds ---------------------------------------------------------------------------------------------------------


class Folds:
    """The records that training uses, by number: where each stands, its question and its fold, [records]."""

    def __init__(self, files: Sequence[RecordFile], settings: RewardSettings, folds: int, seed: int):
        self.files = files
        encoding, counts = settings.encoding(settings.max_length, seed), DataCounts()
        self.places: list[tuple[int, int]] = []
        questions = []
        for number, file in enumerate(files):
            for place, record in enumerate(iter_train_records(file.path)):
                if is_used(record, encoding, counts):
                    self.places.append((number, place))
                    questions.append(question_name(as_text(record["question"])))
        if len(set(questions)) < folds:
            raise InputError(f"{len(set(questions))} questions make no {folds} folds; more data, or fewer --folds")
        self.questions = np.array(questions, np.uint64)
        self.fold_of = held_out_folds(self.questions, folds, seed)

    def record(self, number: int) -> dict:
        file, place = self.places[number]
        return self.files[file][place]

    def write(self, fold: int, folder: Path) -> None:
        """train.jsonl and held_out.jsonl of a fold; ids are the records' numbers."""
        for name, numbers in (("train", self.fold_of != fold), ("held_out", self.fold_of == fold)):
            rows = ({**self.record(number), "id": str(number)} for number in np.flatnonzero(numbers).tolist())
            write_jsonl(folder / f"{name}.jsonl", rows)


def _train_fold(folder: Path, args: argparse.Namespace, training_flags: Sequence[str]) -> None:
    """Train on the other folds, or go on where a run was cut short."""
    try:
        finished = json.loads(run_info_path(folder / "model").read_text(encoding="utf-8"))["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):
        finished = False
    if not finished:
        flags = _flags(args, training_flags, [folder / "train.jsonl"], folder / "model")
        train([*flags, "--resume_from_checkpoint", "auto"])


def _score_fold(
    folder: Path, settings: RewardSettings, training_arguments: RewardTrainingArguments, tokens_per_batch: int
) -> None:
    """Write scores.jsonl: the scores of each held-out record, the chosen answer's first."""
    dtype = torch.bfloat16 if training_arguments.bf16 else torch.float32
    model = RewardModel.from_pretrained(
        str(folder / "model"), dtype=dtype, trust_remote_code=settings.trust_remote_code
    )
    model.to(training_arguments.device).eval()
    model.share_prefixes(settings.prefix_sharing)
    max_length = fitting_max_length(settings.max_length, model.tokenizer, model.config)
    records = (record for _, record in iter_jsonl(folder / "held_out.jsonl"))

    def rows() -> Iterator[dict]:
        while some := list(islice(records, RECORDS_AT_A_TIME)):
            scores = score_records(model, some, max_length, tokens_per_batch)
            yield from ({"id": record["id"], "scores": row} for record, row in zip(some, scores))

    write_jsonl(folder / "scores.jsonl", rows())


@torch.no_grad()
def score_records(
    model: RewardModel, records: Sequence[Mapping], max_length: int, tokens_per_batch: int
) -> list[list[float]]:
    """Each record's scores, the chosen answer's first, in batches of groups of like size.

    Raises RunFailed where a score is not finite.
    """
    groups = [
        [one.ids for one in encode_group(model.tokenizer, r["question"], [r["chosen"], *r["rejected"]], max_length)]
        for r in records
    ]
    sizes = [sum(map(len, group)) for group in groups]
    batches, filled = [], tokens_per_batch
    for place in sorted(range(len(groups)), key=sizes.__getitem__):
        if filled + sizes[place] > tokens_per_batch:
            batches.append([])
            filled = 0
        batches[-1].append(place)
        filled += sizes[place]
    scores: list[list[float]] = [[] for _ in groups]
    for batch in progress(batches, desc="scoring", unit="batch"):
        inputs = model.layout([groups[place] for place in batch])
        device = model.model.device
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        rows = model(**inputs).float().cpu().split([len(groups[place]) for place in batch])
        for place, row in zip(batch, rows):
            if not row.isfinite().all():
                raise RunFailed(f"record {records[place]['id']}: the scores of its answers are not finite")
            scores[place] = row.tolist()
    return scores


# --- The list and the summary ----------------------------------------------------------------------------------------


class ScoredPairs:
    """Every (chosen, rejected) pair with its held-out margin: record, answer, fold, bias type; arrays over pairs."""

    def __init__(self, folds: Folds, work_dir: Path):
        rows = []
        for fold in range(int(folds.fold_of.max()) + 1):
            for row in read_jsonl(work_dir / f"fold-{fold + 1}" / "scores.jsonl"):
                number, (chosen, *rejected) = int(row["id"]), row["scores"]
                biases = aligned_bias_types(folds.record(number))
                rows += [(number, k, fold, bias, chosen - s) for k, (s, bias) in enumerate(zip(rejected, biases))]
        rows.sort(key=lambda row: row[:2])
        record, answer, fold, bias, margin = zip(*rows)
        self.record, self.answer, self.fold = (np.array(column) for column in (record, answer, fold))
        self.bias, self.margins = np.array(bias), np.array(margin)
        self.scaled = scaled_by_fold(self.margins, self.fold)
        self.cluster = np.unique(folds.questions[self.record], return_inverse=True)[1]


def _review(args: argparse.Namespace, folds: Folds, configuration: dict) -> None:
    pairs = ScoredPairs(folds, args.work_dir)
    fit = fit_flips(pairs.scaled, pairs.cluster)
    probabilities = fit.probabilities(pairs.scaled)
    order = np.argsort(pairs.scaled, kind="stable")
    listed = order if args.all_pairs else order[pairs.scaled[order] < 0]
    rows = (
        _listed_pair(folds, pairs, pair, rank, None if probabilities is None else float(probabilities[pair]))
        for rank, pair in enumerate(listed.tolist(), start=1)
    )
    summary = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **noise_figures(pairs, fit, probabilities),
        "settings": {"folds": args.folds, "seed": args.seed, "all_pairs": args.all_pairs},
        "provenance": {
            "files": [
                {"file": Path(f).name, "sha256": sha} for f, sha in zip(args.files, configuration["data_sha256"])
            ],
            "model_name_or_path": configuration["model_name_or_path"],
            "training_flags": configuration["training_flags"],
        },
    }
    write_json(args.summary_file, summary)
    write_jsonl(args.output_file, rows)
    print_summary(summary, len(listed), args.output_file)


def _listed_pair(folds: Folds, pairs: ScoredPairs, pair: int, rank: int, probability: float | None) -> dict:
    number, answer = int(pairs.record[pair]), int(pairs.answer[pair])
    record, (file, place) = folds.record(number), folds.places[number]
    return {
        "rank": rank,
        "question": record["question"],
        "chosen": record["chosen"],
        "rejected": record["rejected"][answer],
        "bias_type": str(pairs.bias[pair]),
        "margin": float(pairs.margins[pair]),
        "scaled_margin": float(pairs.scaled[pair]),
        "flip_probability": probability,
        "fold": int(pairs.fold[pair]) + 1,
        "file": folds.files[file].name,
        "line": folds.files[file].line_number(place),
        "rejected_index": answer,
        **({"id": record["id"]} if "id" in record else {}),
    }


def noise_figures(pairs: ScoredPairs, fit: FlipFit, probabilities: np.ndarray | None) -> dict:
    """The summary's figures: the noise rate, how right the held-out models are, and both by bias type and fold."""

    def part(inside: np.ndarray) -> dict:
        accuracy, interval = pair_accuracy(
            pairs.scaled[inside], np.unique(pairs.cluster[inside], return_inverse=True)[1]
        )
        flips = None if probabilities is None else float(probabilities[inside].sum())
        return {
            "pairs": int(inside.sum()),
            "contradicted": int((pairs.scaled[inside] < 0).sum()),
            "ties": int((pairs.scaled[inside] == 0).sum()),
            "accuracy": accuracy,
            "expected_flips": flips,
            "ci95": {"accuracy": interval},
        }

    return {
        "noise_rate": fit.noise_rate,
        "temperature": fit.temperature,
        "ci95": {"noise_rate": fit.interval},
        "problem": fit.problem,
        "confident": confident_share(pairs.scaled, pairs.cluster),
        "records": len(np.unique(pairs.record)),
        "questions": int(pairs.cluster.max()) + 1,
        "all": part(np.ones(len(pairs.scaled), bool)),
        "by_bias_type": {str(bias): part(pairs.bias == bias) for bias in np.unique(pairs.bias)},
        "by_fold": [part(pairs.fold == fold) for fold in np.unique(pairs.fold)],
    }


def print_summary(summary: Mapping, listed: int, output: Path) -> None:
    whole, rate = summary["all"], summary["noise_rate"]
    accuracy = rate_cell(whole["accuracy"], whole["ci95"]["accuracy"])
    print(f"held-out models are right on {accuracy} of {whole['pairs']} pairs of {summary['questions']} questions")
    if rate is None:
        print(f"no noise rate: {summary['problem']}")
    else:
        print(f"labels wrong at random: {rate_cell(rate, summary['ci95']['noise_rate'])} of the pairs")
        if summary["ci95"]["noise_rate"][0] > 0:
            smoothing = min(max(round(rate, 2), 0.01), 0.49)
            print(f"-> read the first pairs of the list, or train with --label_smoothing_factor {smoothing:g}")
    sure = summary["confident"]
    share = rate_cell(sure["share"], sure["ci95"]["share"])
    print(f"of the half of the pairs they are surest of they contradict {share}: an upper bound of random mistakes")
    print("mistakes that a model can learn from the other folds do not show in these figures")
    parts = {"all": whole, **summary["by_bias_type"]}
    rows = [
        (
            name,
            str(part["pairs"]),
            rate_cell(part["accuracy"], part["ci95"]["accuracy"]),
            "-" if part["expected_flips"] is None else f"{part['expected_flips']:.1f}",
        )
        for name, part in parts.items()
    ]
    print(aligned_table(("rejected answers", "pairs", "right", "wrong labels expected"), rows))
    print(f"{output}: {listed} pairs, the most probably mislabelled first")


if __name__ == "__main__":
    run_main(main)
