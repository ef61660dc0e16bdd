"""`cai chat` on the tiny model: piped, as a script uses it, and on a terminal, as a person does."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cai.config.schema import Sampling
from cai.engines.base import Completion, Request
from cai.store.files import write_json
from cai.store.run_folder import Run
from tests.configs import smoke

WORDS = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run with an sft and a dpo model, copies of the tiny one; dpo never ends an answer."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("chat") / "outputs" / "smoke"
    config = smoke("model=path", f"model.path={tiny_model}")
    for stage in ("sft", "dpo"):
        work, _ = Run(root).begin(stage, f"{stage:0<64}")
        (work / "model").mkdir()
        for file in tiny_model.iterdir():
            (work / "model" / file.name).write_bytes(file.read_bytes())
        if stage == "dpo":
            weights = load_file(tiny_model / "model.safetensors")
            weights["lm_head.weight"][2] = 0  # end of turn: among 400 tokens one is above 0
            save_file(weights, work / "model" / "model.safetensors", {"format": "pt"})
        Run(root).publish(stage, 1, f"{stage:0<64}", {}, {}, time.time())
    write_json(root / "run.json", {"schema": 1, "config": asdict(config)})
    return root


def command(run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cai", "chat", str(run), *words]


Chat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chat(cai: Chat) -> Chat:
    """What `cai chat RUN WORDS` leaves of what is typed."""

    def run_chat(run: Path, typed: bytes, *words: str) -> subprocess.CompletedProcess[str]:
        return cai("chat", str(run), *words, folder=run, stdin=typed)

    return run_chat


def test_a_question_a_line_from_a_pipe(chat: Chat, run: Path):
    done = chat(run, b"Hello.\n\nAnd then?\n/reset\nHello.\n/rest\n/quit\nnever asked\n", *WORDS)
    said = done.stdout
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ *(\w+)  ", said, re.MULTILINE) == ["you", "dpo", "base"] * 3
    first, second, again = re.findall(r"^ dpo  (.*)$", said, re.MULTILINE)
    assert first == again != second  # the same seed of the same turn; /reset forgets
    assert "no command /rest; did you mean '/reset'?" in said and "never asked" not in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
    assert not list(run.glob("ledger*")) and not (run / "outputs").exists()  # nothing of it is kept


def test_alone_and_between_two_models_of_the_run(chat: Chat, run: Path):
    assert re.findall(r"^ *(\w+)  ", chat(run, b"Hi\n", *WORDS, "--alone").stdout, re.M) == [
        "you",
        "dpo",
    ]
    said = chat(run, b"Hi\n", *WORDS, "--model", "sft", "--against", "dpo").stdout
    assert re.findall(r"^ *(\w+)  ", said, re.MULTILINE) == ["you", "sft", "dpo"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "dop"], "has no model 'dop'; did you mean 'dpo'? (it has base, sft, dpo)"),
        (["--model", "sl_cai"], "has no model 'sl_cai'"),
        (["--against", "dpo2"], "has no model 'dpo2'"),
        (["--temperature", "-1"], "'-1': must be a number of at least 0"),
    ],
)
def test_a_wrong_word_is_one_clear_line(chat: Chat, run: Path, words: list[str], expected: str):
    done = chat(run, b"", *words)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_a_model_is_named(chat: Chat, tmp_path: Path, tiny_model: Path):
    config = smoke("model=path", f"model.path={tiny_model}")
    write_json(tmp_path / "run.json", {"schema": 1, "config": asdict(config)})
    done = chat(tmp_path, b"")
    assert done.returncode == 2 and "no model is done yet" in done.stderr


def test_on_a_terminal_ctrl_c_ends_an_answer_and_not_the_chat(run: Path):
    ours, theirs = pty.openpty()
    words = ["--max-new-tokens", "6000", "--temperature", "0", "--alone"]
    process = subprocess.Popen(
        command(run, *words), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = ""

    def until(ready: Callable[[str], object], asked_to_stop: bool = False) -> None:
        nonlocal seen
        deadline = time.monotonic() + 240
        while not ready(seen):
            readable, _, _ = select.select([ours], [], [], 1)
            if asked_to_stop and not readable:
                process.send_signal(
                    signal.SIGINT
                )  # as a person would: one that comes just before the prompt is lost
            assert time.monotonic() < deadline and process.poll() is None, seen[-500:]
            seen += "" if not readable else os.read(ours, 65536).decode(errors="replace")

    try:
        until(lambda text: "> " in text)
        os.write(ours, b"Hello.\n")
        until(lambda text: re.search(r"Hello.*dpo  .{40}", text, re.DOTALL))  # it streams
        process.send_signal(signal.SIGINT)
        until(lambda text: re.search(r"\[ended\].*> ", text, re.DOTALL))
        process.send_signal(signal.SIGINT)  # at the prompt
        # a key before the prompt may be lost
        until(lambda text: re.search(r"Ctrl-D ends.*> ", text, re.DOTALL), asked_to_stop=True)
        os.write(ours, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(ours)


def test_what_a_model_writes_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    from cai.cli.chat import Chat

    class Hostile:
        async def complete(self, request: Request, on_text: object = None) -> Completion:
            return Completion("\x1b[2J\x9b31mred\u202eor\ud800\r[bold]not[/]", "length", 1, 1, 0.0)

        def close(self) -> None: ...

    Chat({"dpo": Hostile()}, Sampling(), 0, None, Console(markup=False)).ask("Well?")
    said = capsys.readouterr().out
    assert "dpo  �[2J�31mred�or��[bold]not[/] [ends at --max-new-tokens]" in said
