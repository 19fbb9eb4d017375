"""codes.common.sources: rows of files and folders, and of a Hub that a loopback server plays."""

import hashlib
import http.server
import json
import threading

import datasets
import pytest

from codes.common import sources
from codes.common.records import InputError
from tests.conftest import ROOT

ROWS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(7)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- JSON arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_json_array_reads_alike_however_it_is_cut_into_pieces(tmp_path, monkeypatch, chunk):
    rows = [{"a": 'x]},[{"', "b": [1, {"c": "\\"}]}, {}, {"é": "水"}]
    path = tmp_path / "a.json"
    path.write_text(f"[ {json.dumps(rows[0])} ,{json.dumps(rows[1])},\n\n {json.dumps(rows[2])}\n]\n", encoding="utf-8")
    monkeypatch.setattr(sources, "_JSON_CHUNK", chunk)
    if chunk == 1:
        # The first piece must hold the bracket and no more; the rest is read one character at a time.
        path.write_text(path.read_text(encoding="utf-8").replace("[ {", "[{", 1), encoding="utf-8")
    assert [row for _, row in sources.iter_file(path)] == rows


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "the file has no records"),
        ('[{"a": 1}', "after row 1"),
        ('[{"a": 1} {"a": 2}]', "after row 1"),
        ('[{"a": 1}, {"a": ]', "row 2: invalid JSON"),
        ('[{"a": NaN}]', "row 1: field 'a': nan"),
        ('[{"a": 1, "a": 2}]', "row 1: field 'a': stands twice"),
        ("[1]", "row 1: field '(line)'"),
        ('[{"a": ' + "1" * 5000 + "}]", "row 1: a whole number has too many digits"),
        ('[{"a": 1}]\n[{"a": 2}]', "after row 1: there is text after the array's end"),
    ],
)
def test_a_broken_json_array_is_refused(tmp_path, text, problem):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json") as caught:
        list(sources.iter_file(path))
    assert problem in str(caught.value)


# --- the Hub ------------------------------------------------------------------------------------------------------


def test_a_local_folder_loads_through_the_datasets_library_as_a_hub_set_would(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train.jsonl", ROWS[:5])
    write(tmp_path / "set/test.jsonl", ROWS[5:7])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub = sources.HubDataset(str(tmp_path / "set"), "test")
    assert [row for _, row in hub.rows()] == ROWS[5:7]
    with pytest.raises(InputError, match=r"Unknown split \"val\".*--split"):
        list(sources.HubDataset(str(tmp_path / "set"), "val").rows())
    with pytest.raises(InputError, match="'zzz' not found"):
        list(sources.HubDataset(str(tmp_path / "set"), "train", "zzz").rows())


@pytest.mark.parametrize("source", ["nowhere.jsonl", "data/nowhere.parquet", "a/b/c", "nowhere", "../x/y", "-x"])
def test_a_source_that_is_nothing_is_refused(tmp_path, source):
    with pytest.raises(InputError, match="no such file or folder"):
        sources.find_source(source, "train")


@pytest.fixture
def hub():
    """A loopback server that speaks as much of the Hub's protocol as loading one public data set takes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            place = self.path.partition("?")[0]
            files, commit, repository = self.server.files, self.server.commit, "llm-blender/Unified-Feedback"
            entries = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            name = place.partition("/resolve/")[2].partition("/")[2]
            if place.startswith(f"/datasets/{repository}/resolve/") and name in files:
                etag = hashlib.sha256(files[name]).hexdigest()
                return self.answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            if place.startswith(f"/api/datasets/{repository}/tree/"):
                folder = place.partition("/tree/")[2].partition("/")[2]
                return self.answer(200, json.dumps([e for e in entries if e["path"].startswith(folder)]).encode())
            if place.startswith(f"/api/datasets/{repository}"):
                siblings = [{"rfilename": name} for name in files]
                return self.answer(200, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def answer(self, status, body, headers=None):
            self.send_response(status)
            for field, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(field, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    sample = (ROOT / "data/train-unified-feedback/sample.jsonl").read_bytes()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "all"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.commit = "a" * 40
    server.files = {
        "README.md": f"---\nconfigs:\n{configs}---\n".encode(),
        "all.jsonl": sample,
        "one.jsonl": sample.splitlines(True)[0],
    }
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_set_is_fetched_once_then_read_offline_and_a_newer_one_is_not_mixed_in(tmp_path, hub, run_command):
    endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HOME": str(tmp_path / "home")}
    output = tmp_path / "out.jsonl"

    def fetch(offline):
        command = ["llm-blender/Unified-Feedback", "--output_file", output]
        return run_command("codes.construct.import_data", *command, HF_HUB_OFFLINE=offline, **endpoint)

    first = fetch("0")
    assert first.returncode == 0, first.stderr
    assert "16  rows read" in first.stdout
    before = output.read_bytes()
    again = fetch("1")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("Using the latest cached version") == 1
    assert output.read_bytes() == before
    hub.commit = "b" * 40
    newer = fetch("0")
    assert newer.returncode == 2
    assert "another configuration (hub" in newer.stderr
    assert output.read_bytes() == before
