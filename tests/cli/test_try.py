"""`cai try` on the tiny model, as a person types it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cai.cli.try_ import parse
from cai.errors import UsageError

RULE = {
    "id": "kind",
    "critique": "What was rude?",
    "revision": "Be kind.",
    "comparison": "Which is kinder?",
}
SHORT = [f"revise.sampling.{kind}.max_new_tokens=8" for kind in ("answer", "critique", "revision")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"principles": [RULE]}))
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({"principles": [RULE | {"id": "calm", "revision": "Be calm."}]})
    )
    return tmp_path


def words_of(tiny_model: Path, *words: str) -> list[str]:
    return ["try", *words, "model=path", f"model.path={tiny_model}", *SHORT]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(cai: Command, folder: Path, tiny_model: Path) -> Callable[..., str]:
    """What `cai try WORDS` shows."""

    def run_try(*words: str) -> str:
        done = cai(*words_of(tiny_model, *words))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_try


def test_one_prompt_shows_answer_critique_and_revision(run: Callable[..., str]):
    said = run("mine.yaml", "Hello there.")
    names = [line.split()[0] for line in said.splitlines() if line[:10].strip()]
    assert names[:2] == ["prompt", "answer"] and "critique" in names and "revision" in names
    assert "by kind" in said
    assert run("mine.yaml", "Hello there.") == said  # out of the ledger


def test_a_run_without_a_helpful_model_is_named(cai: Command):
    done = cai("try", "mine.yaml", "Hello.", "--run", "outputs/none")
    assert done.returncode == 2 and "--run outputs/none: no finished sft stage there" in done.stderr


def test_two_files_stand_side_by_side(run: Callable[..., str]):
    said = run("mine.yaml", "Hello there.", "--against", "other.yaml")
    assert "by kind" in said and "by calm" in said


def test_watch_runs_again_when_the_file_is_saved(folder: Path, tiny_model: Path):
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cai", *words_of(tiny_model, "mine.yaml", "Hello.", "--watch")],
            cwd=folder,
            stdout=out,
            stderr=out,
        )
        try:
            _wait(lambda: log.read_text().count("waiting for the file") == 1, process)
            (folder / "mine.yaml").write_text("principles: [{id: kind, critique: ''}]\n")
            _wait(lambda: log.read_text().count("waiting for the file") == 2, process)
            assert "'critique' is empty" in log.read_text()
            (folder / "mine.yaml").write_text(
                yaml.safe_dump({"principles": [RULE | {"id": "gentle"}]})
            )
            _wait(lambda: "by gentle" in log.read_text(), process)
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 143


def _wait(ready: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(ready)
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_a_prompt_or_a_suite_is_needed():
    with pytest.raises(UsageError, match="give a prompt"):
        parse(["mine.yaml"])
    options = parse(["mine.yaml", "--suite", "3", "revise.rounds=2"])
    assert (options.prompt, options.suite, options.overrides) == (None, 3, ["revise.rounds=2"])
    options = parse(["mine.yaml", "How do I?", "--principle", "kind", "seed=1"])
    assert (options.prompt, options.principle, options.overrides) == (
        "How do I?",
        "kind",
        ["seed=1"],
    )
