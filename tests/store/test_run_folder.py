"""The run folder: only a manifest means done, and one process at a time."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai.errors import CaiError, UsageError
from cai.store.files import SEAL, broken_seal, seal, write_json
from cai.store.manifest import SETTLED_NS, VERIFIED, Damaged, Manifest, read_manifest, verify_files
from cai.store.run_folder import Run

KEY = "0123456789abcdef"


def publish(run: Run, text: str = "hello", key: str = KEY) -> Manifest:
    work, scratch = run.begin("sft", key)
    (work / "deep").mkdir(exist_ok=True)
    (work / "deep" / "rows.txt").write_text(text)
    (scratch / "checkpoint").write_text("half")
    return run.publish("sft", 1, key, {"seed": 0}, {"rows": 1}, started=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_published_stage_is_read_back(run: Run):
    made = publish(run)
    assert run.manifest("sft", KEY) == made == run.latest("sft")
    assert made.files["deep/rows.txt"]["bytes"] == 5
    assert sorted(p.name for p in run.folder("sft", KEY).iterdir()) == [
        "manifest.json",
        "out",
        VERIFIED,
    ]


def test_the_output_digest_follows_the_bytes_alone(run: Run):
    one, same, other = publish(run), publish(run, key="b" * 16), publish(run, "other", key="c" * 16)
    assert one.output == same.output != other.output


def test_without_a_manifest_it_is_not_done(run: Run):
    work, _ = run.begin("sft", KEY)
    (work / "rows.txt").write_text("all of it")
    assert run.manifest("sft", KEY) is None and run.latest("sft") is None


def test_a_crash_between_the_rename_and_the_manifest_is_resumed(run: Run):
    made = publish(run)
    (run.folder("sft", KEY) / "manifest.json").unlink()
    _, scratch = run.begin("sft", KEY)
    assert scratch.is_dir()
    assert publish(run).output == made.output


def test_what_a_killed_process_left_is_not_published(run: Run):
    expected = publish(run, key="b" * 16).output
    work, scratch = run.begin("sft", KEY)
    (work / ".history.json.4711").write_text('{"cut')
    (scratch / "checkpoint").write_text("half")
    assert publish(run).output == expected


def test_latest_points_at_what_was_used_last(run: Run):
    publish(run)
    publish(run, key="b" * 16)
    run.point_latest("sft", KEY)
    assert (run.root / "latest" / "sft").resolve() == run.folder("sft", KEY).resolve()
    found = run.latest("sft")
    assert found is not None and found.key == KEY


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"stage": "sft"}', '{"unknown": 1}', "\ud800"]
)
def test_a_damaged_manifest_says_what_to_do(run: Run, text: str):
    publish(run)
    (run.folder("sft", KEY) / "manifest.json").write_text(text, errors="surrogatepass")
    with pytest.raises(
        CaiError, match=r"manifest\.json is damaged .*; running again moves .* aside"
    ):
        run.manifest("sft", KEY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "other"}, "is damaged"),
        ({"summary": {"rows": 2}}, "is damaged"),
        ({"schema": 99}, "another version"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    run: Run, changed: dict[str, object], message: str
):
    publish(run)
    file = run.folder("sft", KEY) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(CaiError, match=message):
        run.manifest("sft", KEY)


@pytest.mark.parametrize("harm", [lambda file: file.write_text("hell"), lambda file: file.unlink()])
def test_a_resized_or_missing_file_is_noticed(run: Run, harm):
    publish(run)
    harm(run.folder("sft", KEY) / "out" / "deep" / "rows.txt")
    with pytest.raises(CaiError, match=r"rows\.txt is missing or was changed"):
        read_manifest(run.folder("sft", KEY))


def test_a_flipped_bit_is_found_by_reading(run: Run):
    made = publish(run)
    verify_files(run.folder("sft", KEY), made)
    (run.folder("sft", KEY) / "out" / "deep" / "rows.txt").write_text("hellp")
    os.utime(run.folder("sft", KEY) / "out" / "deep" / "rows.txt", (1, 1))
    with pytest.raises(Damaged, match=r"rows\.txt is damaged .*its digest is another"):
        verify_files(run.folder("sft", KEY), made)
    aside = run.set_aside(run.folder("sft", KEY))
    assert run.manifest("sft", KEY) is None and (aside / "manifest.json").exists()


def settle(folder: Path) -> Path:
    """Waits until the stage's files are old enough to be noted. Returns the one file."""
    file = folder / "out" / "deep" / "rows.txt"
    time.sleep(max(0.0, (file.stat().st_ctime_ns + SETTLED_NS * 1.05 - time.time_ns()) / 1e9))
    return file


