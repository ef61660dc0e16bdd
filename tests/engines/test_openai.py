"""The openai engine against a real HTTP server that misbehaves on command; the stages on it."""

import asyncio
import contextlib
import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cai.cli.try_ import Session, parse
from cai.config.compose import compose
from cai.config.schema import DataConfig, EngineConfig, Prompts, Sampling, ServerConfig
from cai.data.parquet import read_rows
from cai.engines.base import Completion, Request, RequestFailed, check_engine, open_engine
from cai.engines.ledger import Ledger
from cai.engines.openai import OpenAIEngine, first_token_logprobs
from cai.engines.openai_answers import ChatAnswer, TokenLogprob
from cai.engines.rows import gather_results
from cai.engines.servers import LONGEST, TRIPS, Server, parse_retry_after, read_key
from cai.errors import CaiError, UsageError
from cai.messages import as_dicts, assistant, user
from cai.method.requests import OPTIONS
from cai.stages import evaluate, label, revise
from cai.stages.base import Context, Input
from tests.configs import smoke

WARM = Sampling(temperature=0.7, top_p=0.9, top_k=0, max_new_tokens=16)
COMPARED = (user("Is it day?"), assistant("The answer is:"))


def chat(body: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    choice = {"message": {"content": text}, "finish_reason": "stop"} | more
    return {"model": body["model"], "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        faulty: Faulty = self.server.faulty  # pyright: ignore[reportAttributeAccessIssue]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with faulty.lock:
            faulty.asked.append((self.path, body, self.headers.get("Authorization")))
            fault = (
                faulty.faults.pop(0)
                if faulty.faults and self.path.endswith("completions")
                else faulty.always
            )
        if (answer := fault(self, body)) is not None:
            self.answer(200, json.dumps(answer).encode())

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        ).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have gone
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Fault = Callable[[Handler, dict[str, Any]], dict[str, Any] | None]


def fine(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
    """Repeats the last message; likes A better than B; knows nothing but chat completions."""
    if not handler.path.endswith("/chat/completions"):
        return handler.answer(404, b'{"detail": "Not Found"}')
    likely = [
        {"token": " A", "logprob": -0.5},
        {"token": " B", "logprob": -1.5},
        {"token": "?", "logprob": -9.0},
    ]
    content = [{"token": " A", "logprob": -0.5, "top_logprobs": likely}]
    return chat(body, "You said: " + body["messages"][-1]["content"], logprobs={"content": content})


def tokenizing(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
    """As vLLM: /tokenize, and echoed prompts with log-probabilities. A token is a character."""
    if handler.path == "/tokenize":
        text = body.get("prompt") or "".join(message["content"] for message in body["messages"])
        return {"tokens": [ord(c) for c in text], "count": len(text)}
    if handler.path == "/v1/completions":
        scores = [
            [None, *(-token / 100 for token in prompt[1:]), -9.0] for prompt in body["prompt"]
        ]
        choices = [
            {"index": n, "logprobs": {"token_logprobs": row}} for n, row in enumerate(scores)
        ]
        return {"model": body["model"], "choices": choices[::-1]}
    return fine(handler, body)


def status(number: int, text: str = "busy", **headers: str) -> Fault:
    data = json.dumps({"error": {"message": text}}).encode()
    return lambda handler, body: handler.answer(number, data, **headers)


def raw(data: bytes, **headers: str) -> Fault:
    return lambda handler, body: handler.answer(200, data, **headers)


def changed(**parts: Any) -> Fault:
    return lambda handler, body: (fine(handler, body) or {}) | parts


def reset(handler: Handler, body: dict[str, Any]) -> None:
    """Closes with RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = handler.rfile = open("/dev/null", "r+b", buffering=0)  # noqa: PTH123, SIM115  # pyright: ignore


def hang(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.faulty.released.wait()  # pyright: ignore[reportAttributeAccessIssue]
    handler.close_connection = True


FAULTS: dict[str, Fault] = {
    "500": status(500),
    "500 without JSON": lambda handler, body: handler.answer(
        500, b"<html>", Content_Type="text/html"
    ),
    "429 with Retry-After": status(429, Retry_After="0.01"),
    "429 with a date": status(429, Retry_After=formatdate(0, usegmt=True)),
    "503": status(503),
    "timeout": hang,
    "reset": reset,
    "truncated JSON": raw(b'{"model": "m", "choices": [{"message": {"con'),
    "truncated body": raw(b'{"model": "m"', Content_Length="5000"),
    "invalid JSON": raw(b"\xff\xfenonsense"),
    "an array": raw(b"[]"),
    "endless nesting": raw(b"[" * 100_000),
    "wrong model": changed(model="other"),
    "empty choices": changed(choices=[]),
    "null choices": changed(choices=None),
    "an unknown end": changed(
        choices=[{"message": {"content": "half of"}, "finish_reason": "abort"}]
    ),
    "10 MB": lambda handler, body: chat(body, "x" * (10 << 20)),
}


class Many(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave."""


class Faulty:
    """A server on a free port. `faults` go first, in order; then comes `always`."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.always: Fault = fine
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.lock, self.released = threading.Lock(), threading.Event()
        self.port = 0
        self.start()

    def start(self) -> None:
        self._http = Many(("127.0.0.1", self.port), Handler)
        self._http.faulty = self  # pyright: ignore[reportAttributeAccessIssue]
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with running() as server:
        yield server


@contextlib.contextmanager
def running() -> Iterator[Faulty]:
    server = Faulty()
    try:
        yield server
    finally:
        server.released.set()
        server.stop()


def config(*servers: Faulty, **changes: Any) -> EngineConfig:
    own = {"backoff": 0.001, "timeout": 20.0, "concurrency": 8} | changes
    return EngineConfig(
        kind="openai", model="m", server=ServerConfig([s.url for s in servers], **own)
    )


def ask(
    engine: EngineConfig, requests: list[Request], max_failures: float = 1.0
) -> list[Completion | RequestFailed]:
    opened = open_engine(engine, "unused")
    try:
        return asyncio.run(
            gather_results([opened.complete(request) for request in requests], max_failures)
        )
    finally:
        opened.close()


def asked(*texts: str) -> list[Request]:
    return [Request((user(text),), WARM, seed=5) for text in texts]


def only(found: list[Completion | RequestFailed]) -> Completion:
    assert len(found) == 1 and isinstance(found[0], Completion), found
    return found[0]


def test_a_request_says_all_that_decides_the_answer(faulty: Faulty):
    first, again = ask(
        config(faulty), [*asked("Hello."), Request(COMPARED, replace(WARM, top_k=3))]
    )
    assert isinstance(first, Completion) and isinstance(again, Completion)
    assert (
        replace(first, seconds=0) == Completion("You said: Hello.", "stop", 7, 3, 0)
        and first.seconds > 0
    )
    (path, one, key), (_, other, _) = sorted(
        faulty.asked, key=lambda asked: len(asked[1]["messages"])
    )
    off = {
        "top_p": 0.9,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }  # said, since a server's own defaults would else hold
    assert (path, key) == ("/v1/chat/completions", None)
    parts = {
        "model": "m",
        "messages": as_dicts((user("Hello."),)),
        "seed": 5,
        "max_tokens": 16,
        "temperature": 0.7,
    }
    assert one == parts | off
    assert (
        other["top_k"] == 3
        and other["continue_final_message"]
        and not other["add_generation_prompt"]
    )


def test_further_fields_are_sent_and_reach_the_template(faulty: Faulty):
    """A base model's end of turn, and the switch of a model that thinks."""
    faulty.always = tokenizing
    switch = {"enable_thinking": False}
    more = {"stop_token_ids": [7], "chat_template_kwargs": switch}
    engine = replace(config(faulty), extra_body=more)
    ask(engine, [*asked("Hello."), Request(COMPARED, continuations=OPTIONS)])
    chats = [body for path, body, _ in faulty.asked if path.endswith("chat/completions")]
    assert [body["stop_token_ids"] for body in chats] == [[7]]
    read = [body for path, body, _ in faulty.asked if path == "/tokenize"]
    assert all(body["chat_template_kwargs"] == switch for body in [*chats, *read]) and read
    assert all("stop_token_ids" not in body for body in read)
    with pytest.raises(UsageError, match=r"engine\.extra_body\.seed is set by cai itself"):
        check_engine(replace(engine, extra_body={"seed": 1}), "engine")
    with pytest.raises(UsageError, match="extra_body: only kind: openai"):
        check_engine(EngineConfig(extra_body=more), "engine")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_every_row_gets_its_own_answer(faulty: Faulty, fault: str):
    faulty.faults = [FAULTS[fault]] * 3
    texts = [f"row {number}" for number in range(12)]
    found = ask(config(faulty, timeout=0.5 if fault == "timeout" else 20.0), asked(*texts))
    assert [one.text for one in found if isinstance(one, Completion)] == [
        f"You said: {text}" for text in texts
    ]
    assert len(faulty.asked) >= 15


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if name not in ("timeout", "503") and "429" not in name]
)
def test_a_row_that_fails_at_every_try_fails_alone_and_says_why(faulty: Faulty, fault: str):
    def one_row(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
        poisoned = body["messages"][-1]["content"] == "poison"
        return FAULTS[fault](handler, body) if poisoned else fine(handler, body)

    faulty.always = one_row
    bad, good = ask(config(faulty, retries=2), asked("poison", "fine"))
    assert isinstance(bad, RequestFailed) and faulty.url in str(bad) and "(3 tries)" in str(bad)
    assert isinstance(good, Completion) and good.text == "You said: fine"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(400, "no such\n\x1b[31m role"), "HTTP 400: no such [31m role"),
        (status(400, "top_p is out of range"), "top_p is out of range"),
        (lambda handler, body: chat(body, "", finish_reason="content_filter"), "content filter"),
    ],
    ids=["refused", "a setting", "filtered"],
)
def test_what_is_refused_is_not_tried_again(faulty: Faulty, fault: Fault, reason: str):
    faulty.always = fault
    (found,) = ask(config(faulty), asked("x"))
    assert isinstance(found, RequestFailed) and reason in str(found) and len(faulty.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        status(401, "no"),
        status(404, "no model m"),
        raw(b"<html>", Content_Type="text/html"),
        status(307, Location="/"),
    ],
    ids=["key", "model", "page", "redirect"],
)
def test_what_no_row_could_survive_stops_all(faulty: Faulty, fault: Fault):
    faulty.always = fault
    with pytest.raises(CaiError, match=r"see model, server\.urls and server\.key") as caught:
        ask(config(faulty), asked("x", "y"))
    assert not isinstance(caught.value, RequestFailed)


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 3000",
        "the request exceeds the available context size, try increasing it",
        "context_length_exceeded",
    ],
)
def test_a_prompt_that_leaves_no_room_is_too_long(faulty: Faulty, text: str):
    faulty.always = status(400, text)
    assert only(ask(config(faulty), asked("x"))).finish_reason == "too_long"


