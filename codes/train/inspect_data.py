"""Look at preference data before training on it: leaks, contradictions, shortcuts, truncation, size and time.

    python -m codes.train.inspect_data train.jsonl --eval_data_path dev.jsonl --model_name_or_path M -o inspect.json
    python -m codes.train.inspect_data a.jsonl b.jsonl:0.3 --eval_data_path dev.jsonl --clean_dir output/clean

Prints what it found and what it suggests, each with the flag or command that mends it; -o writes every figure with
examples, --page a page to read them on. Questions are the same where they differ in white space and case alone,
answers in white space around them; both are nearly the same where the Jaccard similarity of their word shingles is at
least --threshold (system turns do not count). --clean_dir copies the training files without records that ask what the
evaluation data asks, that contradict another record, or that stand before word for word. Without a model there are no
tokens, only characters.
"""

import argparse
import datetime
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codes.common.cli import (
    command_parser,
    fraction,
    positive_float,
    positive_int,
    printable,
    random_seed,
    require_files,
    run_main,
)
from codes.common.figure_files import refuse_foreign_figure
from codes.common.page import refuse_no_page
from codes.common.records import InputError, file_sha256, replace_file, write_json
from codes.common.result_files import SCHEMA_VERSION, aligned_table, rate_cell, refuse_other_format
from codes.common.run_info import redact
from codes.train.data_suggestions import suggestions
from codes.train.inspect_page import draw_inspection, inspection_page
from codes.train.inspected_records import EVAL, SIDES, TRAIN, InspectedRecords, ReadingSettings
from codes.train.near_duplicates import banding, miss_probability
from codes.train.repeated_texts import Contradictions, RepeatedTexts
from codes.train.text_style import STYLE_COUNTS, length_histogram, rule_name, style_figures
from codes.train.training_data import DataCounts, EncodingSettings, WeightedFile, weighted_file