def test_what_was_sound_and_looks_the_same_is_not_read_again(run: Run):
    made, folder = publish(run), run.folder("sft", KEY)
    assert json.loads((folder / VERIFIED).read_text()) == {}  # the file is too new
    file = settle(folder)
    verify_files(folder, made)
    (noted,) = json.loads((folder / VERIFIED).read_text()).values()
    assert noted[0] == made.files["deep/rows.txt"]["sha256"]
    file.write_text("hellp")  # as if below the file system: it looks as it did
    stat = file.stat()
    looks = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    (folder / VERIFIED).write_text(json.dumps({"deep/rows.txt": [noted[0], *looks]}))
    verify_files(folder, made)
    assert [damaged is not None for _, damaged in run.verify_all()] == [True]
    with pytest.raises(Damaged):  # what was found is not forgotten
        verify_files(folder, made)


@pytest.mark.parametrize("restore", [False, True])
def test_a_write_is_noticed_though_size_and_time_are_put_back(run: Run, restore: bool):
    made, folder = publish(run), run.folder("sft", KEY)
    file = settle(folder)
    verify_files(folder, made)
    before = file.stat()
    file.write_text("hellp")
    if restore:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged, match=r"rows\.txt is damaged"):
        verify_files(folder, made)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"deep/rows.txt": 3}', '{"deep/rows.txt": []}', "[" * 9999]
)
def test_a_damaged_note_costs_a_reading_and_no_more(run: Run, text: str):
    made, folder = publish(run), run.folder("sft", KEY)
    (folder / VERIFIED).write_text(text)
    verify_files(folder, made)
    (folder / "out" / "deep" / "rows.txt").write_text("hellp")
    (folder / VERIFIED).write_text(text)
    with pytest.raises(Damaged):
        verify_files(folder, made)


def test_a_copied_run_is_read_again(run: Run, tmp_path: Path):
    made, folder = publish(run), run.folder("sft", KEY)
    settle(folder)
    verify_files(folder, made)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    noted = (copy / VERIFIED).read_bytes()
    settle(copy)
    verify_files(copy, made)
    assert (copy / VERIFIED).read_bytes() != noted == (folder / VERIFIED).read_bytes()


def test_a_sealed_folder_names_its_damaged_file(tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"abc")
    assert broken_seal(tmp_path) is None  # of an older version
    seal(tmp_path)
    assert broken_seal(tmp_path) is None
    (tmp_path / "weights").write_bytes(b"abd")
    assert broken_seal(tmp_path) == tmp_path / "weights"
    (tmp_path / SEAL).write_text("{")
    assert broken_seal(tmp_path) == tmp_path / SEAL


HOLD = """
import sys, time
from pathlib import Path
from cai.store.run_folder import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_or_waits_and_a_dead_ones_lock_is_free(run: Run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"is in use by process {holder.pid} "), run.lock():
            pass

        def free(said: str) -> None:
            assert f"is in use by process {holder.pid} " in said and said.endswith("waiting for it")
            holder.kill()

        with run.lock(free):
            assert holder.wait() == -9
    finally:
        holder.kill()
        holder.communicate()
    with run.lock() as descriptor:
        os.fstat(descriptor)
        assert f"process {os.getpid()} " in (run.root / ".lock").read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CaiError, match=r"can't write to .*; choose another place with outputs="),
        Run(tmp_path / "file" / "run").lock(),
    ):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"old": "é"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": [1] * 9999, "bad": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": "é"}
