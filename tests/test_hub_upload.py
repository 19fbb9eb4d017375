"""--push_to_hub against a stand-in of the Hub on loopback: what goes up, with whose token, and what never does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import transformers.utils.hub
from huggingface_hub import HfApi, ModelCard, constants

from codes.common.cli import RunFailed
from codes.train.train_reward_model import train
from tests.training_runs import flags, write_groups

TOKEN = "hf_loopback_secret"


class LoopbackHub(ThreadingHTTPServer):
    """Creates repositories and takes commits of regular files; answers 401 to any other token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict] = []
        self.commits: list[dict[str, bytes]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not body and self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.path.endswith("/validate-yaml"):
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            request = json.loads(body)
            self.server.created.append(request)
            repository = f"{request.get('organization', 'someone')}/{request['name']}"
            return self._answer(200, {"url": f"{self.server.endpoint}/{repository}"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
            self.server.commits.append(files)
            return self._answer(
                200, {"commitUrl": f"{self.server.endpoint}/someone/reward/commit/1", "commitOid": "1" * 40}
            )
        return self._answer(404, {"error": "no such call"})

    def _answer(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", HfApi(endpoint=server.endpoint))
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server
        server.shutdown()


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_the_model_its_card_and_its_logs_go_up_and_the_token_stands_nowhere(hub, tiny_model, tmp_path, strategy):
    data, output = write_groups(tmp_path / "train.jsonl", 16), tmp_path / "out"
    pushed = {"hub_model_id": "someone/reward", "hub_token": TOKEN, "hub_strategy": strategy, "save_steps": 1}
    train([*flags(tiny_model, data, output, **pushed), "--push_to_hub", "--hub_always_push", "True"])
    assert hub.created[0]["name"] == "reward"
    assert len(hub.commits) == (3 if strategy == "every_save" else 1)
    last = hub.commits[-1]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl"} <= last.keys()
    assert last["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert "reward-model" in ModelCard(last["README.md"].decode()).data.tags
    assert all(str(tmp_path).encode() not in content for files in hub.commits for content in files.values())
    names = {name for files in hub.commits for name in files}
    assert not names & {"run_info.json", "training_args.bin", "optimizer.pt"}
    written = [path for path in output.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert not any(path.name == "training_args.bin" for path in written)


def test_a_token_that_the_hub_refuses_is_a_failed_run_in_one_line_before_training(hub, tiny_model, tmp_path):
    data = write_groups(tmp_path / "train.jsonl", 8)
    refused = {"hub_model_id": "someone/reward", "hub_token": "hf_other"}
    with pytest.raises(RunFailed, match="--push_to_hub: ") as failure:
        train([*flags(tiny_model, data, tmp_path / "out", **refused), "--push_to_hub"])
    assert "hf_other" not in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "out/model.safetensors").exists()
