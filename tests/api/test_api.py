"""The Python API: what a run has, from a script, a notebook and a server, and its errors."""

import ast
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import cai
from cai import CaiError, Constitution, Engine, Run, UsageError, compare, open_engine, revise
from cai.api.settings import ReviseSampling
from cai.config.compose import compose
from cai.config.schema import DataConfig, Prompts
from cai.data.parquet import read_rows
from cai.stages import label
from cai.stages import revise as revise_stage
from cai.stages.base import Context, Input

LAW = Constitution.of(["Be kind to everybody.", "Say who to ask."])
SHORT: ReviseSampling = {
    "answer": {"max_new_tokens": 8},
    "critique": {"max_new_tokens": 8},
    "revision": {"max_new_tokens": 8},
}
TALK = [
    {"role": "system", "content": "You are calm."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Name a lake."},
]


@pytest.fixture
def tiny(tiny_model: Path) -> Iterator[Engine]:
    with open_engine(tiny_model) as engine:
        yield engine


class Handler(BaseHTTPRequestHandler):
    """Repeats the last message, and likes A better than B."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        text = body["messages"][-1]["content"]
        if "hang" in text:
            server.hanging.set()
            server.released.wait()
        refused = "refuse" in text or not self.path.endswith("/chat/completions")
        likely = [{"token": " A", "logprob": -0.5}, {"token": " B", "logprob": -1.5}]
        content = [{"token": " A", "logprob": -0.5, "top_logprobs": likely}]
        choice = {"message": {"content": f"You said: {text}"}, "finish_reason": "stop"}
        choice["logprobs"] = {"content": content}
        answer = {"model": body["model"], "choices": [choice]}
        data = json.dumps({"error": {"message": "no"}} if refused else answer).encode()
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Served(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.hanging, self.released = threading.Event(), threading.Event()

    def open(self, ledger: Path | None = None, max_failures: float = 0.0) -> Engine:
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return open_engine(
            "m", "openai", ledger=ledger, max_failures=max_failures, server={"urls": [url]}
        )


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path, make_context: Callable[..., Context]) -> Context:
    """Of a stage that reads five prompts, and whose helpful model is the tiny one."""
    rows: list[dict[str, Any]] = [{"prompt": f"Tell me about river {n}."} for n in range(4)]
    rows.append({"prompt": TALK})
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sentences = "".join(f"- {principle.sentence}\n" for principle in LAW.principles)
    (tmp_path / "law.md").write_text(sentences)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model").symlink_to(tiny_model)
    inputs = {name: Input(str(tmp_path / "sft"), "tiny") for name in ("sft", "sl_cai")}
    return make_context(
        "revise",
        data={"mine": DataConfig("file", str(tmp_path / "prompts.jsonl"))},
        constitution=str(tmp_path / "law.md"),
        inputs=inputs,
    )


def test_revise_gives_what_the_stage_has(context: Context, tmp_path: Path, tiny: Engine):
    config = compose(["experiment=smoke", "revise.gates=[empty,unchanged]"]).revise
    config = replace(config, prompts=Prompts(["mine"]), exemplars=0)
    settings: Any = {"exemplars": 0, "gates": config.gates, "sampling": asdict(config.sampling)}
    (tmp_path / "work").mkdir()
    revise_stage.run(config, tmp_path / "work", replace(context, seed=3))
    rows = {row["id"]: row for row in read_rows(tmp_path / "work" / "revisions.parquet")}
    assert len(rows) == 5 and any(row["steps"] for row in rows.values())

    prompts = (row["prompt"] for row in rows.values())  # a generator of conversations
    revisions = revise(prompts, LAW, tiny, seed=3, **settings)
    for row in revisions.to_dataset().to_list():
        assert row == rows[row["id"]] | {"source": "api"}
    law = Constitution.load(tmp_path / "law.md")
    text = "Tell me about river 2."
    assert revise([text], law, tiny, seed=3, **settings)[0] in revisions


def test_compare_gives_what_the_stage_has(context: Context, tmp_path: Path, tiny: Engine):
    config = compose(["experiment=smoke", "label.principles=2"]).label
    config = replace(config, prompts=Prompts(["mine"]))
    (tmp_path / "work").mkdir()
    label.run(config, tmp_path / "work", replace(context, stage="label", seed=3))
    rows = read_rows(tmp_path / "work" / "pairs.parquet")
    assert rows
    answers = [
        (row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows
    ]
    pairs = compare(answers, LAW, tiny, seed=3, principles=2)
    for pair, row in zip(pairs.to_dataset().to_list(), rows, strict=True):
        assert pair["probability"] == pytest.approx(row["probability"])
        assert pair["chosen"] == row["chosen"] or pair["probability"] == pytest.approx(0.5)
        # the stage may have seen the two answers the other way round
        seen = [pair["orders"], [1 - value for value in pair["orders"][::-1]]]
        assert any(row["orders"] == pytest.approx(orders, abs=1e-5) for orders in seen)


def test_a_server_answers_and_a_second_call_asks_nothing_again(served: Served):
    with served.open() as engine:
        first = revise(["Hello.", "Wie geht es dir?"], LAW, engine, rounds=1, exemplars=0)
        count = len(served.asked)
        assert count == 6
        assert [revision.answer for revision in first] == [
            "You said: Hello.",
            "You said: Wie geht es dir?",
        ]
        assert revise(["Hello.", "Wie geht es dir?"], LAW, engine, rounds=1, exemplars=0) == first
        assert len(served.asked) == count
        (pair,) = compare([("Hello.", "Hi.", "Go away.")], LAW, engine)
        assert pair.orders == pytest.approx((0.731, 0.269), abs=1e-3) and pair.probability == 0.5


def test_another_engine_criticises(served: Served, tiny: Engine):
    with served.open() as critic:
        (revision,) = revise(
            ["Name a river."], LAW, tiny, critic=critic, rounds=1, exemplars=0, sampling=SHORT
        )
    assert revision.steps[0].critique.startswith("You said:") and len(served.asked) == 2
    assert revision.answer == revise(["Name a river."], LAW, tiny, sampling=SHORT)[0].answer


def test_a_ledger_outlives_the_engine(served: Served, tmp_path: Path):
    with served.open(tmp_path / "kept.sqlite") as engine:
        first = revise(["Hello."], LAW, engine)
    count = len(served.asked)
    with served.open(tmp_path / "kept.sqlite") as engine:
        assert revise(["Hello."], LAW, engine) == first and len(served.asked) == count


def test_it_works_where_an_event_loop_runs(served: Served):
    async def notebook() -> str:
        with served.open() as engine:
            return revise(["Hello."], LAW, engine)[0].answer

    assert asyncio.run(notebook()) == "You said: Hello."


def test_ctrl_c_ends_a_call_and_leaves_the_engine_usable(served: Served, tmp_path: Path):
    def interrupt() -> None:
        served.hanging.wait()
        os.kill(os.getpid(), signal.SIGINT)

    with served.open() as engine:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            revise(["Hello.", "Please hang."], LAW, engine)
        served.released.set()
        assert revise(["Hello."], LAW, engine)[0].answer == "You said: Hello."


def test_rows_that_fail_raise_unless_some_may(served: Served):
    with served.open() as engine, pytest.raises(CaiError, match="HTTP 400: no"):
        revise(["Hello.", "Please refuse."], LAW, engine)
    with served.open(max_failures=0.5) as engine:
        revisions = revise(["Please refuse.", "Hello."], LAW, engine)
    assert [revision.prompt.text for revision in revisions] == ["Hello."]
    (failed,) = revisions.failed
    assert failed.prompt.text == "Please refuse." and "HTTP 400" in failed.reason


def test_a_comparison_beyond_the_context_fails(tiny: Engine):
    with pytest.raises(CaiError, match="the judge's context has no room"):
        compare([("Name a river.", "word " * 5000, "The Rhine.")], LAW, tiny)


def test_nothing_is_printed_unless_progress_is_asked_for(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
):
    with open_engine(tiny_model) as engine:
        revise(["Name a river."], LAW, engine, sampling=SHORT)
        assert capfd.readouterr() == ("", "")
        revise(["Name a lake."], LAW, engine, sampling=SHORT, progress=True)
        assert "5/5 completions" in capfd.readouterr().err
    engine.close()  # once more
    with pytest.raises(UsageError, match="closed"):
        revise(["Name a river."], LAW, engine)


def test_no_prompts_give_no_results(tiny: Engine):
    assert revise([], LAW, tiny) == [] and compare([], LAW, tiny) == []
    assert "answer" in revise([], LAW, tiny).to_dataset().column_names


def test_a_base_model_without_a_template(tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (folder / "chat_template.jinja").unlink()
    with open_engine(folder) as engine, open_engine(folder, template="inst") as other:
        for opened in (engine, other):
            assert len(revise(["Name a river."], LAW, opened, sampling=SHORT)) == 1


WRONG_PROMPTS = [
    ("Hello.", "give a list"),
    ([""], r"prompts\[0\]: an empty message"),
    (["Hello.", 7], r"prompts\[1\] is neither a text nor a list of messages: int"),
    ([[]], r"prompts\[0\]: "),
    ([[{"role": "user"}]], r"prompts\[0\]: "),
    ([TALK[:3]], r"prompts\[0\] ends with a turn of the assistant"),
    ([{"prompt": "Hello."}], r"prompts\[0\] is neither"),
]


@pytest.mark.parametrize(("prompts", "message"), WRONG_PROMPTS)
def test_what_is_no_prompt_is_named(prompts: Any, message: str, served: Served):
    with served.open() as engine, pytest.raises(UsageError, match=message):
        revise(prompts, LAW, engine)
    assert served.asked == []


def test_settings_that_are_wrong_are_named(served: Served, tmp_path: Path):
    with served.open() as engine:
        with pytest.raises(UsageError, match="no setting 'round'; did you mean 'rounds'"):
            revise(["Hello."], LAW, engine, round=1)  # pyright: ignore[reportCallIssue]
        with pytest.raises(UsageError, match="rounds"):
            revise(["Hello."], LAW, engine, rounds=0)
        with pytest.raises(UsageError, match=r"answers\[0\]: give"):
            compare([("Hello.", "Hi.")], LAW, engine)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="no engine 'openia'; did you mean 'openai'"):
        open_engine("m", "openia")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="not free software"):
        open_engine("gemma-270m")
    with pytest.raises(CaiError, match=r"can't load the model .*/nowhere"):
        open_engine(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="NO_SUCH_KEY is not set"):
        open_engine("m", "openai", server={"key": "NO_SUCH_KEY"})


def test_sentences_are_the_principles_of_a_file_that_holds_them(tmp_path: Path):
    sentences = ["Gib nie eine Dosis an.", "Nenne einen Menschen, der hilft.", "Sei freundlich."]
    (tmp_path / "law.md").write_text("\n".join(f"- {sentence}" for sentence in sentences))
    from_file = Constitution.load(tmp_path / "law.md")
    made = Constitution.of(sentences, "law")
    assert made.name == "law" and made.principles[0].critique.startswith("Die Regel")
    assert made.principles == tuple(replace(p, file=None) for p in from_file.principles)
    for wrong, message in [
        ("Be kind.", "give a list"),
        ([], "at least one"),
        (["Be kind.", " "], r"sentences\[1\]: 'sentence' is empty"),
        (["Be kind.", "Be  kind."], r"sentences\[1\]: this sentence stands twice"),
        ([7], r"sentences\[0\]: a int is no text"),
    ]:
        with pytest.raises(UsageError, match=message):
            Constitution.of(wrong)  # pyright: ignore[reportArgumentType]


def test_a_run_is_read(finished_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished_run.parent.parent)
    run = Run("smoke")
    assert Run().folder == run.folder == Run(finished_run.relative_to(Path.cwd())).folder
    assert run.stages() == ["sft", "revise", "sl_cai", "label", "dpo", "evaluate"]
    assert run.rows("revise").to_list() == [{"id": "revisions"}]
    assert run.rows("revise", "training").to_list() == [{"id": "training"}]
    assert run.summary("revise")["kept"] == 6
    metrics = run.metrics().to_list()
    assert metrics[0] == {
        "model": "base",
        "suite": "red_team",
        "metric": "refusal",
        **{"count": 12, "value": 0.5, "low": 0.25, "high": 0.75},
    }
    with open_engine(run.model("dpo")) as engine:
        assert len(revise(["Name a river."], LAW, engine, sampling=SHORT)) == 1
    for call, message in [
        (lambda: Run("smoke1"), "did you mean"),
        (lambda: run.rows("report"), "no stage 'report' is done"),
        (lambda: run.rows("sft"), "sft has no rows called '' .it has none"),
        (lambda: run.rows("revise", "revision"), "it has revisions, training"),
        (lambda: run.model("dpo2"), "no finished model 'dpo2'"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()


def test_type_checkers_see_what_there_is():
    stub = Path(cai.__file__).with_suffix(".pyi").read_text()
    names = {
        alias.asname
        for node in ast.walk(ast.parse(stub))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names == set(cai.__all__)
    assert all(getattr(cai, name) is not None for name in cai.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = cai.train  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_it_loads_no_torch():
    code = "import cai, sys; from cai import Constitution; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
