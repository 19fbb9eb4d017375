"""codes.construct.import_data: every public format to train records, from every kind of file; the held-out split."""

import csv
import json
import math
import os
import time
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from codes.common import sources
from codes.common.records import FieldError, InputError, iter_train_records, read_jsonl
from codes.construct import import_data, import_formats
from codes.construct.import_bias_pairs import is_held_out

USER = {"role": "user", "content": "What is 2 + 2?"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "And doubled?"},
]


def answer(text):
    return {"role": "assistant", "content": text}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(tmp_path, source, *flags, name="out.jsonl"):
    """The records that the command makes of a source."""
    output = tmp_path / "imported" / name
    assert import_data.main([str(source), "--output_file", str(output), *map(str, flags)]) == 0
    return read_jsonl(output)


def refused(tmp_path, source, *flags, error=InputError):
    """The message of a refused import; nothing may have been written."""
    output = tmp_path / "refused" / "out.jsonl"
    with pytest.raises(error) as caught:
        import_data.main([str(source), "--output_file", str(output), *map(str, flags)])
    assert not output.parent.exists() or not any(output.parent.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts_of(tmp_path, name="out.jsonl"):
    return json.loads((tmp_path / "imported" / f"{name}.run_info.json").read_text())["counts"]


# --- preference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "chosen": "4", "rejected": "5"},
        {"question": USER["content"], "chosen": "4", "rejected": ["5"]},
        {"prompt": [USER], "chosen": [answer("4")], "rejected": [answer("5")]},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
        {"chosen": [USER, answer("4")], "rejected": [USER, answer("5")]},
        {"prompt": USER["content"], "chosen": [USER, answer("4")], "rejected": [[USER, answer("5")]]},
        {"prompt": [USER], "chosen": [USER, answer("4")], "rejected": [[USER, answer("5")]]},
        {
            "chosen": "\n\nHuman: What is 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: What is 2 + 2?\n\nAssistant: 5",
        },
    ],
)
def test_every_shape_of_a_preference_row_gives_the_same_record(row):
    record = import_formats.train_record(row, "preference", Counter())
    assert record == {"question": "What is 2 + 2?", "chosen": "4", "rejected": ["5"]}


def test_shared_turns_become_the_question_and_unknown_fields_are_carried():
    row = {"chosen": [*TURNS, answer("8")], "rejected": [[*TURNS, answer("6")], [*TURNS, answer("7")]], "score": 3.5}
    record = import_formats.train_record(row, "preference", Counter())
    assert record == {"question": TURNS, "chosen": "8", "rejected": ["6", "7"], "score": 3.5}


def test_a_transcript_of_several_turns_becomes_messages():
    said = "\n\nHuman: Hi\n\nAssistant: Hello\nthere\n\nHuman: Bye\n\nAssistant:"
    record = import_formats.train_record(
        {"chosen": said + " Goodbye", "rejected": said + " What?"}, "preference", Counter()
    )
    assert record["question"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello\nthere"},
        {"role": "user", "content": "Bye"},
    ]
    assert (record["chosen"], record["rejected"]) == ("Goodbye", ["What?"])