FORMAT = "contrastrm-data-inspection"
KINDS = ("question", "chosen")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    train_files = [weighted_file(text) for text in args.files]
    require_files([file.path for file in train_files], "FILE")
    targets = _clean_targets(train_files, args.clean_dir)
    files = [*((file.path, TRAIN) for file in train_files), *((path, EVAL) for path in args.eval_data_path)]
    encoding = EncodingSettings(args.max_length, False, args.keep_unverified, args.verified_only)
    settings = ReadingSettings(args.threshold, args.shingle_words, args.style_records, args.seed, encoding)
    records = InspectedRecords(files, settings)
    if not (records.sides == TRAIN).any():
        raise InputError(f"{train_files[0].path}: verification left none of the training records to use")
    repeated = {
        kind: RepeatedTexts(records, kind, threshold=args.threshold, shingle_words=args.shingle_words)
        for kind in KINDS
        if kind == "question" or not args.skip_answers
    }
    contradictions = Contradictions(records)
    result = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "records": {SIDES[side]: _records_of(records, side) for side in (TRAIN, EVAL)},
        "duplicates": {kind: repeated[kind].figures(args.examples) if kind in repeated else None for kind in KINDS},
        "contradictions": contradictions.figures(args.examples),
        "style": _style(records, args.rule_accuracy),
        **_tokens_and_time(args, train_files, encoding),
    }
    result["suggestions"] = suggestions(result)
    result["cleaned"] = _clean(records, repeated["question"], contradictions, targets)
    result |= {"settings": _settings(args), "provenance": {"files": _files(files)}}
    _write(args, result)
    print_inspection(result)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.train.inspect_data")
    parser.add_argument("files", nargs="+", metavar="FILE", help="train records, with a weight if wanted: b.jsonl:0.3")
    parser.add_argument("--eval_data_path", nargs="+", default=[], help="records that must not be trained on")
    parser.add_argument("-o", "--output_file", type=Path, help="write all figures and examples as JSON")
    parser.add_argument("--page", type=Path, help="write a self-contained HTML page, with the texts side by side")
    parser.add_argument("--figure", type=Path, help="draw rules and lengths into this .png, .svg or .pdf file")
    parser.add_argument("--clean_dir", type=Path, help="copy the training files there without what should not stay")
    model = parser.add_argument_group("tokens and time, as training would have them")
    model.add_argument("--model_name_or_path", help="model whose tokenizer and template count the tokens")
    model.add_argument("--max_length", type=positive_int, default=1024, help="tokens of a conversation")
    model.add_argument("--chat_template", help="file with a Jinja chat template that replaces the tokenizer's")
    model.add_argument("--revision", help="commit, tag or branch of the model on the Hub")
    model.add_argument("--trust_remote_code", action="store_true", help="run code that the model's repository ships")
    model.add_argument("--tokenized_cache", help="folder that keeps the tokenized data for training (its flag, too)")
    model.add_argument("--tokens_per_second", type=positive_float, help="a known speed, to tell the time of an epoch")
    model.add_argument("--measure", action="store_true", help="measure it: a few steps of the model on this device")
    model.add_argument("--groups_a_step", type=positive_int, default=4, help="groups of a forward of --measure")
    chosen = parser.add_argument_group("which records, as in training")
    chosen.add_argument("--keep_unverified", action="store_true", help="also those whose verification failed")
    chosen.add_argument("--verified_only", action="store_true", help="not those that were never verified either")
    how = parser.add_argument_group("what counts as what")
    how.add_argument("--threshold", type=_similarity, default=0.8, help="Jaccard similarity of near-duplicates")
    how.add_argument("--shingle_words", type=positive_int, default=3, help="words of a shingle")
    how.add_argument("--skip_answers", action="store_true", help="look for repeated questions only, not chosen answers")
    how.add_argument("--style_records", type=positive_int, default=20_000, help="records that style is counted on")
    how.add_argument("--rule_accuracy", type=fraction, default=0.6, help="from which on a simple rule is a shortcut")
    how.add_argument("--examples", type=positive_int, default=20, help="most examples of each kind")
    how.add_argument("--seed", type=random_seed, default=42, help="of the hashes and of what is sampled")
    args = parser.parse_args(argv)
    require_files(args.eval_data_path, "--eval_data_path")
    if args.rule_accuracy < 0.5:
        raise InputError(f"--rule_accuracy {args.rule_accuracy}: a coin gets 0.5")
    if args.keep_unverified and args.verified_only:
        raise InputError("--keep_unverified and --verified_only contradict each other")
    if args.model_name_or_path is None:
        for name in ("measure", "tokens_per_second", "tokenized_cache", "chat_template"):
            if getattr(args, name):
                raise InputError(f"--{name}: needs --model_name_or_path")
    if args.tokens_per_second is not None and args.tokens_per_second < 1:
        raise InputError(f"--tokens_per_second {args.tokens_per_second}: is less than one token a second")
    if args.measure and args.tokens_per_second is not None:
        raise InputError("--measure and --tokens_per_second: one of the two tells the speed")
    if args.chat_template:
        require_files([args.chat_template], "--chat_template")
    refuse_other_format(args.output_file, FORMAT)
    if args.page is not None:
        refuse_no_page(args.page, "--page")
    if args.figure is not None:
        refuse_foreign_figure(args.figure)
    return args


def _write(args: argparse.Namespace, result: Mapping) -> None:
    if args.output_file is not None:
        write_json(args.output_file, result)
    if args.page is not None:
        with replace_file(args.page) as file:
            file.write(inspection_page(result))
    if args.figure is not None:
        draw_inspection(result, args.figure)


