"""The file of verdicts: nothing that was saved is lost, and undo goes back."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cai.config.schema import DataConfig
from cai.data.unfit import UnfitRows
from cai.data.verdicts import read_verdicts, subject_of
from cai.errors import CaiError
from cai.review.verdict_file import VerdictFile

TURN = [{"role": "user", "content": "Hi?"}]


def line(number: int, verdict: str, edited: str | None = None) -> tuple[str, dict[str, Any]]:
    text = f"Revision {number} …"
    row = {"kind": "revision", "id": f"{number}", "prompt": TURN, "revision": text}
    subject = subject_of("revision", f"{number}", (text,))
    return subject, row | {"verdict": verdict, "edited": edited}


def words(path: Path) -> dict[str, str]:
    """Prompt id -> the word that counts, as a stage reads it."""
    config = DataConfig("file", str(path), format="verdicts")
    return {one.prompt_id: one.choice for one in read_verdicts("mine", config, UnfitRows())}


def test_undo_goes_back_to_what_stood_before_also_after_a_restart(tmp_path: Path):
    path = tmp_path / "verdicts" / "ann.jsonl"
    file = VerdictFile(path, "ann")
    first, second = line(1, "good")[0], line(2, "good")[0]
    for number, verdict in [(1, "good"), (2, "bad"), (1, "bad")]:
        file.add(*line(number, verdict))
    assert file.undo() == first and words(path) == {"1": "good", "2": "bad"}
    file = VerdictFile(path, "ann")
    assert file.undo() == second and words(path) == {"1": "good"}
    assert second not in file and len(file) == 1
    assert file.undo() == first and words(path) == {}
    assert file.undo() is None and VerdictFile(path, "ann").undo() is None
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6 and all(row["reviewer"] == "ann" and row["time"] for row in rows)
    assert "…" in path.read_text(encoding="utf-8")  # people read it


def test_two_reviewers_share_a_file_and_undo_their_own(tmp_path: Path):
    ann, ben = (VerdictFile(tmp_path / "both.jsonl", name) for name in ("ann", "ben"))
    ann.add(*line(1, "good"))
    ben.add(*line(1, "bad"))
    assert ann.undo() is not None and ann.undo() is None
    assert words(tmp_path / "both.jsonl") == {"1": "bad"}


@pytest.mark.parametrize("torn", ['{"kind": "revision", "id": "', '{"id": "…'])
def test_a_torn_end_does_not_take_the_next_line_with_it(tmp_path: Path, torn: str):
    path = tmp_path / "ann.jsonl"
    VerdictFile(path, "ann").add(*line(1, "good"))
    with path.open("ab") as file:
        file.write(torn.encode()[:-1])
    VerdictFile(path, "ann").add(*line(2, "bad"))
    assert words(path) == {"1": "good", "2": "bad"}


def test_a_last_line_without_its_break_is_kept(tmp_path: Path):
    path = tmp_path / "ann.jsonl"
    VerdictFile(path, "ann").add(*line(1, "good"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as some editors leave it
    VerdictFile(path, "ann").add(*line(2, "bad"))
    assert words(path) == {"1": "good", "2": "bad"}


WRITER = """
import sys
from pathlib import Path
from cai.review.verdict_file import VerdictFile
from tests.review.test_verdict_file import line
file = VerdictFile(Path(sys.argv[1]), sys.argv[2])
for number in range(100_000):
    file.add(*line(number, "good"))
    print(number, flush=True)
"""


def test_what_was_saved_survives_a_kill_of_two_writers(tmp_path: Path):
    path = tmp_path / "both.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE)
        for name in ("ann", "ben")
    ]
    for writer in writers:
        assert writer.stdout is not None
        while writer.stdout.readline() != b"20\n":
            pass
    time.sleep(0.05)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    said_last = [int((writer.communicate()[0].split() or [b"20"])[-1]) for writer in writers]
    for name, last in zip(("ann", "ben"), said_last, strict=True):
        file = VerdictFile(path, name)
        assert all(line(number, "good")[0] in file for number in range(last + 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(CaiError, match=r"can't write to .*; name another file with --to"):
        VerdictFile(tmp_path / "verdicts" / "ann.jsonl", "ann")


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path):
    path = tmp_path / "ann.jsonl"
    file = VerdictFile(path, "ann")
    file.add(*line(1, "good"))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # the next line fits in part
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(CaiError, match=r"can't write to .*ann\.jsonl: File too large"):
            file.add(*line(2, "bad"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and len(file) == 1
