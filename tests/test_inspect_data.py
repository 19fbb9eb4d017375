"""codes.train.inspect_data: leaks, contradictions and shortcuts that were planted are found, counted and left out."""

import json
import re

import pytest

from codes.common.records import InputError, iter_train_records
from codes.train import inspect_data
from codes.train.data_suggestions import suggestions
from codes.train.inspected_records import answer_name, question_name
from codes.train.record_files import RecordFile
from codes.train.token_figures import percentiles
from codes.train.tokenized_data import tokenized_file
from codes.train.training_data import EncodingSettings
from tests.conftest import ROOT
from tests.test_schemas import check

SAMPLE = ROOT / "data" / "train" / "sample.jsonl"
LONG = (
    "Tell me in a few plain words how it comes that leaves of most trees turn red and yellow before they fall in autumn"
)


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def record(question, chosen="Yes.", *rejected, **more):
    return {"question": question, "chosen": chosen, "rejected": list(rejected) or ["No."], **more}


def plain(number):
    """A record that is like no other."""
    return record(
        f"q{number} w{7 * number} x{number}?", f"a{number} b{number} c{number}", f"d{number} e{number} f{number}"
    )


def inspect(tmp_path, *files, **flags):
    output = tmp_path / "inspect.json"
    given = [part for name, value in flags.items() for part in (f"--{name}", *([] if value is True else [str(value)]))]
    inspect_data.main([*map(str, files), "-o", str(output), *given])
    return check("data_inspection", output)


# --- Repeated texts --------------------------------------------------------------------------------------------------


def test_questions_of_the_evaluation_data_are_found_in_the_training_data_same_or_nearly_so(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [plain(1), record(LONG + "?"), record("  What IS\n2 + 2? "), plain(2)])
    dev = write(
        tmp_path / "dev.jsonl", [record("what is 2 + 2?", "4", "5"), record(LONG + ", please", "So.", "Not."), plain(9)]
    )
    found = inspect(tmp_path, train, eval_data_path=dev)
    across = found["duplicates"]["question"]["across"]
    assert [across[f"{side}_records_{how}"] for side in ("train", "eval") for how in ("same", "same_or_near")] == [
        1,
        2,
        1,
        2,
    ]
    assert [entry["line"] for entry in across["same"][0]["where"]] == [3, 1]
    (near,) = across["near"]
    assert near["texts"] == [LONG + "?", LONG + ", please"]
    assert near["similarity"] == pytest.approx(22 / 23)
    assert [(entry["file"], entry["line"]) for entry in near["where"]] == [("train.jsonl", 2), ("dev.jsonl", 2)]
    assert found["suggestions"][0]["finding"].startswith("2 training records ask what an evaluation record asks")
    assert "--clean_dir" in found["suggestions"][0]["remedy"]
    assert "1. 2 training records ask" in capsys.readouterr().out


def test_repeated_and_nearly_repeated_texts_of_a_split_are_counted_with_examples(tmp_path):
    train = write(
        tmp_path / "train.jsonl",
        [record(LONG), record(LONG.upper()), record(LONG + "!?"), record(LONG + " now"), plain(1)],
    )
    found = inspect(tmp_path, train)["duplicates"]
    questions = found["question"]["train"]
    assert (questions["records"], questions["distinct"], questions["repeating_records"]) == (5, 4, 1)
    assert (questions["near_clusters"], questions["texts_in_near_clusters"]) == (1, 3)
    assert [entry["times"] for entry in questions["most_repeated"]] == [2]
    assert found["chosen"]["train"]["most_repeated"][0]["times"] == 4
    assert "eval" not in found["question"]
    assert inspect(tmp_path, train, skip_answers=True)["duplicates"]["chosen"] is None


def test_nearly_the_same_chosen_answers_count_where_their_questions_differ(tmp_path):
    rows = [record("One?", LONG), record("One?", LONG + " now"), record("Two?", LONG + " then")]
    found = inspect(tmp_path, write(tmp_path / "train.jsonl", rows))["duplicates"]["chosen"]["train"]
    pairs = [sorted(entry["line"] for entry in pair["where"]) for pair in found["near"]]
    assert sorted(pairs) == [[1, 3], [2, 3]]
    assert (found["near_clusters"], found["texts_in_near_clusters"]) == (1, 3)


def test_a_long_system_turn_that_all_share_makes_no_questions_alike(tmp_path):
    system = {"role": "system", "content": f"{LONG}. " * 5}
    questions = (
        [system, {"role": "user", "content": text}] for text in ("What is rust?", "Who was Ada?", "Why is it so?")
    )
    rows = [record(question, f"a{i}", f"b{i}") for i, question in enumerate(questions)]
    rows.append(record("Who was Ada?", "c", "d"))
    questions = inspect(tmp_path, write(tmp_path / "train.jsonl", rows))["duplicates"]["question"]["train"]
    assert (questions["distinct"], questions["texts_in_near_clusters"]) == (4, 2)
    assert questions["near"][0]["similarity"] == 1


