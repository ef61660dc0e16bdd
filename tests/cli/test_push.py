"""`cai push` with the hub's real client, over HTTP, to a server here that speaks like the hub."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

TOKEN = "hf_" + "x" * 20 + "thisIsTheToken"


@dataclass
class Hub:
    """What the stand-in server was asked, and the files that were committed to it."""

    url: str = ""
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    repos: dict[str, bool] = field(default_factory=dict)  # "models/owner/name" -> private
    blobs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refuse: int = 0  # the status that every commit is answered with


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            state.asked.append(f"{self.command} {self.path}")
            if token := self.headers.get("Authorization"):
                state.tokens.add(token)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            self.body()
            name = self.path.removeprefix("/api/")
            found = {
                "id": name.partition("/")[2],
                "private": state.repos[name],
                "siblings": [],
                "tags": [],
            }
            self.answer(found)

        def do_PUT(self) -> None:
            oid, data = self.path.removeprefix("/blobs/"), self.body()
            assert hashlib.sha256(data).hexdigest() == oid
            state.blobs[oid] = data
            self.answer({})

        def do_POST(self) -> None:
            data = self.body()
            if self.path == "/api/repos/create":
                asked = json.loads(data)
                name = f"{asked['organization']}/{asked['name']}"
                kind = asked.get("type", "model")
                taken = f"{kind}s/{name}" in state.repos
                state.repos.setdefault(f"{kind}s/{name}", asked.get("visibility") == "private")
                address = f"{state.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
                self.answer({"url": address, "id": "1"}, 409 if taken else 200)
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs"
                        if one["path"].endswith((".safetensors", ".parquet"))
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(data)["files"]
                ]
                self.answer({"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    one | {"actions": {"upload": {"href": f"{state.url}/blobs/{one['oid']}"}}}
                    for one in json.loads(data)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path and state.refuse:
                self.answer({"error": f"You can't, {self.headers['Authorization']}"}, state.refuse)
            elif "/commit/" in self.path:
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        state.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        state.files[value["path"]] = state.blobs[value["oid"]]
                place = (
                    self.path.removeprefix("/api/")
                    .removeprefix("models/")
                    .replace("/main", f"/{'c' * 40}")
                )
                self.answer(
                    {"success": True, "commitOid": "c" * 40, "commitUrl": f"{state.url}/{place}"}
                )
            else:
                self.answer({"error": "no such endpoint"}, 404)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


Command = Callable[..., subprocess.CompletedProcess[str]]


def push(run: Path, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    place = run.parent.parent
    (place / "tmp").mkdir(exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(place / "hf"),
        "TMPDIR": str(place / "tmp"),
    }
    environment |= {"HF_HUB_DISABLE_XET": "1"}  # the hub's own storage; this server has none
    environment |= {"HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "cai", "push", str(run), "--repo", "me/kind", *words]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def unsent(cai: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same in this process, for what ends before anything is sent."""
    # the hub's client reads HF_ENDPOINT once, as it is imported
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run_push(run: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return cai("push", str(run), "--repo", "me/kind", *words, folder=run.parent.parent)

    return run_push


def test_a_dry_run_shows_all_and_asks_nothing(finished_run: Path, hub: Hub, unsent: Command):
    done = unsent(finished_run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("---\n") and "nothing was sent" in done.stdout and hub.asked == []
    names = re.findall(r"^ *[\d,]+  (\S+)$", done.stdout, re.MULTILINE)
    assert {"README.md", "model.safetensors", "config.json", "chat_template.jinja"} <= {*names}
    assert not any("/" in name or name == "history.json" for name in names)


def test_a_model_arrives_with_its_card_and_loads(finished_run: Path, hub: Hub):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = push(finished_run, hub, "--yes", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"sent: {hub.url}/me/kind/commit/{'c' * 40}"
    assert hub.repos == {"models/me/kind": True} and hub.tokens == {f"Bearer {TOKEN}"}
    assert ModelCard(hub.files["README.md"].decode()).data.to_dict()["license"] == "mit"
    folder = finished_run.parent / "received"
    folder.mkdir()
    for name, data in hub.files.items():
        (folder / name).write_bytes(data)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert model.config.vocab_size >= len(tokenizer)
    # the token is nowhere: not shown, not in a file; and nothing of the sending is left
    assert TOKEN not in done.stdout + done.stderr
    place = finished_run.parent.parent
    assert not any(
        TOKEN.encode() in file.read_bytes() for file in place.rglob("*") if file.is_file()
    )
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("what", "files"),
    [("revisions", ["revisions.parquet", "training.parquet"]), ("preferences", ["pairs.parquet"])],
)
def test_data_goes_to_a_data_set(finished_run: Path, hub: Hub, what: str, files: list[str]):
    done = push(finished_run, hub, "--what", what, "--yes")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.files) == ["README.md", *files] and list(hub.repos) == ["datasets/me/kind"]


def test_private_is_not_sent_to_a_public_repository(finished_run: Path, hub: Hub):
    hub.repos["models/me/kind"] = False
    done = push(finished_run, hub, "--yes", "--private")
    assert (
        done.returncode == 2
        and "me/kind is there already and is public" in done.stderr
        and hub.files == {}
    )


def test_what_the_hub_says_is_shown_without_the_token(finished_run: Path, hub: Hub):
    hub.refuse = 403
    done = push(finished_run, hub, "--yes")
    assert done.returncode == 1 and "refused me/kind (403): You can't" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_hub_that_is_away_is_named(finished_run: Path):
    done = push(finished_run, Hub(url="http://127.0.0.1:9"), "--yes")
    assert done.returncode == 1 and "http://127.0.0.1:9 can't be reached" in done.stderr


def test_a_damaged_model_is_not_sent(
    finished_run: Path, hub: Hub, unsent: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = next(finished_run.glob("dpo/*/out/model/model.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = unsent(finished_run, "--yes")
    assert (
        done.returncode == 1 and "model.safetensors is damaged" in done.stderr and hub.asked == []
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--yes"], "put a token that may write into the environment variable HF_TOKEN"),
        (["--stage", "dpo2"], "the stage 'dpo2' is not done"),
        (["--stage", "revise"], "--stage revise: --what model is made by sft, sl_cai, dpo"),
        (["--what", "preferences", "--stage", "dpo"], "--what preferences is made by label"),
        (["--repo", "kind"], "--repo kind: write OWNER/NAME"),
    ],
)
def test_a_wrong_word_is_one_clear_line(
    finished_run: Path, hub: Hub, unsent: Command, words: list[str], expected: str
):
    done = unsent(finished_run, *words)
    assert done.returncode == 2 and expected in done.stderr and hub.asked == []