def test_an_emoji_that_a_server_cut_in_half_is_replaced(faulty: Faulty):
    faulty.always = lambda handler, body: chat(body, "Well \U0001f600 done \ud83d")
    assert only(ask(config(faulty), asked("x"))).text == "Well \U0001f600 done \ufffd"


def test_a_server_that_dies_is_waited_for(faulty: Faulty):
    faulty.stop()
    back = threading.Timer(0.3, faulty.start)
    back.start()
    found = ask(config(faulty, backoff=0.02, retries=0), asked(*"abcdefghij"))
    back.join()
    assert all(isinstance(one, Completion) for one in found)


def test_a_server_that_stays_away_stops_the_run(faulty: Faulty):
    faulty.stop()
    with pytest.raises(CaiError, match=r"no server answers: .*ConnectError.*; see server\.urls"):
        ask(config(faulty, patience=0.05), asked("a"))
    faulty.start()


def test_the_other_server_takes_over():
    with running() as away, running() as there:
        away.stop()
        found = ask(config(away, there), asked(*map(str, range(40))))
        assert all(isinstance(one, Completion) for one in found) and len(there.asked) == 40
        away.start()


def test_a_server_that_says_when_to_come_back_is_left_alone_until_then():
    with running() as busy, running() as free:
        busy.always = status(429, Retry_After="3600")
        found = ask(config(busy, free, concurrency=1), asked(*map(str, range(20))))
        assert all(isinstance(one, Completion) for one in found)
        assert len(busy.asked) == 1 and len(free.asked) == 20