def test_style_is_counted_even_where_no_sampled_record_is_used(tmp_path):
    rows = [{**plain(i), "verify_correctness": "FAILED"} for i in range(9)] + [plain(20)]
    found = inspect(tmp_path, write(tmp_path / "train.jsonl", rows), style_records=1)
    assert found["style"]["records"] == 1


def test_names_from_the_data_cannot_steer_the_terminal(tmp_path, capsys):
    evil = "\x1b[31mred"
    rows = [record(f"What is {i}?", f"{'x ' * 30}{i}", "y", bias_type=[evil]) for i in range(30)]
    inspect(tmp_path, write(tmp_path / "train.jsonl", rows))
    told = capsys.readouterr().out
    assert "\\x1b[31mred" in told
    assert "\x1b" not in told


def test_a_conversation_is_compared_whole_and_answers_by_case_and_inner_white_space():
    assert question_name("A  b\nC") == question_name(" a B c")
    assert answer_name(" if a:\n  b ") == answer_name("if a:\n  b")
    assert len({answer_name(text) for text in ("if a:\n  b", "if a:\n    b", "IF a:\n  b")}) == 3


# --- Contradictions --------------------------------------------------------------------------------------------------


def test_pairs_that_are_ranked_both_ways_are_found_with_the_records_that_rank_them(tmp_path):
    rows = [
        record("Q one?", "A", "B", "C"),
        plain(1),
        record("q ONE?", "B", "D", "A", bias_type=["original", "beauty"]),
        record("Q two?", "B", "A"),
        record("Q one?", "C", "D"),
    ]
    found = inspect(tmp_path, write(tmp_path / "train.jsonl", rows))["contradictions"]
    assert (found["opposed_pairs"], found["records_with_opposed_pairs"]) == (1, 2)
    (example,) = found["opposed"]
    assert example["answers"] == ["A", "B"]
    assert example["bias_types"] == ["original", "beauty"]
    assert [entry["line"] for entry in example["where"]] == [1, 3]
    # A and B are opposed, and C is chosen in one record and rejected in another without contradicting anything.
    assert found["answers_chosen_and_rejected"] == 3


def test_a_chosen_answer_among_its_own_rejected_ones_and_records_that_repeat_are_counted(tmp_path):
    rows = [
        record("One?", "A", "B", " A\n"),
        record("Two?", "A", "B"),
        record("TWO?", "A", "B"),
        record("Two?", "A", "B", "C"),
    ]
    found = inspect(tmp_path, write(tmp_path / "train.jsonl", rows))["contradictions"]
    assert (found["records_whose_chosen_is_rejected"], found["opposed_pairs"]) == (1, 0)
    assert found["own"][0]["answer"] == "A"
    assert (found["repeated_records"], found["repeated_pairs"]) == (1, 2)


def test_the_cleaned_copies_are_the_lines_as_they_were_without_what_should_not_stay(tmp_path):
    rows = [plain(1), record(LONG), record("Q?", "A", "B"), record("Q?", "B", "A"), plain(2), plain(1), plain(3)]
    first = write(tmp_path / "a.jsonl", rows)
    first.write_text(first.read_text(encoding="utf-8").replace("\n", "\n\n", 1), encoding="utf-8")
    second = write(tmp_path / "b.jsonl", [plain(2), plain(4)])
    dev = write(tmp_path / "dev.jsonl", [record(LONG + ", please", "So.", "Not."), plain(4)])
    found = inspect(tmp_path, first, f"{second}:0.5", eval_data_path=dev, clean_dir=tmp_path / "clean")
    kept = {
        name: (tmp_path / "clean" / name).read_text(encoding="utf-8").splitlines() for name in ("a.jsonl", "b.jsonl")
    }
    assert kept == {"a.jsonl": [json.dumps(plain(number)) for number in (1, 2, 3)], "b.jsonl": []}
    assert found["cleaned"][0] == {
        "file": "a.jsonl",
        "kept": 3,
        "left_out": 4,
        "asked_in_evaluation": 1,
        "contradicting": 2,
        "repeated": 1,
    }
    assert found["cleaned"][1]["kept"] == 0
    again = inspect(tmp_path, tmp_path / "clean" / "a.jsonl", eval_data_path=dev)
    assert not any("clean_dir" in entry["remedy"] for entry in again["suggestions"])


