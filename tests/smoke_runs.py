"""Whole runs of the smoke experiment on the tiny model, as processes that can be killed."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

from cai.cli.main import main
from cai.run import plan as planning

# a random model writes no list of instructions
# a random model writes neither instructions nor prompts
NAMES = [stage.name for stage in planning.STAGES if stage.name not in ("build", "probe")]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


def smoke_words(model: Path, *words: str) -> list[str]:
    return ["experiment=smoke", "model=path", f"model.path={model}", "model.name=tiny", *words]


def smoke_command(model: Path, *words: str) -> list[str]:
    """As a person types it."""
    return [sys.executable, "-m", "cai", *smoke_words(model, *words)]


def start_fork(folder: Path, model: Path, *words: str) -> BaseProcess:
    """A run in a session of its own, so that it can be killed with its workers.

    What it says goes to `stdout` and `stderr` in its folder."""
    arguments = (str(folder), dict(os.environ), smoke_words(model, *words))
    process = FORKS.Process(target=forked, args=arguments)
    process.start()
    return process


def forked(folder: str, environment: dict[str, str], words: list[str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    main(words)


def run_fork(folder: Path, model: Path, *words: str) -> CompletedProcess[str]:
    """A run from its start to its end."""
    process = start_fork(folder, model, *words)
    process.join(400)
    if process.exitcode is None:
        process.kill()
    said = [(folder / name).read_text() for name in ("stdout", "stderr")]
    assert process.exitcode is not None, said
    return CompletedProcess(words, process.exitcode, *said)
