"""The promises of docs/reliability.md on whole runs.

They are killed, starved, damaged and held twice, and come to the same result."""

import contextlib
import http.server
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from cai.cli.main import main
from cai.engines.ledger import Ledger
from cai.run import plan as planning
from cai.store.manifest import VERIFIED, read_manifest, verify_files
from cai.store.run_folder import Run

pytestmark = pytest.mark.chaos

MOMENTS = int(os.environ.get("CAI_CHAOS_MOMENTS", "5"))
SEED = 8
NAMES = [
    stage.name for stage in planning.STAGES if stage.name not in ("build", "probe")
]  # a random model writes no instructions
ROOT = Path("outputs/smoke")


def command(model: Path, *words: str) -> list[str]:
    run = [
        sys.executable,
        "-m",
        "cai",
        "experiment=smoke",
        "model=path",
        f"model.path={model}",
        "model.name=tiny",
    ]
    return [*run, *words]


def cai(folder: Path, model: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, *words), cwd=folder, capture_output=True, text=True, timeout=300, **options
    )


def started(folder: Path, model: Path, launcher: str) -> subprocess.Popen[str]:
    """A run under way, in a session of its own, so that it can be killed with its workers."""
    return subprocess.Popen(
        command(model, f"launcher={launcher}"),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outputs(folder: Path) -> dict[str, str]:
    """Every stage's output digest, each file compared with its own.

    The report is left out: it holds times, so it differs."""
    found = {}
    for name in NAMES:
        manifest = Run(folder / ROOT).latest(name)
        assert manifest is not None, f"{name} has not finished"
        verify_files((folder / ROOT / "latest" / name).resolve(), manifest)
        found[name] = manifest.output
    return {name: output for name, output in found.items() if name != "report"}


def completions(folder: Path) -> dict[bytes, str]:
    with contextlib.closing(sqlite3.connect(folder / ROOT / "ledger.sqlite")) as db:
        return {
            key: json.loads(text)["text"]
            for key, text in db.execute("select digest, completion from completions")
        }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder in which the smoke experiment has run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = cai(folder, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "outputs", tmp_path / "outputs", symlinks=True)
    return tmp_path


def count_answers(folder: Path) -> None:
    """A trigger that notes every completion handed to the ledger, also one that it has already."""
    (folder / ROOT).mkdir(parents=True)
    Ledger(folder / ROOT / "ledger.sqlite").close()
    with contextlib.closing(sqlite3.connect(folder / ROOT / "ledger.sqlite")) as db:
        db.execute("create table answers (digest blob)")
        db.execute(
            "create trigger count before insert on completions "
            "begin insert into answers values(new.digest);end"
        )


def answered_twice(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / ROOT / "ledger.sqlite")) as db:
        return db.execute("select count(*) - count(distinct digest) from answers").fetchone()[0]


def check_nothing_half_written(folder: Path) -> str:
    """Every artifact that a manifest vouches for is whole. Returns the stage that was at work."""
    for path in (folder / ROOT).glob("*/*/manifest.json"):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        verify_files(path.parent, manifest)
    begun = [
        scratch.parent for name in NAMES for scratch in (folder / ROOT).glob(f"{name}/*/scratch")
    ]
    return next(
        (one.parent.name for one in begun if not (one / "manifest.json").exists()), "between stages"
    )


PRELOADED = [
    "torch",
    "transformers",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "cai.cli.main",
]
PRELOADED += [
    "cai.run.runner",
    "cai.run.worker",
    "cai.stages.suites",
    "cai.stages.verdicts",
]
FORKS = multiprocessing.get_context(
    "forkserver"
)  # a clean process that has the libraries loaded, and runs nothing
FORKS.set_forkserver_preload(PRELOADED)


def forked(folder: str, words: list[str]) -> None:
    """A run in a process and a session of its own, without the seconds that imports take."""
    os.setsid()
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    main(words)