# --- Style, records, tokens ------------------------------------------------------------------------------------------


def test_a_planted_shortcut_is_named_with_what_mends_it_and_by_bias_type(tmp_path):
    rows = [
        record(f"What is {i}?", "It is so.", "It is **so**.", "It is not.", bias_type=["beauty", "original"])
        for i in range(40)
    ]
    found = inspect(tmp_path, write(tmp_path / "train.jsonl", rows))
    rule = found["style"]["by_bias_type"]["beauty"]["rules"]["bold passages"]
    assert (rule["rejected_has_more"], rule["of_all_pairs"], rule["is_shortcut"]) == (40, 0, True)
    assert found["style"]["by_bias_type"]["original"]["rules"]["bold passages"]["equal"] == 40
    told = {entry["finding"]: entry["remedy"] for entry in found["suggestions"]}
    assert "--bias_weights beauty=0.5" in told['the rule "fewer bold passages win" alone gets 75% of the pairs right']
    assert sum(found["style"]["histogram"]["chosen"]) == 80


def test_style_is_counted_on_a_sample_by_the_seed(tmp_path):
    one, again, other = (inspect(tmp_path, SAMPLE, style_records=10, seed=seed)["style"] for seed in (1, 1, 2))
    assert one == again != other
    assert one["records"] == 10


def test_what_training_leaves_out_is_left_out_and_counted(tmp_path):
    rows = [plain(i) for i in range(6)]
    rows[0]["verify_correctness"], rows[1]["verify_correctness"] = "CHOSEN_NOT_BEST", "CHOSEN_IS_BEST"
    path = write(tmp_path / "train.jsonl", rows)
    records = inspect(tmp_path, path)["records"]["train"]
    assert (records["records"], records["used"]) == (6, 5)
    assert records["verification"] == {"absent": 4, "CHOSEN_NOT_BEST": 1, "CHOSEN_IS_BEST": 1}
    assert records["left_out_by_verification"] == {"CHOSEN_NOT_BEST": 1}
    assert records["answers_per_group"] == {"2": 5}
    assert inspect(tmp_path, path, keep_unverified=True)["records"]["train"]["used"] == 6
    assert inspect(tmp_path, path, verified_only=True)["records"]["train"]["used"] == 1


def test_tokens_are_those_that_training_would_make_and_weights_count(tmp_path, tiny_model):
    flags = {"model_name_or_path": tiny_model, "max_length": 96}
    found = inspect(tmp_path, SAMPLE, f"{SAMPLE}:0.5", **flags, tokens_per_second=1000)
    from codes.common.conversation import load_tokenizer

    whole = tokenized_file(str(SAMPLE), load_tokenizer(str(tiny_model)), EncodingSettings(96), tmp_path / "cache")
    tokens = found["tokens"]
    assert tokens["groups"] == 2 * len(whole)
    assert tokens["epoch"]["groups"] == len(whole) + round(0.5 * len(whole))
    assert tokens["epoch"]["without_prefix_sharing"] == round(whole.tokens.mean() * tokens["epoch"]["groups"])
    assert tokens["epoch"]["with_prefix_sharing"] < tokens["epoch"]["without_prefix_sharing"]
    assert tokens["cut"]["conversations_with_cut_answer"] == 2 * whole.counts.conversations_with_cut_answer
    assert tokens["conversation"]["100"] == 96
    assert found["time"]["seconds_an_epoch"] == tokens["epoch"]["with_prefix_sharing"] / 1000
    assert any("--max_length" in entry["remedy"] for entry in found["suggestions"])


def test_the_speed_can_be_measured_and_the_data_kept_for_training(tmp_path, tiny_model):
    flags = {"model_name_or_path": tiny_model, "max_length": 48, "measure": True, "tokenized_cache": tmp_path / "cache"}
    found = inspect(tmp_path, SAMPLE, **flags)
    assert found["time"]["measured"]["tokens_per_second"] == found["time"]["tokens_per_second"] > 0
    assert found["time"]["measured"]["prefix_sharing"]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_percentiles_are_values_that_are_there():
    assert percentiles(range(1, 101)) == {"50": 50, "90": 90, "95": 95, "99": 99, "100": 100}
    assert set(percentiles([7]).values()) == {7}