def test_the_least_busy_server_is_asked_and_none_too_much():
    most = {}
    with running() as one, running() as two:
        for server in (one, two):
            busy, lock = [0], threading.Lock()

            def counted(
                handler: Handler,
                body: dict[str, Any],
                server: Faulty = server,
                busy: list[int] = busy,
                lock: threading.Lock = lock,
            ) -> dict[str, Any] | None:
                with lock:
                    busy[0] += 1
                    most[server.port] = max(most.get(server.port, 0), busy[0])
                both.wait() if len(one.asked) <= 3 and len(two.asked) <= 3 else None
                with lock:
                    busy[0] -= 1
                return fine(handler, body)

            server.always = counted
        both = threading.Barrier(6, timeout=60)  # six are under way at once: three on each
        found = ask(config(one, two, concurrency=3), asked(*map(str, range(60))))
        assert all(isinstance(each, Completion) for each in found)
        assert set(most.values()) == {3} and len(one.asked) + len(two.asked) == 60


def test_the_circuit_breaker_opens_probes_and_closes():
    server = Server("http://there/v1")
    for _ in range(TRIPS - 1):
        server.fail(0.0, 1.0)
    assert server.ready(0.0, 8)
    server.fail(0.0, 1.0)
    assert not server.ready(1.9, 8) and server.ready(2.0, 8)
    server.fail(1.0, 1.0)  # it was under way when the breaker opened
    assert server.ready(2.0, 8)
    server.probed = True
    assert not server.ready(2.0, 8)  # one at a time
    server.probed = False
    server.fail(2.0, 1.0)
    assert not server.ready(5.9, 8) and server.ready(6.0, 8)
    for _ in range(50):
        server.fail(server.resting_until, 1.0)
    assert not server.ready(server.resting_until - LONGEST + 0.1, 8) and server.ready(
        server.resting_until, 8
    )
    server.failures = 0
    assert server.ready(server.resting_until, 8)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", 0),
        ("soon", 0),
        (formatdate(0, usegmt=True), 0),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str, seconds: float):
    assert parse_retry_after(text) == seconds
    assert parse_retry_after(formatdate(4e9, usegmt=True)) > 3600


