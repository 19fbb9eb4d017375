"""Records to encoded groups on disk: what is used, left out, cut and counted, and what the cache may be taken for."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from codes.common.conversation import load_tokenizer
from codes.common.prefix_sharing import BatchLayout
from codes.common.records import InputError
from codes.train import tokenized_data
from codes.train.batches import GroupCollator, GroupDataset
from codes.train.tokenized_data import tokenized_file
from codes.train.training_data import (
    OTHER_PROMPT,
    DataCounts,
    EncodingSettings,
    WeightedFile,
    weighted_file,
    with_in_batch_negatives,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def write(tmp_path):
    def write_records(*records: dict, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return write_records


@pytest.fixture
def tokenized(write, tokenizer, tmp_path):
    """Records, written to a file and tokenized -> all groups and the counts."""

    def tokenize(*records: dict, max_length: int = 200, with_tokenizer=tokenizer, **settings):
        encoding = EncodingSettings(max_length, **settings)
        data = GroupDataset([tokenized_file(write(*records), with_tokenizer, encoding, tmp_path / "cache")])
        return [data[index] for index in range(len(data))], data.counts

    return tokenize


def record(**fields) -> dict:
    return {"question": "What is six times seven?", "chosen": "It is 42.", "rejected": ["It is 41."]} | fields


OUTCOMES = [{}] + [{"verify_correctness": outcome} for outcome in ("CHOSEN_IS_BEST", "CHOSEN_NOT_BEST", "UNDECIDED")]


@pytest.mark.parametrize(("flags", "used"), [({}, 2), ({"keep_unverified": True}, 4), ({"verified_only": True}, 1)])
def test_records_that_verification_did_not_pass_are_left_out_and_counted(tokenized, flags, used):
    groups, counts = tokenized(*(record(**outcome) for outcome in OUTCOMES), **flags)
    assert len(groups) == counts.groups == used
    assert counts.records == 4
    assert sum(counts.left_out_by_verification.values()) == 4 - used


def test_the_outcomes_left_out_are_named(tokenized):
    _, counts = tokenized(*(record(**outcome) for outcome in OUTCOMES), verified_only=True)
    assert counts.left_out_by_verification == {"absent": 1, "CHOSEN_NOT_BEST": 1, "UNDECIDED": 1}


def test_nothing_left_after_verification_is_an_input_error(tokenized):
    with pytest.raises(InputError, match=r"train\.jsonl: verification left none of the 1 records"):
        tokenized(record(verify_correctness="FAILED"))


def test_every_rejected_answer_is_encoded_for_any_group_size(tokenized):
    records = [record(rejected=[f"It is {k}." for k in range(size)]) for size in (1, 2, 7)]
    groups, counts = tokenized(*records)
    assert [len(group.answers) for group in groups] == [2, 3, 8]
    assert [group.index for group in groups] == [0, 1, 2]
    assert groups[1].answer_characters == (9, 8, 8)
    assert (counts.groups, counts.rejected_answers, counts.conversations_with_cut_prompt) == (3, 10, 0)
    assert counts.tokens == sum(len(answer) for group in groups for answer in group.answers)


def test_a_groups_ids_are_those_of_the_rendered_conversations(tokenized, tokenizer):
    (group,), _ = tokenized(record(rejected=["水 is 41.", "No."]))
    for answer, text in zip(group.answers, ("It is 42.", "水 is 41.", "No.")):
        messages = [{"role": "user", "content": record()["question"]}, {"role": "assistant", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert answer == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_only_the_first_rejected_answer_is_encoded_where_no_other_takes_part(tokenized):
    (group,), _ = tokenized(record(rejected=["one", "two"]), first_rejected_only=True)
    assert group.answer_characters == (9, 3)


def test_answers_that_truncation_makes_equal_to_the_chosen_one_are_dropped_and_counted(tokenized):
    same_start = "the answer is as follows, in many words that are all the same: "
    records = [
        record(chosen=same_start + "yes", rejected=[same_start + "no", "No."], bias_type=["length", "beauty"]),
        record(chosen=same_start + "yes", rejected=[same_start + "no"]),
    ]
    (group,), counts = tokenized(*records, max_length=8)
    assert len(group.answers) == 2
    assert group.answer_characters == (len(same_start) + 3, 3)
    assert group.bias_types == ("beauty",)
    assert counts.dropped_answers_equal_to_chosen == 2
    assert counts.dropped_groups_without_rejected == 1
    assert counts.conversations_with_cut_answer == 1
    assert counts.cut_answer_tokens > 0


def test_a_rejected_answer_equal_to_the_chosen_one_from_the_start_is_dropped_too(tokenized):
    (group,), counts = tokenized(record(rejected=["It is 42.", "It is 40."]))
    assert len(group.answers) == 2
    assert counts.dropped_answers_equal_to_chosen == 1


def test_no_group_left_is_an_input_error_that_names_the_remedy_and_leaves_no_folder(tokenized, tmp_path):
    with pytest.raises(InputError, match="raise --max_length"):
        tokenized(record(rejected=["It is 42."]))
    assert not (tmp_path / "cache").exists()


def test_a_record_that_the_template_refuses_is_named(tokenized, tokenizer):
    refusing = copy.deepcopy(tokenizer)
    refusing.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(InputError, match=r"record 'r7': the chat template refuses .*no system turn"):
        tokenized(record(id="r7"), with_tokenizer=refusing)


def test_bias_types_stay_with_their_answers_when_one_between_is_dropped(tokenized):
    biased = record(rejected=["It is 41.", "It is 42.", "It is 40."], bias_type=["length", "beauty"])
    (group,), counts = tokenized(biased)
    assert group.bias_types == ("original", "beauty")
    assert counts.rejected_by_bias_type == {"original": 1, "length": 1, "beauty": 1}


def test_in_batch_negatives_are_chosen_answers_of_other_questions_drawn_by_seed_and_place():
    records = [record(question=f"Q{i // 2}", chosen=f"A{i // 2}", rejected=["no"]) for i in range(40)]
    extended = with_in_batch_negatives(records, 3, seed=1)
    for before, after in zip(records, extended):
        assert after["rejected"][:1] == before["rejected"]
        added = after["rejected"][1:]
        assert len(set(added)) == 3
        assert before["chosen"] not in added
        assert after["bias_type"] == ["original", *[OTHER_PROMPT] * 3]
    assert extended == with_in_batch_negatives(records, 3, seed=1)
    assert extended != with_in_batch_negatives(records, 3, seed=2)
    assert len({answer for item in extended for answer in item["rejected"][1:]}) > 10


def test_more_in_batch_negatives_than_other_questions_are_refused():
    records = [record(question="one"), record(question="two"), record(question="two")]
    assert len(with_in_batch_negatives(records, 1, seed=0)[1]["rejected"]) == 2
    with pytest.raises(InputError, match="more than the data's 2 questions"):
        with_in_batch_negatives(records, 2, seed=0)


def test_in_batch_negatives_are_groups_answers_but_not_counted_among_the_datas_bias_types(tokenized):
    groups, counts = tokenized(record(question="one"), record(question="two", chosen="42"), in_batch_negatives=1)
    assert [group.bias_types for group in groups] == [("original", OTHER_PROMPT)] * 2
    assert counts.rejected_by_bias_type == {"original": 2}


# --- Ratings by objective ----------------------------------------------------------------------------------------

RATED = record(
    rejected=["It is 41.", "It is 42.", "It is 40."],
    rewards={"safe": [1, 2, 9, 2.5], "helpful": [None, 3, 9, 1e300], "unread": [1, 2, 3, 4]},
)


def test_ratings_stay_with_their_answers_when_one_between_is_dropped(tokenized):
    groups, counts = tokenized(RATED, record(rejected=["No."]), objectives=("helpful", "safe"))
    assert groups[0].ratings == ((None, 1.0), (3.0, 2.0), (1e300, 2.5))
    assert groups[1].ratings == ((None, None), (None, None))
    assert (counts.dropped_answers_equal_to_chosen, counts.groups_without_rated_pair) == (1, 1)
    assert counts.rated_pairs == {"helpful": 1, "safe": 3}


def test_ratings_that_tie_make_no_pair(tokenized):
    _, counts = tokenized(record(rejected=["a", "b"], rewards={"safe": [2, 2.0, None]}), objectives=("safe",))
    assert (counts.rated_pairs, counts.groups_without_rated_pair) == ({"safe": 0}, 1)


def test_without_objectives_no_rating_is_read(tokenized):
    (group,), counts = tokenized(RATED)
    assert group.ratings == ()
    assert (counts.rated_pairs, counts.groups_without_rated_pair) == ({}, 0)


def test_an_answer_to_another_prompt_has_no_rating(tokenized):
    other = record(question="Q", chosen="A", rewards={"safe": [3, 1]})
    groups, _ = tokenized(RATED, other, objectives=("safe",), in_batch_negatives=1)
    assert groups[1].ratings == ((3.0,), (1.0,), (None,))
    assert len(groups[0].ratings) == len(groups[0].answers) == 4


def test_a_batch_holds_the_ratings_of_all_its_answers_and_nan_where_there_is_none(tokenized):
    groups, _ = tokenized(RATED, record(rejected=["No."]), objectives=("helpful", "safe"))
    ratings = GroupCollator(BatchLayout(0))(groups)["groups"].ratings
    expected = torch.tensor([[math.nan, 1], [3, 2], [1e300, 2.5], [math.nan] * 2, [math.nan] * 2], dtype=torch.float64)
    torch.testing.assert_close(ratings, expected, equal_nan=True, rtol=0, atol=0)


# --- The folder that keeps them ----------------------------------------------------------------------------------


@pytest.fixture
def encodings(monkeypatch):
    """Counts how many records are encoded."""
    encoded = []
    encode = tokenized_data.encode_record

    def counting(*arguments):
        encoded.append(arguments[1]["id"])
        return encode(*arguments)

    monkeypatch.setattr(tokenized_data, "encode_record", counting)
    return encoded


def test_a_second_start_encodes_nothing_and_finds_the_same_groups_and_counts(tokenized, encodings):
    records = [record(), record(rejected=["It is 42.", "No."]), record(verify_correctness="FAILED")]
    first = tokenized(*records)
    assert len(encodings) == 2
    assert tokenized(*records) == first
    assert len(encodings) == 2
    assert (first[1].dropped_answers_equal_to_chosen, first[1].left_out_by_verification) == (1, {"FAILED": 1})


@pytest.mark.parametrize("change", ["data", "length", "template", "tokenizer", "answers", "objectives", "code"])
def test_whatever_decides_the_ids_makes_them_anew(tokenized, tokenizer, encodings, change, monkeypatch):
    tokenized(record())
    other = copy.deepcopy(tokenizer)
    if change == "template":
        other.chat_template = other.chat_template.replace("assistant", "model")
    elif change == "tokenizer":
        other.add_tokens(["seven"])
    elif change == "code":
        monkeypatch.setattr(tokenized_data, "_code_hash", lambda: "another version")
    tokenized(
        record(chosen="It is 42!") if change == "data" else record(),
        max_length=20 if change == "length" else 200,
        first_rejected_only=change == "answers",
        objectives=("safe",) if change == "objectives" else (),
        with_tokenizer=other,
    )
    assert len(encodings) == 2


def test_several_processes_write_what_one_does_in_the_same_order(write, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenized_data, "CHUNK", 3)
    path = write(*(record(question=f"q{i}", rejected=["It is 42."] * (i % 4 == 0) + ["No."]) for i in range(20)))
    one = tokenized_file(path, tokenizer, EncodingSettings(200), tmp_path / "one", processes=1)
    two = tokenized_file(path, tokenizer, EncodingSettings(200), tmp_path / "two", processes=2)
    assert [one.group(i, i) for i in range(20)] == [two.group(i, i) for i in range(20)]
    assert one.counts == two.counts
    assert one.counts.dropped_answers_equal_to_chosen == 5


def test_a_bad_line_in_the_middle_ends_several_processes_with_the_same_error(write, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenized_data, "CHUNK", 2)
    path = write(*(record(question=f"q{i}") for i in range(9)), {"question": "q", "chosen": "a"})
    with pytest.raises(InputError, match=r"train\.jsonl:10: field 'rejected': is missing"):
        tokenized_file(path, tokenizer, EncodingSettings(200), tmp_path / "cache", processes=2)
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_start_left_unfinished_is_made_anew(write, tokenizer, tmp_path, encodings):
    path = write(record())
    whole = tokenized_file(path, tokenizer, EncodingSettings(200), tmp_path / "cache").group(0, 0)
    (folder,) = (tmp_path / "cache").iterdir()
    torn = folder.with_name(f".{folder.name}-{tokenized_data.socket.gethostname()}")
    folder.rename(torn)
    (torn / "groups.arrow").write_bytes(b"\0" * 10)
    again = tokenized_file(path, tokenizer, EncodingSettings(200), tmp_path / "cache")
    assert again.group(0, 0) == whole
    assert len(encodings) == 2
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]


def test_sizes_are_those_of_the_groups(write, tokenizer, tmp_path):
    records = [record(rejected=["No, it is rather 41."] * k + ["Yes."]) for k in range(3)]
    file = tokenized_file(write(*records), tokenizer, EncodingSettings(200), tmp_path)
    for place in range(3):
        answers = file.group(place, place).answers
        assert file.answers[place] == len(answers)
        assert file.tokens[place] == sum(map(len, answers))
        assert file.longest[place] == max(map(len, answers))
        prefix = file.prefix[place]
        assert len({tuple(answer[:prefix]) for answer in answers}) == 1
        assert len({tuple(answer[: prefix + 1]) for answer in answers}) > 1


# --- Weights -----------------------------------------------------------------------------------------------------


def test_a_weight_follows_the_last_colon_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ends:2").touch()
    for text, expected in {
        "a.jsonl": WeightedFile("a.jsonl", 1.0),
        "a.jsonl:0.3": WeightedFile("a.jsonl", 0.3),
        "dir:x/a.jsonl:2": WeightedFile("dir:x/a.jsonl", 2.0),
        "dir:x/a.jsonl": WeightedFile("dir:x/a.jsonl", 1.0),
        "ends:2": WeightedFile("ends:2", 1.0),
        "ends:2:0.5": WeightedFile("ends:2", 0.5),
    }.items():
        assert weighted_file(text) == expected


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e9"])
def test_a_weight_that_is_no_number_above_0_is_an_input_error(weight):
    with pytest.raises(InputError, match="must be a number above 0"):
        weighted_file(f"a.jsonl:{weight}")


def test_counts_of_files_add_up():
    first = DataCounts(records=2, left_out_by_verification={"FAILED": 1})
    first.add(DataCounts(records=3, tokens=5, left_out_by_verification={"FAILED": 1, "UNDECIDED": 2}))
    assert first == DataCounts(records=5, tokens=5, left_out_by_verification={"FAILED": 2, "UNDECIDED": 2})