def test_train_records_pass_unchanged_with_unknown_fields_and_key_order(tmp_path):
    rows = [
        {
            "rejected": ["b", "c"],
            "chosen": "a",
            "x": {"y": [1, None]},
            "question": "q",
            "bias_type": ["length"],
            "id": 7,
        },
        {"id": "k", "question": TURNS, "chosen": "a", "rejected": ["b"], "verify_correctness": "UNDECIDED"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    imported(tmp_path, source)
    assert (tmp_path / "imported" / "out.jsonl").read_bytes() == source.read_bytes()


def test_answers_equal_to_chosen_go_with_what_is_aligned_to_them():
    record = {
        "question": "q",
        "chosen": "a",
        "rejected": ["b", "a", "  ", "c"],
        "bias_type": ["length", "beauty", "gender"],
        "provenance": [1, 2, 3, 4],
        "verdicts": [[1], [2], [3], [4]],
        "rewards": {"safe": [9, 1, None, 3, 4]},
    }
    counts = Counter()
    assert import_formats.train_record(record, "preference", counts) == {
        "question": "q",
        "chosen": "a",
        "rejected": ["b", "c"],
        "bias_type": ["original", "gender"],
        "provenance": [1, 4],
        "verdicts": [[1], [4]],
        "rewards": {"safe": [9, 1, 4]},
    }
    assert counts == {"answers dropped: equal to chosen": 1, "answers dropped: empty": 1}


def test_rewards_of_another_shape_are_named_before_an_answer_is_left_out():
    record = {"question": "q", "chosen": "a", "rejected": ["b", "a"], "rewards": {"safe": [1, 2]}}
    with pytest.raises(FieldError, match=r"field 'rewards\.safe': 2 ratings for the chosen and 2 rejected answers"):
        import_formats.train_record(record, "preference", Counter())


def test_what_makes_no_group_is_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": " ", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"chosen": [*TURNS, answer("8")], "rejected": [USER, answer("5")]},
    ]
    assert len(imported(tmp_path, write(tmp_path / "in.jsonl", rows))) == 1
    assert counts_of(tmp_path) == {
        "rows read": 5,
        "answers dropped: equal to chosen": 1,
        "rows dropped: no rejected answer left": 1,
        "rows dropped: empty question or chosen answer": 2,
        "rows dropped: chosen and rejected differ before their last turn": 1,
        "groups written": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, "field 'rejected': is missing"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "field 'chosen': is missing"),
        ({"chosen": "a", "rejected": "b"}, "field 'prompt': is missing"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "field 'prompt'"),
        ({"prompt": "q", "chosen": 5, "rejected": "b"}, "field 'chosen'"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "field 'rejected': the list is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": ["b", 5]}, "field 'rejected[1]'"),
        ({"chosen": [USER, answer("a")], "rejected": [USER]}, "field 'rejected': the messages end in a user turn"),
        (
            {"chosen": [USER, {"role": "bot", "content": "a"}], "rejected": [USER, answer("b")]},
            "field 'chosen[1].role'",
        ),
        ({"chosen": [answer("a")], "rejected": [answer("b")]}, "field 'prompt': is missing"),
        ({"prompt": [USER], "chosen": [*TURNS, answer("a")], "rejected": "b"}, "field 'chosen': its first turns"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "verify_correctness": "YES"}, "field 'verify_correctness'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "id": 1.5}, "field 'id'"),
    ],
)
def test_a_bad_row_stops_the_import_naming_file_line_and_field(tmp_path, row, message):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source = write(tmp_path / "in.jsonl", [good, row, good])
    assert f"{source}:2: {message}" in refused(tmp_path, source, "--format", "preference")


def test_repeated_ids_are_numbered_in_foreign_sets_and_refused_in_train_records(tmp_path):
    foreign = [
        {"id": number, "prompt": "q", "chosen": f"a{i}", "rejected": "b"} for i, number in enumerate([1, 1, "1-1", 1])
    ]
    records = imported(tmp_path, write(tmp_path / "foreign.jsonl", foreign))
    assert [record["id"] for record in records] == [1, "1-1", "1-1-1", "1-2"]
    own = write(tmp_path / "own.jsonl", [{"id": "x", "question": "q", "chosen": "a", "rejected": ["b"]}] * 2)
    assert f"{own}:2: field 'id': 'x' stands twice" in refused(tmp_path, own)


# --- gram and unified-feedback ------------------------------------------------------------------------------------


def gram_row(output="A", first="Four.", second="Five.", prompt="What is 2 + 2?"):
    instruction = (
        f"Judge the answers.\n\n[User Question]\n{prompt}\n\n[The Start of Assistant A's Answer]\n{first}\n"
        f"[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\n{second}\n"
        "[The End of Assistant B's Answer]\n\n#Preferred:"
    )
    return {"instruction": instruction, "input": "", "output": output}


