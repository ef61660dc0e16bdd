"""The server's doors: who is refused, what is saved, and what a run without records says."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from starlette.testclient import TestClient

from cai.review.app import Review, View, make_app
from cai.review.queue import load_queues
from cai.review.records import RecordKind, Records, sources
from cai.review.verdict_file import VerdictFile
from cai.store.files import write_json
from tests.review.test_queue import made
from tests.review.test_verdict_file import words

TOKEN = "t" * 32
FACTS = {"run": "mine", "reviewer": "ann", "file": "ann.jsonl"}
HERE = {"x-review-token": TOKEN}


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    review = Review(load_queues(made(tmp_path, 5)), VerdictFile(tmp_path / "ann.jsonl", "ann"))
    app = make_app(review, TOKEN, 4321, FACTS)
    return TestClient(app, base_url="http://127.0.0.1:4321")


def card(client: TestClient, **values: str | int) -> dict[str, Any]:
    reply = client.get("/api/card", params={"kind": "revision"} | values, headers=HERE)
    assert reply.status_code == 200, reply.text
    return reply.json()


REFUSED = [
    ({}, {}),  # no token
    ({"x-review-token": "t" * 31}, {}),
    ({"x-review-token": "té"}, {}),
    ({}, {"token": TOKEN}),  # the address opens the page alone
    (HERE | {"host": "evil.example:4321"}, {}),
    (HERE | {"host": "127.0.0.1"}, {}),
    (HERE | {"origin": "http://evil.example"}, {}),
    (HERE | {"origin": "http://127.0.0.1:80"}, {}),
    (HERE | {"origin": "null"}, {}),
    (HERE | {"origin": "https://127.0.0.1:4321"}, {}),
]


@pytest.mark.parametrize(("headers", "query"), REFUSED)
@pytest.mark.parametrize("path", ["/api/card", "/api/judge", "/api/undo", "/nowhere"])
def test_whatever_is_not_the_page_is_refused(
    client: TestClient, path: str, headers: dict[str, str], query: dict[str, str]
):
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    for method in ("GET", "POST", "OPTIONS"):
        reply = client.request(method, path, params=query, headers=encoded)
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


def test_the_page_needs_the_token_in_its_address(client: TestClient):
    assert client.get("/").status_code == 403
    assert client.get("/", params={"token": "wrong"}).status_code == 403
    assert client.get("/", headers=HERE).status_code == 403
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe" not in policy and page.headers["referrer-policy"] == "no-referrer"
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", page.text) == []
    assert TOKEN not in page.text and "Prompt 1" not in page.text
    again = client.get("/", params={"token": TOKEN})
    assert again.headers["content-security-policy"] != policy  # a nonce is used once


@pytest.mark.parametrize("origin", ["http://127.0.0.1:4321", "http://localhost:4321"])
def test_a_verdict_is_on_the_disk_when_the_reply_says_so(
    client: TestClient, tmp_path: Path, origin: str
):
    first = card(client)
    assert (first["place"], first["judged"], first["total"]) == (0, 0, 10)
    headers = HERE | {"origin": origin, "host": origin.removeprefix("http://")}
    subject = first["card"]["subject"]
    edit = {"subject": subject, "verdict": "edit", "edited": "Ask <b>them</b>."}
    assert client.post("/api/judge", json=edit, headers=headers).json() == {"saved": True}
    (line,) = [json.loads(text) for text in (tmp_path / "ann.jsonl").read_text().splitlines()]
    assert (line["edited"], line["reviewer"]) == ("Ask <b>them</b>.", "ann")
    assert line["revision"] == first["card"]["revision"]
    assert card(client)["place"] == 1 and card(client, place=0)["card"]["verdict"] == "edit"
    assert card(client, principle="other")["total"] == 0
    assert card(client, place=999)["card"] is None
    undone = client.post("/api/undo", json={}, headers=headers)
    assert undone.json() == {"kind": "revision", "place": 0}
    assert words(tmp_path / "ann.jsonl") == {}
    nothing = client.post("/api/undo", json={}, headers=headers)
    assert nothing.status_code == 400 and "nothing to take back" in nothing.json()["problem"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"subject": "0" * 16}, "no such item"),
        ({"subject": ["x"]}, "no such item"),
        ({"verdict": "a"}, "a verdict is one of good, bad, edit"),
        ({"verdict": {}}, "a verdict is one of"),
        ({"verdict": "edit"}, "an edited text must have words"),
        ({"verdict": "edit", "edited": " \n"}, "an edited text must have words"),
        ({"verdict": "edit", "edited": 3}, "an edited text must have words"),
        ({"verdict": "edit", "edited": "same"}, "the text is as it was"),
    ],
)
def test_what_is_no_verdict_is_not_saved(
    client: TestClient, tmp_path: Path, change: dict[str, Any], problem: str
):
    shown = card(client)["card"]
    body = {"subject": shown["subject"], "verdict": "good"} | change
    if body.get("edited") == "same":
        body["edited"] = shown["revision"]
    reply = client.post("/api/judge", json=body, headers=HERE)
    assert reply.status_code == 400 and problem in reply.json()["problem"]
    assert (tmp_path / "ann.jsonl").read_text() == ""


@pytest.mark.parametrize(("body", "status"), [(b"[]", 400), (b"{", 400), (b"x" * (2 << 20), 413)])
def test_a_body_that_is_no_object_is_refused(client: TestClient, body: bytes, status: int):
    assert client.post("/api/judge", content=body, headers=HERE).status_code == status


def test_a_file_that_can_not_be_written_is_said(client: TestClient, tmp_path: Path):
    shown = card(client)["card"]
    (tmp_path / "ann.jsonl").unlink()
    (tmp_path / "ann.jsonl").mkdir()
    body = {"subject": shown["subject"], "verdict": "good"}
    reply = client.post("/api/judge", json=body, headers=HERE)
    assert reply.status_code == 500
    assert "can't write to" in reply.json()["problem"]
    assert card(client)["judged"] == 0


def test_the_view_saves_nothing(tmp_path: Path):
    run = made(tmp_path, 60)
    records: dict[RecordKind, Records] = {"pairs": Records("pairs", sources(run, "pairs"))}
    app = make_app(View(records), TOKEN, 4321, {"run": "mine"})
    client = TestClient(app, base_url="http://127.0.0.1:4321")
    values = {"kind": "pairs", "query": "PROMPT 4", "principle": "calm", "start": "0"}
    values |= {"origin": "feedback"}
    reply = client.get("/api/records", params=values, headers=HERE).json()
    assert (reply["total"], len(reply["records"])) == (11, 11)
    assert client.get("/api/records", params={"kind": "x"}, headers=HERE).status_code == 400
    assert client.post("/api/judge", json={}, headers=HERE).status_code == 404
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    assert client.get("/api/records").status_code == 403


Command = Callable[..., CompletedProcess[str]]


def test_a_run_without_anything_to_judge_says_so(cai: Command, tmp_path: Path):
    (tmp_path / "outputs" / "new").mkdir(parents=True)
    write_json(tmp_path / "outputs" / "new" / "run.json", {})
    for words_, sentence in (
        (["new"], "no revision and no pair to judge; revise and label have not finished"),
        (["new", "--view"], "no stage with records has finished; see `cai status outputs/new`"),
        (["old"], "old is no run's folder"),
        (["new", "--to", "mine.txt"], "--to mine.txt: a file of verdicts is called NAME.jsonl"),
        (["new", "--port", "99999"], "--port 99999: a port is a number up to 65535"),
        (["--agreement", "none.jsonl"], "no file none.jsonl"),
    ):
        done = cai("review", *words_)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not (tmp_path / "verdicts").exists()


def test_agreement_is_printed(cai: Command, tmp_path: Path):
    queue = load_queues(made(tmp_path, 10))["pair"]
    for name, side in (("ann", "a"), ("ben", "b")):
        file = VerdictFile(tmp_path / f"{name}.jsonl", name)
        for number, item in enumerate(queue.items):
            file.add(item.subject, queue.line(item) | {"verdict": side if number < 3 else "a"})
    done = cai("review", "--agreement", "ann.jsonl", "ben.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "ann (ann.jsonl) and ben (ben.jsonl), 10 pairs: the same word for 70 [40, 89] %, "
        "Cohen's kappa 0."
    )
    alone = cai("review", "--agreement", "ann.jsonl")
    assert alone.returncode == 2 and "there are ann (ann.jsonl)" in alone.stderr


def test_ctrl_c_ends_it_in_order_and_says_how_to_go_on(tmp_path: Path):
    made(tmp_path, 3)
    # a shell that starts tests in the background has them ignore Ctrl-C, and their children too
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = f"{heed}from cai.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "review", "mine", "--reviewer", "ann"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", address)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "0 verdicts of ann in verdicts/mine.jsonl" in said and errors == ""


def test_a_damaged_run_is_one_clear_line(cai: Command, tmp_path: Path):
    run = made(tmp_path, 3)
    file = next(run.root.glob("revise/*/out/revisions.parquet"))
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    done = cai("review", "mine")
    assert done.returncode == 1 and "revisions.parquet" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