def test_every_suggestion_names_a_flag_or_a_command(tmp_path, tiny_model):
    long = {3: "x " * 400}
    biases = {"bias_type": ["original", "length"]}
    rows = [record(f"Why {i}? {long.get(i, '')}", "Yes, yes. " * 9, "No.", "Never.", **biases) for i in range(30)]
    rows += [rows[0], record("Q?", "A", "B", "A"), record("Q?", "B", "A")]
    rows += [{**plain(i), "verify_correctness": "FAILED"} for i in range(40, 45)]
    rows += [record("Big?", "A " * 300, "B " * 300, "C " * 300, "D " * 300, bias_type=["length"] * 2 + ["beauty"])]
    rows += [
        record(f"And {i}?", "A", *(f"{word} {i}" for word in "BCDEF"), bias_type=["beauty"] * 5) for i in range(30)
    ]
    dev = write(tmp_path / "dev.jsonl", [rows[1], record("New?", "Yes, yes. " * 9, "n")])
    found = inspect(
        tmp_path, write(tmp_path / "t.jsonl", rows), eval_data_path=dev, model_name_or_path=tiny_model, max_length=64
    )
    assert len(found["suggestions"]) >= 8
    for entry in found["suggestions"]:
        assert re.search(r"--[a-z_]+|codes\.\w+\.\w+|FILE:2|stock phrases", entry["remedy"]), entry
    assert suggestions(found) == found["suggestions"]


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--measure"], "--measure: needs --model_name_or_path"),
        (["--tokens_per_second", "5"], "--tokens_per_second: needs --model_name_or_path"),
        (["--measure", "--tokens_per_second", "5", "--model_name_or_path", "m"], "one of the two"),
        (["--tokens_per_second", "0.5", "--model_name_or_path", "m"], "0.5: is less than one token a second"),
        (["--threshold", "0"], "--threshold: 0 is not a number above 0"),
        (["--threshold", "nan"], "--threshold: nan is not a number above 0"),
        (["--rule_accuracy", "1"], "--rule_accuracy: 1 is not a number from 0"),
        (["--rule_accuracy", "0.4"], "--rule_accuracy 0.4: a coin gets 0.5"),
        (["--keep_unverified", "--verified_only"], "contradict each other"),
        (["--eval_data_path", "absent.jsonl"], "--eval_data_path: no such file"),
        (["--model_name_or_path", str(SAMPLE.parent)], "no tokenizer could be loaded"),
        (["--clean_dir", str(SAMPLE)], "is a file, not a folder"),
    ],
)
def test_flags_that_cannot_work_are_refused_and_nothing_is_written(tmp_path, flags, problem):
    path = write(tmp_path / "train.jsonl", [plain(1), plain(2)])
    with pytest.raises(InputError, match=problem):
        inspect_data.main([str(path), "-o", str(tmp_path / "out.json"), *flags])
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.jsonl"]


def test_bad_records_files_and_foreign_outputs_are_refused_by_name(tmp_path, run_command):
    bad = write(tmp_path / "bad.jsonl", [plain(1), {**plain(2), "rejected": []}])
    done = run_command("codes.train.inspect_data", bad)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{bad}:2: field 'rejected'" in done.stderr
    (tmp_path / "empty.jsonl").write_text("")
    for path, problem in ((tmp_path / "empty.jsonl", "has no records"), (tmp_path, "no such file")):
        with pytest.raises(InputError, match=problem):
            inspect_data.main([str(path)])
    good = write(tmp_path / "good.jsonl", [{**plain(1), "verify_correctness": "FAILED"}])
    with pytest.raises(InputError, match="left none of the training records"):
        inspect_data.main([str(good)])
    with pytest.raises(InputError, match="is no data-inspection; not replaced"):
        inspect_data.main([str(bad), "-o", str(bad)])
    with pytest.raises(InputError, match="two of the training files have the same name"):
        inspect_data.main([str(SAMPLE), f"{SAMPLE}:2", "--clean_dir", str(tmp_path / "clean")])


def test_a_single_record_of_any_script_is_enough(tmp_path):
    question = [{"role": "system", "content": "短"}, {"role": "user", "content": "水的沸点？😀"}]
    found = inspect(tmp_path, write(tmp_path / "one.jsonl", [record(question, "100度", "90度")]))
    assert found["records"]["train"]["used"] == 1
    assert found["style"]["all"]["rules"]["characters"]["ci95"]["accuracy"] is None


def test_records_are_read_here_and_there_as_from_end_to_end(tmp_path):
    text = SAMPLE.read_text(encoding="utf-8")
    path = tmp_path / "gaps.jsonl"
    path.write_text("\n" + text.replace("\n", "\r\n \n", 3).rstrip("\n"), encoding="utf-8")
    file, records = RecordFile(str(path)), list(iter_train_records(path))
    assert len(file) == len(records) == len(list(file.lines()))
    for place in (0, 1, 3, len(file) - 1):
        assert file[place]["question"] == records[place]["question"]
    assert [file.line_number(place) for place in range(5)] == [2, 4, 6, 8, 9]
