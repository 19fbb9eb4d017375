"""Records: what the readers accept, what they refuse and how, and how files are replaced and appended to."""

import json
import resource

import pytest

from codes.common import records
from codes.common.records import (
    InputError,
    iter_jsonl,
    iter_train_records,
    read_jsonl,
    rewards_of,
    write_jsonl,
)

TRAIN = {"question": "q", "chosen": "good", "rejected": ["bad"]}
PAIR = {
    "question": "q",
    "original_response1": "a",
    "original_response2": "b",
    "rewritten_response1": "c",
    "rewritten_response2": "d",
    "label": "response1",
}


def write_lines(path, *lines):
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data) + b"\n")
    return path


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"chosen": "good", "rejected": ["bad"]}, "field 'question': is missing"),
        (TRAIN | {"question": 3}, "field 'question': expected a string or a list, found a number"),
        (TRAIN | {"question": "  "}, "field 'question': is empty"),
        (TRAIN | {"question": []}, "field 'question': the list of messages is empty"),
        (TRAIN | {"question": [{"role": "user"}]}, "field 'question[0].content': is missing"),
        (TRAIN | {"question": [{"role": "judge", "content": "x"}]}, "field 'question[0].role'"),
        (TRAIN | {"question": [{"role": "assistant", "content": "x"}]}, "not in a user turn"),
        (TRAIN | {"chosen": None}, "field 'chosen': expected a string, found null"),
        (TRAIN | {"rejected": "bad"}, "field 'rejected': expected a list, found a string"),
        (TRAIN | {"rejected": []}, "field 'rejected': the list is empty"),
        (TRAIN | {"rejected": ["bad", 7]}, "field 'rejected[1]': expected a string, found a number"),
        (TRAIN | {"bias_type": ["length", "beauty"]}, "field 'bias_type': 2 entries for 1 rejected answers"),
        (TRAIN | {"verify_correctness": "YES"}, "field 'verify_correctness': 'YES' is not one of"),
        (TRAIN | {"rewards": [1, 2]}, "field 'rewards': expected an object, found a list"),
        (TRAIN | {"rewards": None}, "field 'rewards': expected an object, found null"),
        (TRAIN | {"rewards": {" ": [1, 2]}}, "field 'rewards': the name of an objective is empty"),
        (TRAIN | {"rewards": {"safe": 3}}, "field 'rewards.safe': expected a list, found a number"),
        (TRAIN | {"rewards": {"safe": [1]}}, "field 'rewards.safe': 1 ratings for the chosen and 1 rejected answers"),
        (TRAIN | {"rewards": {"safe": [1, 2, 3]}}, "field 'rewards.safe': 3 ratings for the chosen and 1 rejected"),
        (TRAIN | {"rewards": {"safe": [1, "2"]}}, "field 'rewards.safe[1]': expected a finite number, found '2'"),
        (
            TRAIN | {"rewards": {"safe": [True, 2]}},
            "field 'rewards.safe[0]': expected a finite number, found True",
        ),
        (TRAIN | {"rewards": {"safe": [1, 10**400]}}, "field 'rewards.safe[1]': expected a finite number, found 1000"),
        (b'{"rewards": {"safe": [NaN, 1]}}', "field 'rewards.safe[0]': nan is not a finite number"),
        (b'{"question": "q", ', "invalid JSON at column"),
        (b'["question"]', "expected a JSON object, found a list"),
        (b'{"question": "\xff"}', "invalid UTF-8 at byte 15"),
        (b'{"question": "q", "chosen": NaN}', "field 'chosen': nan is not a finite number"),
        (b'{"weights": {"a": [1, 1e999]}}', "field 'weights.a[1]': inf is not a finite number"),
        (b'{"question": "\\ud800"}', "field 'question': a lone surrogate"),
        (b'{"\\ud800": 1}', "field '(line)': a lone surrogate"),
        (b'{"question": "q", "question": "r"}', "field 'question': stands twice"),
        (b'{"id": ' + b"1" * 5000 + b"}", "a whole number has too many digits"),
        (TRAIN | {"question": [{"role": "user", "content": " "}]}, "field 'question[0].content': is empty"),
    ],
)
def test_a_bad_train_line_is_named_by_file_line_and_field(tmp_path, bad, names):
    path = write_lines(tmp_path / "train.jsonl", TRAIN, bad)
    with pytest.raises(InputError) as error:
        list(iter_train_records(path))
    message = str(error.value)
    assert message.startswith(f"{path}:2: ")
    assert names in message
    assert "\n" not in message