def _similarity(text: str) -> float:
    """Argument type: a number above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, at most 1")
    return value


def _settings(args: argparse.Namespace) -> dict:
    names = ("threshold", "shingle_words", "style_records", "rule_accuracy", "max_length", "keep_unverified")
    bands, rows = banding(args.threshold)
    return {
        **{name: getattr(args, name) for name in (*names, "verified_only", "examples", "seed")},
        "model": args.model_name_or_path and redact(args.model_name_or_path),
        "bands": bands,
        "rows": rows,
        "missed_at_threshold": miss_probability(args.threshold, bands, rows),
    }


def _files(files: Sequence[tuple[str, int]]) -> list[dict]:
    return [{"file": Path(path).name, "split": SIDES[side], "sha256": file_sha256(path)} for path, side in files]


# --- Figures -------------------------------------------------------------------------------------------------------


def _records_of(records: InspectedRecords, side: int) -> dict:
    """What a split holds and what training leaves out of it by default."""
    counts, outcomes = DataCounts(), Counter()
    for number in np.flatnonzero(records.side_of_file == side):
        counts.add(records.counts[number])
        outcomes.update(records.outcomes[number])
    used = records.column("rejected")[records.sides == side]
    return {
        "records": counts.records,
        "used": len(used),
        "left_out_by_verification": counts.left_out_by_verification,
        "verification": dict(outcomes.most_common()),
        "rejected_by_bias_type": dict(sorted(counts.rejected_by_bias_type.items(), key=lambda item: -item[1])),
        "rejected_answers": int(used.sum()),
        "answers_per_group": {
            str(answers + 1): int(count) for answers, count in zip(*np.unique(used, return_counts=True))
        },
        "conversation_characters": _character_percentiles(records) if side == TRAIN else None,
    }


def _character_percentiles(records: InspectedRecords) -> dict[str, int]:
    values = np.frombuffer(records.conversation_characters, np.int32)
    shares = (50, 90, 95, 99, 100)
    return {str(share): int(np.percentile(values, share, method="inverted_cdf")) for share in shares}


def _style(records: InspectedRecords, threshold: float) -> dict:
    """Rules and lengths over all sampled pairs, and by bias type."""
    sample = records.style
    chosen, rejected = sample.counts(sample.chosen), sample.counts(sample.rejected)
    questions = np.unique(np.frombuffer(sample.question_of_pair, np.uint64), return_inverse=True)[1]
    biases = np.frombuffer(sample.bias_of_pair, np.int32)
    characters = list(STYLE_COUNTS).index("characters")
    return {
        "records": sample.records,
        "all": style_figures(chosen, rejected, questions, threshold),
        "by_bias_type": {
            bias: style_figures(chosen[of], rejected[of], questions[of], threshold)
            for bias, of in ((bias, biases == number) for bias, number in sorted(sample.bias_types.items()))
        },
        "histogram": length_histogram(chosen[:, characters], rejected[:, characters]),
    }


def _tokens_and_time(args: argparse.Namespace, files: Sequence[WeightedFile], encoding: EncodingSettings) -> dict:
    if args.model_name_or_path is None:
        return {"tokens": None, "time": None}
    # What trains takes seconds more to import.
    import transformers

    from codes.train import token_figures as figures

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    source = figures.ModelSource(args.model_name_or_path, args.chat_template, args.revision, args.trust_remote_code)
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.tokenized_cache or temporary
        data, max_length, config = figures.tokenized_training_data(files, source, encoding, cache)
        tokens, measured, speed = figures.token_figures(data, max_length, config), None, args.tokens_per_second
        if args.measure:
            measured = figures.measured_speed(data, source, groups=args.groups_a_step, seed=args.seed)
            speed = measured["tokens_per_second"]
    return {"tokens": tokens, "time": speed and figures.training_time(tokens, speed, measured)}


# --- Cleaned copies ------------------------------------------------------------------------------------------------


def _clean_targets(files: Sequence[WeightedFile], folder: Path | None) -> list[Path]:
    """The copies' paths. Raises InputError where two would have one name, or something is there already."""
    if folder is None:
        return []
    targets = [folder / Path(file.path).name for file in files]
    if len(set(targets)) < len(targets):
        raise InputError(f"--clean_dir {folder}: two of the training files have the same name")
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"--clean_dir {folder}: {path} is a file, not a folder")
    for target in targets:
        if target.exists():
            raise InputError(f"--clean_dir {folder}: {target.name} is there already; choose another folder")
    return targets