class Moment:
    """When to kill: a share of a stage's usual time after its start, or when its output is there
    without a manifest."""

    def __init__(self, folder: Path, stage: str, share: float | None, seconds: float):
        self.root, self.stage, self.share, self.seconds = (
            folder / ROOT / stage,
            stage,
            share,
            seconds,
        )
        self.before = self.begun()

    def begun(self) -> set[tuple[str, int]]:
        found = set()
        for spec in self.root.glob("*/scratch/job.json"):
            with contextlib.suppress(FileNotFoundError):
                found.add((str(spec), spec.stat().st_mtime_ns))
        return found

    def wait(self, over: Callable[[], bool]) -> None:
        """Returns at the moment, or when the run is `over`."""
        while (
            not over()
            and self.begun() <= self.before
            and not list(self.root.glob("*/manifest.json"))
        ):
            time.sleep(0.001)
        if self.share is not None:
            end = time.monotonic() + self.share * self.seconds
            while not over() and time.monotonic() < end:
                time.sleep(0.001)
            return
        while not over() and not list(self.root.glob("*/out")):
            time.sleep(0.0002)


def test_killed_at_random_moments_it_continues_to_the_same_result(
    whole: Path, tmp_path: Path, tiny_model: Path
):
    """Every stage is struck as often as the others: anywhere in its time, and in the instant before
    its manifest."""
    rng, expected, texts = random.Random(SEED), outputs(whole), completions(whole)

    def start(folder: Path) -> BaseProcess:
        process = FORKS.Process(
            target=forked, args=(str(folder), command(tiny_model, "launcher=inline")[3:])
        )
        process.start()
        return process

    def finish(folder: Path) -> None:
        process = start(folder)
        process.join(300)
        assert process.exitcode == 0, (folder / "said").read_text()[-3000:]
        assert outputs(folder) == expected, killed
        assert completions(folder) == texts, killed

    killed: list[str] = []
    calm = tmp_path / "calm"
    calm.mkdir()
    finish(calm)
    taken = {
        name: manifest.seconds for name in NAMES if (manifest := Run(calm / ROOT).latest(name))
    }
    deck: list[str] = []
    number = 0
    while len(killed) < MOMENTS:
        number += 1
        deck = deck if len(deck) >= len(NAMES) else [*deck, *rng.sample(NAMES * 5, len(NAMES) * 5)]
        size = min(len(NAMES), MOMENTS - len(killed))
        struck, deck = sorted(deck[:size], key=NAMES.index), deck[size:]
        folder = tmp_path / str(number)
        count_answers(folder)
        for stage in struck:
            moment = Moment(
                folder, stage, rng.uniform(0, 1.05) if rng.random() < 0.8 else None, taken[stage]
            )
            process = start(folder)
            moment.wait(lambda process=process: process.exitcode is not None)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            assert process.exitcode in (-signal.SIGKILL, 0), (folder / "said").read_text()[-3000:]
            if process.exitcode:  # else the moment came after the run's end
                killed.append(check_nothing_half_written(folder))
        finish(folder)
        assert answered_twice(folder) == 0, killed
        shutil.rmtree(folder)
        print(f"{len(killed)} kills in {number} runs:", dict(Counter(killed)), flush=True)
    if MOMENTS >= 100:
        assert set(killed) >= set(NAMES)


@pytest.mark.parametrize(
    ("number", "stage", "launcher"),
    [
        (signal.SIGINT, "sft", "process"),
        (signal.SIGTERM, "revise", "process"),
        (signal.SIGTERM, "sft", "inline"),
    ],
)
def test_a_signal_stops_within_5_seconds(
    number: signal.Signals, stage: str, launcher: str, whole: Path, tmp_path: Path, tiny_model: Path
):
    if stage == "revise":
        shutil.copytree(whole / ROOT / "sft", tmp_path / ROOT / "sft")
    process = started(tmp_path, tiny_model, launcher)
    while process.poll() is None and not list(
        (tmp_path / ROOT).glob(f"{stage}/*/scratch/progress.json")
    ):
        time.sleep(0.01)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == 128 + number, said
    assert "the same command continues" in said and "Traceback" not in said
    with Run(tmp_path / ROOT).lock():  # no worker holds it any more
        check_nothing_half_written(tmp_path)


