"""Files that only grow: a line that a kill has torn goes, and every whole one stays."""

from codes.common.append_only import AppendOnlyFile
from codes.common.records import iter_jsonl


def test_a_torn_last_line_is_cut_and_the_file_continued(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "text": "' + b"x" * 200_000)
    with AppendOnlyFile(path) as file:
        file.append({"n": 3})
    assert [record["n"] for _, record in iter_jsonl(path)] == [1, 3]


def test_a_file_that_is_one_torn_line_starts_afresh(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1')
    with AppendOnlyFile(path) as file:
        file.append({"n": 2})
    assert path.read_bytes() == b'{"n": 2}\n'