def _clean(
    records: InspectedRecords, questions: RepeatedTexts, contradictions: Contradictions, targets: Sequence[Path]
) -> list[dict] | None:
    """Write the copies: each line as it is, without those of records that leak, contradict or repeat."""
    if not targets:
        return None
    reasons = {
        "asked_in_evaluation": questions.leaking,
        "contradicting": contradictions.opposed,
        "repeated": contradictions.repeated_groups,
    }
    file_of, place_of, done = records.column("file"), records.column("place"), []
    for number, target in enumerate(targets):
        here = file_of == number
        unwanted = {name: set(place_of[here & marks].tolist()) for name, marks in reasons.items()}
        left_out = set().union(*unwanted.values())
        source = records.files[number]
        with replace_file(target) as file:
            for place, line in enumerate(source.lines()):
                if place not in left_out:
                    file.write(line.decode("utf-8-sig").rstrip("\r\n") + "\n")
        counts = {name: len(places) for name, places in unwanted.items()}
        done.append({"file": target.name, "kept": len(source) - len(left_out), "left_out": len(left_out), **counts})
    return done


# --- What is shown -------------------------------------------------------------------------------------------------


def print_inspection(result: Mapping) -> None:
    """A table of what is there, the rules that get most pairs right, and the suggestions."""
    print(aligned_table(("", *SIDES), _shown_counts(result)))
    print(f"\nrules over {result['style']['all']['pairs']} pairs of {result['style']['records']} training records")
    rules = sorted(result["style"]["all"]["rules"].items(), key=lambda rule: -abs(rule[1]["of_all_pairs"] - 0.5))[:5]
    rows = []
    for name, figures in rules:
        more_wins = rate_cell(figures["of_all_pairs"], figures["ci95"]["of_all_pairs"])
        differing = f"{1 - figures['equal'] / result['style']['all']['pairs']:.0%}"
        rows.append((rule_name(name, figures), more_wins, differing, "shortcut" if figures["is_shortcut"] else ""))
    print(aligned_table(("rule", "chosen has more, ties as halves", "pairs that differ", ""), rows))
    print(f"\n{_shown_tokens(result)}")
    print("\nsuggestions" if result["suggestions"] else "\nno suggestions")
    for number, entry in enumerate(result["suggestions"], start=1):
        print(f"{number}. {printable(entry['finding'])}\n   -> {printable(entry['remedy'])}")
    for entry in result["cleaned"] or []:
        print(f"cleaned copy {printable(entry['file'])}: {entry['kept']} records kept, {entry['left_out']} left out")


def _shown_counts(result: Mapping) -> list[tuple[str, str, str]]:
    rows = [(name.replace("_", " "), name) for name in ("records", "used", "rejected_answers")]
    sides = [result["records"][side] for side in SIDES]
    shown = [(title, *(str(side[name]) for side in sides)) for title, name in rows]
    for kind, texts in result["duplicates"].items():
        if texts is None:
            continue
        title = {"question": "questions", "chosen": "chosen answers"}[kind]
        for label, name in (("distinct", "distinct"), ("nearly the same as another", "texts_in_near_clusters")):
            shown.append((f"{title}, {label}", *(str(texts[side][name]) if side in texts else "-" for side in SIDES)))
        across = (texts["across"][f"{side}_records_same_or_near"] for side in SIDES)
        shown.append((f"records whose {title[:-1]} is in the other split", *map(str, across)))
    shown.append(("pairs ranked both ways", str(result["contradictions"]["opposed_pairs"]), ""))
    return shown


def _shown_tokens(result: Mapping) -> str:
    tokens, characters = result["tokens"], result["records"]["train"]["conversation_characters"]
    if tokens is None:
        return (
            f"characters a conversation: median {characters['50']}, 95% at most {characters['95']}, "
            f"longest {characters['100']}; for tokens name a model (--model_name_or_path)"
        )
    epoch, lengths, cut = tokens["epoch"], tokens["conversation"], tokens["cut"]
    lines = [
        f"tokens a conversation: median {lengths['50']}, 95% at most {lengths['95']}, longest {lengths['100']}; cut at "
        f"{tokens['max_length']}: prompt {cut['share_with_cut_prompt']:.1%}, answer {cut['share_with_cut_answer']:.1%}",
        f"tokens an epoch: {epoch['with_prefix_sharing']} with prefix sharing ({epoch['saved']:.0%} saved), "
        f"{epoch['without_prefix_sharing']} without",
    ]
    if result["time"] is not None:
        speed, seconds = result["time"]["tokens_per_second"], result["time"]["seconds_an_epoch"]
        lines.append(f"an epoch takes {datetime.timedelta(seconds=round(seconds))} at {speed:.0f} tokens/s")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