def test_a_second_process_says_who_holds_the_run_and_stops(tmp_path: Path, tiny_model: Path):
    with Run(tmp_path / ROOT).lock():
        second = cai(tmp_path, tiny_model)
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert f"is in use by process {os.getpid()} on {os.uname().nodename} since 20" in second.stderr


def flip(file: Path) -> Path:
    """One bit in the middle of the file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_what_is_damaged_is_named_and_made_again(copied: Path, tiny_model: Path):
    time.sleep(1.1)  # now the copies are old enough to be noted, and not to be read again
    expected, texts = outputs(copied), completions(copied)
    noted = [json.loads(file.read_text()) for file in (copied / ROOT).glob(f"latest/*/{VERIFIED}")]
    assert len(noted) == len(NAMES) and all(noted)

    def of(stage: str, file: str) -> Path:
        return (copied / ROOT / "latest" / stage).resolve() / file

    harmed = [
        flip(of("sft", "manifest.json")),
        flip(of("revise", "out/revisions.parquet")),
        flip(of("sl_cai", "out/model/model.safetensors")),
        of("label", "out/pairs.parquet"),
        flip(of("dpo", "out/history.json")),
    ]
    harmed[3].write_bytes(harmed[3].read_bytes()[:-100])
    asked = [sys.executable, "-m", "cai", "status", str(ROOT), "--verify"]
    told = subprocess.run(asked, cwd=copied, capture_output=True, text=True)
    assert told.returncode == 1 and "5 of 7 stages damaged" in told.stderr
    assert all(str(file.relative_to(copied)) in told.stdout for file in harmed)
    done = cai(copied, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    for file in harmed:
        assert str(file.relative_to(copied)) in done.stderr.replace("\n", ""), done.stderr
    assert outputs(copied) == expected and completions(copied) == texts
    assert len(list((copied / ROOT).glob("*/*.damaged-1"))) == len(harmed)  # nothing is deleted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for half of the run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_with_space_the_run_continues(
    small_disk: Path, whole: Path, tiny_model: Path
):
    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(small_disk)], check=True)

    full = cai(small_disk, tiny_model)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "o space" in full.stderr and "the same command continues" in full.stderr, full.stderr
    check_nothing_half_written(small_disk)
    remount("size=100m,ro")
    closed = cai(small_disk, tiny_model)
    assert (
        closed.returncode
        and "Read-only file system" in closed.stderr
        and "Traceback" not in closed.stderr
    )
    remount("size=100m,rw")
    done = cai(small_disk, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    assert outputs(small_disk) == outputs(whole) and completions(small_disk) == completions(whole)


def test_a_limit_on_file_sizes_is_said_before_work_is_spent(tmp_path: Path, tiny_model: Path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    done = cai(tmp_path, tiny_model, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "File too large" in done.stderr and "the same command continues" in done.stderr, (
        done.stderr
    )


class Echo(http.server.BaseHTTPRequestHandler):
    """Repeats the key in its refusal, as some servers do."""

    def do_POST(self) -> None:
        body = json.dumps(
            {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
        ).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_planted_key_is_in_no_output(copied: Path, tiny_model: Path):
    key = "planted-0123456789-key"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"label.engine.server.urls=[http://127.0.0.1:{server.server_port}/v1]"
    judge = [
        "+engine@label.engine=openai",
        "label.engine.model=m",
        address,
        "label.engine.server.key=JUDGE_KEY",
    ]
    try:
        runs = [
            cai(copied, tiny_model, *judge, env={**os.environ, "JUDGE_KEY": key}),
            cai(
                copied,
                tiny_model,
                f"+dpo.args.hub_token={key}",
                env={**os.environ, "JUDGE_KEY": key},
            ),
            cai(
                copied,
                tiny_model,
                f"label.engine.server.key={key}",
                env={**os.environ, "JUDGE_KEY": key},
            ),
        ]
    finally:
        server.shutdown()
        server.server_close()
    assert [run.returncode for run in runs] == [1, 2, 2], [run.stderr for run in runs]
    assert "wrong key" in runs[0].stderr
    assert not [run.args for run in runs if key in run.stdout + run.stderr]
    assert not [
        path for path in copied.rglob("*") if path.is_file() and key.encode() in path.read_bytes()
    ]