def test_gram_rows_give_the_preferred_answer_as_chosen_without_template_leftovers(tmp_path):
    rows = [
        gram_row("A"),
        gram_row("B", second="    indented\ncode<|im_end|>\n"),
        gram_row("A", first="Markers: [The End of Assistant A's Answer] again"),
        gram_row("A", first="x <|im_end|>", second="x"),
    ]
    assert imported(tmp_path, write(tmp_path / "gram.jsonl", rows)) == [
        {"question": "What is 2 + 2?", "chosen": "Four.", "rejected": ["Five."]},
        {"question": "What is 2 + 2?", "chosen": "    indented\ncode", "rejected": ["Four."]},
    ]
    assert (
        counts_of(tmp_path)["rows dropped: the markers around the answers are missing, repeated or out of order"] == 1
    )
    assert counts_of(tmp_path)["rows dropped: no rejected answer left"] == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"output": "C"}, "output"),
        ({"output": None}, "output"),
        ({"instruction": "Alpaca style"}, "instruction"),
        ({"instruction": ["x"]}, "instruction"),
        ({"input": "something"}, "input"),
    ],
)
def test_rows_that_are_no_gram_rows_are_refused(tmp_path, change, field):
    source = write(tmp_path / "gram.jsonl", [gram_row() | change])
    assert f"{source}:1: field '{field}'" in refused(tmp_path, source)


def unified_row(rating_a, rating_b, context=(USER,), other=None):
    return {
        "id": "u1",
        "conv_A": [*context, answer("Four.")],
        "conv_B": [*(other or context), answer("Five.")],
        "conv_A_rating": rating_a,
        "conv_B_rating": rating_b,
        "num_turns": 1,
        "source": "made up",
    }


def test_unified_feedback_takes_the_better_rated_answer_and_counts_ties(tmp_path):
    rows = [unified_row(1, 0), unified_row(0.5, 2, TURNS), unified_row(1, 1.0), unified_row(1, 0, TURNS, [USER])]
    records = imported(tmp_path, write(tmp_path / "unified.jsonl", rows))
    carried = {"num_turns": 1, "source": "made up"}
    first = {"question": "What is 2 + 2?", "chosen": "Four.", "rejected": ["Five."], "id": "u1"}
    second = {"question": TURNS, "chosen": "Five.", "rejected": ["Four."], "id": "u1-1"}
    assert records == [
        first | carried | {"chosen_rating": 1, "rejected_rating": 0},
        second | carried | {"chosen_rating": 2, "rejected_rating": 0.5},
    ]
    assert counts_of(tmp_path)["rows dropped: tie"] == 1
    assert counts_of(tmp_path)["rows dropped: chosen and rejected differ before their last turn"] == 1


@pytest.mark.parametrize("row", [gram_row(), unified_row(1, 0)])
@pytest.mark.parametrize(("field", "value"), [("rejected", [{"a": 1}]), ("question", "Another?"), ("chosen", "It.")])
def test_a_field_that_would_overwrite_what_is_made_of_the_row_is_refused(tmp_path, row, field, value):
    row_format = "gram" if "instruction" in row else "unified-feedback"
    source = write(tmp_path / "rows.jsonl", [row | {field: value}])
    assert f"rows.jsonl:1: field '{field}': is made by" in refused(tmp_path, source, "--format", row_format)
    [record] = imported(tmp_path, write(source, [row | {field: None}]), "--format", row_format)
    assert record[field]


def test_unified_feedback_without_a_rating_is_refused(tmp_path):
    for rating, problem in ((None, "is missing"), ("5", "expected a number"), (True, "expected a number")):
        source = write(tmp_path / "unified.jsonl", [unified_row(rating, 1)])
        assert f"{source}:1: field 'conv_A_rating': {problem}" in refused(tmp_path, source)