def test_rewards_are_numbers_or_null_of_any_objectives(tmp_path):
    rewards = {"helpfulness": [4, 2.5], "安全": [None, -1], "unrated": [None, None]}
    path = write_lines(tmp_path / "train.jsonl", TRAIN | {"rewards": rewards}, TRAIN | {"rewards": {}, "chosen": "x"})
    assert [record["rewards"] for record in iter_train_records(path)] == [rewards, {}]


def test_rewards_follow_the_answers_that_stay_and_new_answers_have_none():
    record = TRAIN | {"rejected": ["b", "c", "d"], "rewards": {"safe": [1, 2, 3, 4], "kind": [None, 5, 6, 7]}}
    assert rewards_of(record, [2, None, 0]) == {"rewards": {"safe": [1, 4, None, 2], "kind": [None, 7, None, 5]}}
    assert rewards_of(TRAIN, [0, None]) == {}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="has no records"):
        read_jsonl(path)


def test_an_absent_file_is_an_input_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: No such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_a_wrong_label_is_refused_with_the_two_right_ones(tmp_path):
    path = write_lines(tmp_path / "length_bias.jsonl", PAIR, PAIR | {"label": "response3"})
    with pytest.raises(InputError, match=r":2: field 'label': 'response3' is not one of response1, response2"):
        read_jsonl(path, records.check_bias_pair)


def test_an_id_that_stands_twice_is_refused_with_both_lines(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", TRAIN | {"id": "a"}, TRAIN | {"id": "b"}, TRAIN | {"id": "a"})
    for read in (lambda: read_jsonl(path), lambda: list(iter_train_records(path))):
        with pytest.raises(InputError, match=r":3: field 'id': 'a' stands already on line 1"):
            read()


def test_equal_records_without_ids_get_different_stable_ids(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", TRAIN, TRAIN, TRAIN | {"chosen": "other"})
    first, second, third = (record["id"] for record in iter_train_records(path))
    assert first.endswith("-0")
    assert second == first[:-1] + "1"
    assert third[:-2] != first[:-2]
    assert [record["id"] for record in iter_train_records(path)] == [first, second, third]


def test_unknown_fields_and_a_byte_order_mark_pass_through(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TRAIN | {"mine": {"x": [1, None]}}).encode())
    assert read_jsonl(path, records.check_train_record) == [TRAIN | {"mine": {"x": [1, None]}}]


def test_a_short_bias_type_list_aligns_with_the_tail():
    record = {"rejected": ["o", "l", "b"], "bias_type": ["length", "beauty"]}
    assert records.aligned_bias_types(record) == ["original", "length", "beauty"]
    assert records.aligned_bias_types({"rejected": ["o", "p"]}) == ["original", "original"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "out.jsonl"
    write_jsonl(path, [{"n": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"n": 2}, {"n": float("nan")}])
    assert path.read_text() == '{"n": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_reading_is_lazy_so_a_late_bad_line_does_not_stop_the_first(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", {"n": 1}, b"{")
    lines = iter_jsonl(path)
    assert next(lines) == (1, {"n": 1})
    with pytest.raises(InputError):
        next(lines)


@pytest.mark.parametrize("size", [10, 100_000], ids=["at the end", "on the way"])
def test_a_write_without_room_names_the_file_and_leaves_none(tmp_path, size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*out\.jsonl'"):
            write_jsonl(tmp_path / "out.jsonl", [{"text": "x" * size}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