def test_one_engine_serves_several_event_loops(faulty: Faulty):
    engine = open_engine(config(faulty), "unused")
    found = [
        asyncio.run(gather_results([engine.complete(request)], 0)) for request in asked("a", "b")
    ]
    engine.close()
    assert [only(one).text for one in found] == ["You said: a", "You said: b"]


KEY = "sk-planted-0123456789"


def test_the_key_is_sent_and_never_shown(faulty: Faulty, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    only(ask(config(faulty, key="SOME_KEY"), asked("x")))
    assert faulty.asked[0][2] == f"Bearer {KEY}"
    faulty.always = status(400, f"incorrect key {KEY}")
    (found,) = ask(config(faulty, key="SOME_KEY"), asked("x"))
    assert "incorrect key ***" in str(found) and KEY not in repr(found)


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schlüssel"])
def test_a_key_that_is_missing_or_no_key_is_said_before_anything_is_asked(
    value: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UsageError, match="SOME_KEY is not set, or holds no key") as caught:
        read_key(ServerConfig(key="SOME_KEY"))
    assert not value or value not in str(caught.value)


def test_what_a_server_refuses_by_name_is_left_out_where_it_is_off(faulty: Faulty):
    def hosted(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
        known = {
            "model",
            "messages",
            "temperature",
            "top_p",
            "seed",
            "max_tokens",
            "max_completion_tokens",
        }
        unknown = sorted(body.keys() - known)
        if unknown or "max_tokens" in body:
            text = f"unknown: {unknown[0]}" if unknown else "use max_completion_tokens"
            return handler.answer(400, json.dumps({"error": {"message": text}}).encode())
        return fine(handler, body)

    faulty.always = hosted
    first, prefixed = ask(config(faulty), [*asked("x"), Request(COMPARED, WARM)])
    assert isinstance(first, Completion) and isinstance(prefixed, Completion)
    (cut,) = ask(config(faulty), [Request((user("x"),), replace(WARM, top_k=3))])
    assert isinstance(cut, RequestFailed) and "unknown: top_k" in str(
        cut
    )  # it would be another sampling


def test_options_are_scored_by_the_first_token(faulty: Faulty):
    found = only(ask(config(faulty), [Request(COMPARED, continuations=OPTIONS)]))
    assert found.logprobs == (-0.5, -1.5) and (found.finish_reason, found.text) == ("score", "")
    (_, tokenize, _), (_, body, _) = faulty.asked
    assert "messages" in tokenize and body["max_tokens"] == 1 and body["top_logprobs"] == 20
    assert body["continue_final_message"] is True


def test_continuations_are_scored_token_by_token_where_the_server_can(faulty: Faulty):
    faulty.always = tokenizing
    request = Request(COMPARED, continuations=(" A", " B", "It is four."))
    found = only(ask(config(faulty), [request]))
    expected = [-sum(map(ord, text)) / 100 for text in request.continuations]
    assert found.logprobs == pytest.approx(expected) and found.prompt_tokens == len(
        "Is it day?The answer is:"
    )


def test_an_answer_is_scored_with_the_tokens_that_the_template_gives_it(faulty: Faulty):
    """As [INST] templates: a space stands between the prompt and its answer, and is trained."""

    def inst(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
        if handler.path == "/tokenize":
            roles = [message["role"] for message in body["messages"]]
            assert body["continue_final_message"] is (roles[-1] == "assistant")
            body["messages"][1:] = [{"content": " " + m["content"]} for m in body["messages"][1:]]
        return tokenizing(handler, body)

    faulty.always = inst
    found = only(ask(config(faulty), [Request(COMPARED[:1], continuations=("An",))]))
    assert found.logprobs == pytest.approx((-sum(map(ord, " An")) / 100,))


def test_a_judges_letters_are_tokenised_once(faulty: Faulty):
    faulty.always = tokenizing
    engine = OpenAIEngine(config(faulty), "m")

    async def one_by_one() -> None:
        for n in range(3):
            request = Request((user(f"Is it {n}?"), COMPARED[-1]), continuations=OPTIONS)
            assert (await engine.complete(request)).logprobs == pytest.approx((-0.97, -0.98))

    asyncio.run(one_by_one())
    engine.close()
    assert [path for path, _, _ in faulty.asked].count("/tokenize") == 3 + 1 + 1


def test_a_letter_behind_a_token_of_its_own_for_the_space(faulty: Faulty):
    """A tokenizer that splits " A": the space is likeliest, and the letters come next."""

    def splitting(handler: Handler, body: dict[str, Any]) -> dict[str, Any] | None:
        places = [{" ": -0.1, "The": -2.5}, {"B": -0.5, "A": -1.5, "C": -3.0}]
        content = [
            {"top_logprobs": [{"token": t, "logprob": p} for t, p in place.items()]}
            for place in places[: body.get("max_tokens", 0)]
        ]
        if not handler.path.endswith("/chat/completions"):
            return handler.answer(404, b"{}")
        assert body["max_tokens"] == 1 or body["temperature"] == 0
        return chat(body, " B", logprobs={"content": content})

    faulty.always = splitting
    found = only(ask(config(faulty), [Request(COMPARED, continuations=OPTIONS)]))
    assert found.logprobs == pytest.approx((-1.6, -0.6))


def likely(**logprobs: float) -> list[TokenLogprob]:
    return [
        TokenLogprob(token=name.replace("_", " "), logprob=value)
        for name, value in logprobs.items()
    ]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (likely(_A=-0.1, _B=-3.0, A=-5.0), (-0.1, -3.0)),
        (
            likely(A=-0.1, B=-3.0, _A=-5.0, _B=-4.0),
            (-0.1, -3.0),
        ),  # one that begins a turn writes no space
        (
            likely(_B=-0.1, the=-3.0, on=-7.0),
            (-7.0, -0.1),
        ),  # at most as likely as the last that is listed
        (likely(the=-0.1, on=-3.0), None),
    ],
)
def test_an_option_is_found_with_its_space_and_without(
    listed: list[TokenLogprob], expected: tuple[float, ...] | None
):
    assert first_token_logprobs(OPTIONS, listed) == expected


@pytest.mark.parametrize(
    ("fault", "continuations", "message"),
    [
        (lambda handler, body: chat(body, "A"), OPTIONS, "give no log-probabilities"),
        (
            status(400, "logprobs are not supported"),
            OPTIONS,
            "give no log-probabilities.*not supported",
        ),
        (fine, ("It is four.",), "score no whole answers"),
    ],
)
def test_a_server_that_can_not_score_says_so(
    faulty: Faulty, fault: Fault, continuations: tuple[str, ...], message: str
):
    faulty.always = lambda handler, body: (
        fine(handler, body) if "token" in handler.path else fault(handler, body)
    )
    with pytest.raises(CaiError, match=message):
        ask(config(faulty), [Request(COMPARED, continuations=continuations)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "model",
                    "choices",
                    "message",
                    "content",
                    "finish_reason",
                    "usage",
                    "logprobs",
                    "error",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
)


@pytest.fixture(scope="module")
def reader() -> Iterator[Callable[[bytes], Any]]:
    engine = OpenAIEngine(
        EngineConfig(kind="openai", model="m", server=ServerConfig(["http://nowhere/v1"])), ""
    )
    yield engine._reader(ChatAnswer)
    engine.close()


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_an_answer_or_of_no_use(reader: Callable[[bytes], Any], data: bytes):
    try:
        answer = reader(data)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert answer.choices[0].finish_reason in ("stop", "length", "content_filter")


# what the stages make of it

COUNT = 6


@pytest.fixture
def context(
    tmp_path: Path, tiny_model: Path, faulty: Faulty, make_context: Callable[..., Context]
) -> Context:
    """The tiny model answers here; `faulty` may criticise or judge."""
    prompts = "\n".join(json.dumps({"prompt": f"Tell me about river {n}."}) for n in range(COUNT))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    pair = {"prompt": "Name a river.", "completion": "The Rhine."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    for name in ("sft", "sl_cai"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tiny_model)
    return make_context(
        "some",
        data={
            name: DataConfig("file", str(tmp_path / f"{name}.jsonl"))
            for name in ("prompts", "pairs")
        },
        inputs={name: Input(str(tmp_path / name), name) for name in ("sft", "sl_cai")},
    )


def unlike(text: str, fault: Fault, otherwise: Fault = fine) -> Fault:
    """A fault for every request that speaks of `text`."""
    return lambda handler, body: (fault if text in json.dumps(body) else otherwise)(handler, body)


def test_a_row_whose_critique_fails_is_left_out_with_its_reason(context: Context, faulty: Faulty):
    engine = replace(config(faulty, retries=0), max_failures=0.5)
    settings = replace(smoke().revise, prompts=Prompts(["prompts"]), gates=[], engine=engine)
    faulty.always = unlike("river 3", status(500, "no luck"))
    summary = revise.run(settings, context.root, context)
    (failed,) = read_rows(context.root / "failed.parquet")
    assert (
        failed["prompt"][0]["content"] == "Tell me about river 3."
        and "HTTP 500: no luck" in failed["reason"]
    )
    rows = read_rows(context.root / "revisions.parquet")
    assert summary.failed == 1 and len(rows) == COUNT - 1 and "no luck" not in json.dumps(rows)
    assert all(step["revision"].startswith("You said:") for row in rows for step in row["steps"])
    before = len(faulty.asked)
    faulty.always = fine  # mended: the same again asks for what is missing and nothing else
    assert revise.run(settings, context.root, context).failed == 0
    assert not (context.root / "failed.parquet").exists()
    assert len(read_rows(context.root / "revisions.parquet")) == COUNT
    assert all("river 3" in json.dumps(body) for _, body, _ in faulty.asked[before:])
    ledger = Ledger(context.root / "ledger.sqlite")
    assert (
        len({row["model"] for row in ledger.cost()}) == 2
    )  # the model here, and the one that the server names
    ledger.close()


def test_too_many_failures_stop_the_stage_with_a_summary(context: Context, faulty: Faulty):
    engine = replace(config(faulty, retries=0), max_failures=0.34)
    settings = replace(smoke().revise, prompts=Prompts(["prompts"]), engine=engine)
    faulty.always = unlike("river", status(400, "no luck"))
    with pytest.raises(CaiError) as caught:
        revise.run(settings, context.root, context)
    assert "3 of 6 rows failed, and engine.max_failures=0.34 allows no more" in str(caught.value)
    assert f"3 x {faulty.url}: HTTP 400: no luck" in str(caught.value)


def test_a_judge_on_a_server_labels_pairs(context: Context, faulty: Faulty):
    engine = replace(config(faulty, retries=0), max_failures=0.5)
    settings = replace(smoke().label, prompts=Prompts(["prompts"]), engine=engine)
    faulty.always = unlike("river 2", status(400, "not this"), tokenizing)
    summary = label.run(settings, context.root, context)
    (failed,) = read_rows(context.root / "failed.parquet")
    assert "river 2" in failed["prompt"][0]["content"] and "not this" in failed["reason"]
    numbers = summary.numbers
    assert summary.pairs + numbers["identical"] + numbers["failed"] == COUNT and summary.pairs
    assert (
        summary.judge and summary.judge.metrics["flipped"]["value"] == 1
    )  # such a judge always takes A
    assert all(
        "The answer is:" in json.dumps(body) for _, body, _ in faulty.asked if "messages" in body
    )


def test_servers_may_serve_the_runs_own_models(context: Context, faulty: Faulty):
    engine = replace(config(faulty, retries=0), model=None, max_failures=0.5)
    settings = smoke().evaluate
    suites = {
        "red_team": replace(settings.suites["red_team"], prompts=Prompts(["prompts"])),
        "held_out": replace(
            settings.suites["held_out"], prompts=Prompts(["pairs"]), shots=[0], examples=[]
        ),
    }
    settings = replace(settings, suites=suites, models=["base", "sft"])
    faulty.always = unlike("river 4", status(500, "down"), tokenizing)
    summary = evaluate.run(settings, context.root, replace(context, engine=engine))
    assert {body["model"] for _, body, _ in faulty.asked} == {"base", "sft"}
    failed = read_rows(context.root / "failed.parquet")
    assert [(row["model"], row["suite"]) for row in failed] == [
        ("base", "red_team"),
        ("sft", "red_team"),
    ]
    assert (
        summary.failed == 2 and summary.metrics["sft"]["red_team"]["refusal"]["count"] == COUNT - 1
    )
    answered = [row["suite"] for row in read_rows(context.root / "answers.parquet")]
    assert answered.count("red_team") == 2 * (COUNT - 1)


def test_the_ledger_knows_a_served_model_by_its_name_and_no_address(
    context: Context, faulty: Faulty
):
    named = config(faulty)
    elsewhere = replace(
        named, server=ServerConfig(["http://elsewhere/v1"], key="SOME_KEY", retries=1)
    )
    digests = {replace(context, engine=one).model_digest("sft") for one in (named, elsewhere)}
    assert (
        len(digests | {replace(context, engine=replace(named, model="n")).model_digest("sft")}) == 2
    )
    serving = replace(context, engine=named)
    assert serving.model_digest("base") == serving.model_digest("sft")
    own = replace(context, engine=replace(named, model=None))
    assert own.model_digest("sft") != own.model_digest("sl_cai")


def test_cai_try_asks_a_server_for_the_model_by_the_runs_name(
    tmp_path: Path, tiny_model: Path, faulty: Faulty
):
    law = tmp_path / "law.yaml"
    law.write_text(
        "principles: [{id: kind, critique: Say what is unkind., revision: Rewrite it., "
        "comparison: Pick one.}]"
    )
    words = [f"outputs={tmp_path}", "model=path", f"model.path={tiny_model}", "engine=openai"]
    session = Session(
        compose(["experiment=smoke", *words, f"engine.server.urls=[{faulty.url}]"]),
        parse([str(law), "Name a river."]),
        Console(file=io.StringIO()),
    )
    session.show()
    session.close()
    assert {body["model"] for _, body, _ in faulty.asked} == {"base"}