def test_the_shipped_unified_feedback_sample_imports(tmp_path):
    source = import_data.Path(__file__).parent.parent / "data/train-unified-feedback/sample.jsonl"
    records = imported(tmp_path, source)
    ties = counts_of(tmp_path).get("rows dropped: tie", 0)
    assert len(records) + ties == len(read_jsonl(source))
    assert any(isinstance(record["question"], list) for record in records)
    assert len(list(iter_train_records(tmp_path / "imported" / "out.jsonl"))) == len(records)


# --- files, folders, the Hub --------------------------------------------------------------------------------------

ROWS = [
    {"prompt": f'Question {i}, "quoted"\nand é 水', "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(700)
]


def test_all_file_kinds_give_the_same_records(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "lines.json", ROWS)
    (tmp_path / "array.json").write_text("\ufeff \n" + json.dumps(ROWS, indent=1), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(ROWS)
    expected = [{"question": r["prompt"], "chosen": r["chosen"], "rejected": [r["rejected"]]} for r in ROWS]
    for name in ("a.jsonl", "lines.json", "array.json", "a.parquet", "a.csv"):
        assert imported(tmp_path, tmp_path / name, name=name + ".out") == expected, name


def test_nulls_and_nan_of_a_parquet_column_count_as_absent(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": math.nan, "note": None, "id": None},
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1.5, "note": "n", "id": 3},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    record = {"question": "q", "chosen": "a", "rejected": ["b"]}
    assert imported(tmp_path, tmp_path / "a.parquet") == [record, record | {"score": 1.5, "note": "n", "id": 3}]


def test_parquet_messages_and_missing_answers_are_handled_like_json(tmp_path):
    rows = [
        {"chosen": [USER, answer("a")], "rejected": [USER, answer("b")]},
        {"chosen": [USER, answer("a")], "rejected": None},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert f"{path}: row 2: field 'rejected': is missing" in refused(tmp_path, path)
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path}: after row 0: not readable as Parquet" in refused(tmp_path, path)


def test_messages_in_csv_cells_are_read_and_broken_csv_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [["chosen", "rejected"], *[[json.dumps([USER, answer(text)]) for text in "ab"]], ["x,y"]]
        )
    message = refused(tmp_path, path)
    assert f"{path}:3: the row does not have the header's 2 columns" in message
    path.write_text(path.read_text().replace('"x,y"\n', "").replace('"x,y"\r\n', ""))
    assert imported(tmp_path, path) == [{"question": USER["content"], "chosen": "a", "rejected": ["b"]}]
    path.write_text('prompt,chosen,rejected\nq,"a,b\n')
    assert f"{path}:2: not readable as CSV" in refused(tmp_path, path)


def test_a_folder_gives_the_files_of_one_split_in_order(tmp_path):
    row = {"prompt": "q", "chosen": "a"}
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001", "train_gen-00000-of-00001"):
        table = pyarrow.Table.from_pylist([row | {"rejected": name}])
        parquet.write_table(table, tmp_path / f"set/data/{name}.parquet")
    (tmp_path / "set" / "README.md").write_text("no data")
    rejected = [record["rejected"][0] for record in imported(tmp_path, tmp_path / "set")]
    assert rejected == ["train-00000-of-00002", "train-00001-of-00002"]
    assert imported(tmp_path, tmp_path / "set", "--split", "test", name="t")[0]["rejected"] == ["test-00000-of-00001"]
    assert "no file is of the split 'val'" in refused(tmp_path, tmp_path / "set", "--split", "val")


def test_a_folder_never_mixes_its_test_files_into_training(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for name in ("part1", "part2", "my_test", "x.failures", "out.jsonl.run_info"):
        write(tmp_path / "set" / f"{name}{'.json' if 'run_info' in name else '.jsonl'}", [row | {"file": name}])
    assert [record["file"] for record in imported(tmp_path, tmp_path / "set")] == ["part1", "part2"]


def test_an_unreachable_hub_fails_in_one_line_that_says_what_to_do(tmp_path, run_command):
    command = ["llm-blender/Unified-Feedback", "--output_file", tmp_path / "out.jsonl"]
    run = run_command("codes.construct.import_data", *command, HF_HOME=str(tmp_path / "home"))
    assert run.returncode == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "could not be fetched from the Hub" in run.stderr
    assert "give its folder or files instead" in run.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_other_bad_input_is_refused_before_anything_is_written(tmp_path):
    good = write(tmp_path / "in.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    unknown = write(tmp_path / "unknown.jsonl", [{"text": "x"}])
    only_ties = write(tmp_path / "ties.jsonl", [unified_row(1, 1)])
    assert "the folder holds no" in refused(tmp_path, tmp_path / "empty")
    assert "the file has no records" in refused(tmp_path, tmp_path / "empty.jsonl")
    assert f"{unknown}:1: field '(row)': the fields text are of no known format" in refused(tmp_path, unknown)
    assert "no group could be made (rows read 1; rows dropped: tie 1)" in refused(tmp_path, only_ties)
    assert "splits bias-pair files only" in refused(tmp_path, good, "--holdout", "0.3", "--holdout_dir", tmp_path / "h")
    assert "both or neither" in refused(tmp_path, good, "--holdout", "0.3")
    assert "both or neither" in refused(tmp_path, good, "--holdout_dir", tmp_path / "h")
    assert "is named <bias>_bias.jsonl" in refused(tmp_path, good, "--format", "bias-pairs")
    assert not (tmp_path / "h").exists()


def test_the_limit_counts_groups_and_reads_no_further(tmp_path):
    rows = [unified_row(1, 1), unified_row(1, 0), unified_row(1, 2), {"broken": True}]
    assert len(imported(tmp_path, write(tmp_path / "in.jsonl", rows), "--limit", 2)) == 2


# --- outputs ------------------------------------------------------------------------------------------------------


def test_a_rerun_writes_the_same_bytes_and_another_configuration_is_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS[:9])
    output = tmp_path / "imported" / "out.jsonl"
    imported(tmp_path, source)
    before = output.read_bytes()
    imported(tmp_path, source)
    assert output.read_bytes() == before
    with pytest.raises(InputError, match="another configuration"):
        imported(tmp_path, source, "--limit", 3)
    write(source, ROWS[:8])
    with pytest.raises(InputError, match="another configuration"):
        imported(tmp_path, source)
    assert output.read_bytes() == before
    (tmp_path / "imported" / "out.jsonl.run_info.json").unlink()
    with pytest.raises(InputError, match="not replaced"):
        imported(tmp_path, source)
    assert output.read_bytes() == before


@pytest.mark.parametrize("last", ["rename", "final run_info"])
def test_a_run_killed_around_the_output_s_rename_can_be_run_again(tmp_path, monkeypatch, last):
    source = write(tmp_path / "in.jsonl", ROWS)
    whole = imported(tmp_path, source, name="whole.jsonl")
    folder, replace, renamed = tmp_path / "imported", os.replace, []

    def killed(temporary, path):
        renamed.append(os.path.basename(path))
        if renamed[-1] == "out.jsonl" and last == "rename":
            raise KeyboardInterrupt
        replace(temporary, path)
        if renamed[-1] == "out.jsonl":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            imported(tmp_path, source)
    assert renamed == ["out.jsonl.run_info.json", "out.jsonl"]
    assert (folder / "out.jsonl").exists() == (last != "rename")
    assert imported(tmp_path, source) == whole
    assert counts_of(tmp_path) == counts_of(tmp_path, "whole.jsonl")


def test_many_rows_of_one_id_are_numbered_in_one_pass():
    rows = [
        ("in.jsonl:1", {"id": key, "prompt": "q", "chosen": "a", "rejected": "b"}) for key in ("x-2", *["x"] * 20_000)
    ]
    started = time.monotonic()
    ids = [record["id"] for record in import_data.iter_train_rows(iter(rows), "preference", Counter())]
    assert time.monotonic() - started < 10  # looking from 1 on each time takes minutes
    assert ids[:5] == ["x-2", "x", "x-1", "x-3", "x-4"]
    assert len(set(ids)) == len(ids)


def test_the_output_may_not_lie_among_the_input(tmp_path):
    source = write(tmp_path / "set" / "in.jsonl", ROWS[:2])
    for place in (source, tmp_path / "set" / "out.jsonl"):
        with pytest.raises(InputError, match="among the input files"):
            import_data.main([str(tmp_path / "set"), "--output_file", str(place)])
    with pytest.raises(InputError, match="among the input files"):
        import_data.main([str(source), "--output_file", str(source)])
    assert read_jsonl(source) == ROWS[:2]


# --- bias pairs ---------------------------------------------------------------------------------------------------


def pair(question, better, worse, rewritten, label="response1"):
    """A bias pair; ``rewritten`` is the rewritten worse answer."""
    sides = [(better, better + " (rewritten)"), (worse, rewritten)]
    if label == "response2":
        sides.reverse()
    return {
        "question": question,
        "original_response1": sides[0][0],
        "original_response2": sides[1][0],
        "rewritten_response1": sides[0][1],
        "rewritten_response2": sides[1][1],
        "label": label,
    }


def test_bias_pairs_make_one_group_for_each_question_and_better_answer(tmp_path):
    folder = tmp_path / "pairs"
    write(
        folder / "length_bias.jsonl",
        [pair("q1", "g1", "w1", "w1 long"), pair("q2", "h1", "v1", "v1 long", "response2")],
    )
    write(
        folder / "beauty_bias.jsonl",
        [
            pair("q1", "g1", "w1", "w1 *nice*", "response2"),
            pair("q1", "g2", "w2", "w2 *nice*"),
            pair("q1", "g1", "w3", "w1"),
            pair("q2", "h1", "v1", "h1"),
        ],
    )
    write(
        folder / "refinement-aware_bias.jsonl",
        [{"question": "q1", "original_response": "o", "rewritten_response": "r"}],
    )
    records = imported(tmp_path, folder)
    assert records == [
        {"question": "q1", "chosen": "g1", "rejected": ["w1", "w3", "w1 *nice*", "w1 long"],
         "bias_type": ["original", "original", "beauty", "length"]},
        {"question": "q1", "chosen": "g2", "rejected": ["w2", "w2 *nice*"], "bias_type": ["original", "beauty"]},
        {"question": "q2", "chosen": "h1", "rejected": ["v1", "v1 long"], "bias_type": ["original", "length"]},
    ]  # fmt: skip
    assert counts_of(tmp_path) == {
        "rows read": 7,
        "answers met again: rewritten worse answers that their group has already": 1,
        "answers met again: original worse answers that their group has already": 2,
        "answers dropped: equal to chosen": 1,
        "rows left out: refinement-aware rows are no pairs": 1,
        "groups written": 3,
    }


def test_the_draw_depends_on_seed_and_words_alone():
    questions = [f"Question number {i}" for i in range(4000)]
    share = sum(is_held_out(question, 0.3, 42) for question in questions) / len(questions)
    assert abs(share - 0.3) < 0.03
    assert [is_held_out(q, 0.3, 1) for q in questions] != [is_held_out(q, 0.3, 2) for q in questions]
    for question in questions[:200]:
        variants = (f"  {question.upper()}\n", [{"role": "user", "content": question}])
        assert {is_held_out(variant, 0.3, 42) for variant in variants} == {is_held_out(question, 0.3, 42)}
    held = {q for q in questions if is_held_out(q, 0.2, 42)}
    assert held <= {q for q in questions if is_held_out(q, 0.3, 42)}


def test_a_bad_pair_row_is_refused_naming_its_field(tmp_path):
    folder = tmp_path / "pairs"
    write(folder / "length_bias.jsonl", [pair("q", "g", "w", "w+")])
    path = write(folder / "race_bias.jsonl", [pair("q", "g", "w", "w+"), pair("q", "g", "w", "w+") | {"label": "A"}])
    flags = ("--holdout", "0.3", "--holdout_dir", tmp_path / "held")
    assert f"{path}:2: field 'label'" in refused(tmp_path, folder, *flags)
    assert not (tmp_path / "held").exists()


def test_held_out_files_of_others_are_never_replaced(tmp_path):
    folder, held = tmp_path / "pairs", tmp_path / "held"
    write(folder / "length_bias.jsonl", [pair(f"q{i}", f"g{i}", f"w{i}", f"w{i}+") for i in range(40)])
    theirs = write(held / "length_bias.jsonl", [pair("mine", "g", "w", "w+")])
    before = theirs.read_bytes()
    assert "not replaced" in refused(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", held)
    assert "holds the input files" in refused(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", folder)
    assert theirs.read_bytes() == before
    theirs.unlink()
    imported(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", held)
    before = theirs.read_bytes()
    imported(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", held)
    assert theirs.read_bytes() == before
    with pytest.raises(InputError, match=r"another configuration \(seed"):
        imported(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", held, "--seed", 7, name="other.jsonl")
    assert theirs.read_bytes() == before


def test_a_holdout_that_holds_nothing_out_says_so(tmp_path, caplog):
    folder, held = tmp_path / "pairs", tmp_path / "held"
    write(folder / "length_bias.jsonl", [pair("q", "g", "w", "w+")])
    imported(tmp_path, folder, "--holdout", "0.0001", "--holdout_dir", held)
    assert "holds nothing out" in caplog.text
    assert [path.name for path in held.iterdir()] == ["run_info.json"]


def test_the_real_files_split_without_leak_or_loss(tmp_path, shared_data):
    folder, held = shared_data / "contrastrm-eval", tmp_path / "held"
    records = imported(tmp_path, folder, "--holdout", "0.3", "--holdout_dir", held)
    files = {path.name: read_jsonl(path) for path in sorted(folder.glob("*.jsonl"))}
    held_rows = {path.name: read_jsonl(path) for path in sorted(held.glob("*_bias.jsonl"))}
    held_questions = {row["question"] for rows in held_rows.values() for row in rows}
    groups = {(record["question"], record["chosen"]): record for record in records}

    assert len(groups) == len(records)
    assert not held_questions & {record["question"] for record in records}
    assert 0.2 < len(held_questions) / len({row["question"] for rows in files.values() for row in rows}) < 0.4
    for name, rows in files.items():
        # Held-out rows stand unchanged and in order; every other pair row stands in its group.
        assert held_rows[name] == [row for row in rows if row["question"] in held_questions]
        for row in rows:
            if row["question"] in held_questions or name.startswith("refinement-aware"):
                continue
            better, worse = ("1", "2") if row["label"] == "response1" else ("2", "1")
            record = groups[row["question"], row[f"original_response{better}"]]
            kinds = dict(zip(record["rejected"], record["bias_type"], strict=True))
            assert kinds[row[f"original_response{worse}"]] == "original"
            assert kinds[row[f"rewritten_response{worse}"]] == name.removesuffix("_bias.jsonl")
    assert all(record["chosen"] not in record["rejected"] for record in records)
    assert all(len(set(record["rejected"])) == len(record["rejected"]) for record in records)
    assert len(list(iter_train_records(tmp_path / "imported" / "out.jsonl"))) == len(records)


def test_memory_stays_flat_over_a_large_source(tmp_path):
    import tracemalloc

    def rows():
        for i in range(7_000):
            yield {"prompt": f"q{i}", "chosen": "a" * 1000, "rejected": "b" * 1000}

    for name in ("big.jsonl", "big.json"):
        path = tmp_path / name
        with open(path, "w") as file:
            if name == "big.json":
                file.write("[" + ",\n".join(map(json.dumps, rows())) + "]")
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows())
        assert os.path.getsize(path) > 14_000_000
        tracemalloc.start()
        made = sum(1 for _ in import_data.iter_train_rows(sources.iter_file(path), "preference", Counter()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert made == 7_000
        assert peak < 6_000_000, name
