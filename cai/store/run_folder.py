"""The run folder: stage folders by key, manifests, atomic publishing, and the lock.

outputs/<name>/
  run.json               the configuration of the last run here
  ledger.sqlite          every completion
  merged/                whole models of stages that published an adapter, while the run goes on
  latest/<stage>         -> ../<stage>/<key12>, what the last run used
  <stage>/<key12>/
    work/                while the stage runs; renamed to out/ when it is finished
    scratch/             checkpoints and progress; removed when the stage is done
    logs/                TensorBoard's curves; not part of the output
    manifest.json        written last: only a manifest means done
    verified.json        which files had the manifest's digest, and their state then: they
                         are not read again while their state is the same
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cai.digest import digest, file_digest, folder_files
from cai.errors import CaiError, UsageError, nearest
from cai.store.files import FileState, file_state, fsync
from cai.store.manifest import (
    Damaged,
    FileEntry,
    Manifest,
    read_manifest,
    verify_files,
    write_manifest,
)

MERGED = "merged"


class Run:
    """One run's folder."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:12]

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """A finished stage's manifest, or None. Raises Damaged; see read_manifest."""
        return read_manifest(self.folder(stage, key), key)

    def latest(self, stage: str) -> Manifest | None:
        """The manifest of the last use of a stage, if it was finished."""
        link = self.root / "latest" / stage
        return read_manifest(link.resolve()) if link.exists() else None

    def with_output(self, stage: str, output: str) -> Path | None:
        """The out/ folder of a finished stage that has this digest; None where none has."""
        for folder in self.finished():
            with contextlib.suppress(Damaged):
                manifest = read_manifest(folder)
                if manifest and (manifest.stage, manifest.output) == (stage, output):
                    return folder / "out"
        return None

    def remove_merged(self) -> None:
        """Removes the models that can be merged again from what stages have published."""
        shutil.rmtree(self.root / MERGED, ignore_errors=True)

    def finished(self) -> list[Path]:
        """The folders of every finished stage, of all configurations."""
        folders = sorted(path.parent for path in self.root.glob("*/*/manifest.json"))
        return [
            folder
            for folder in folders
            if folder.parent.name != "latest" and ".damaged-" not in folder.name
        ]

    def verify_all(self) -> Iterator[tuple[Path, Damaged | None]]:
        """Reads every file of every finished stage: (stage's folder, what is damaged there)."""
        for folder in self.finished():
            try:
                if manifest := read_manifest(folder):
                    verify_files(folder, manifest, reread=True)
                yield folder, None
            except Damaged as damaged:
                yield folder, damaged

    def set_aside(self, folder: Path) -> Path:
        """Moves a damaged stage's folder to a name that no key has. Nothing is deleted."""
        names = (f"{folder.name}.damaged-{number}" for number in itertools.count(1))
        targets = (folder.with_name(name) for name in names)
        return folder.rename(next(target for target in targets if not target.exists()))

    def begin(self, stage: str, key: str) -> tuple[Path, Path]:
        """The folders (work, scratch) in which a stage starts, or resumes from scratch and ledger.

        `work` is empty: what a killed process left there, such as a half-written temporary file,
        must not be published.
        """
        folder = self.folder(stage, key)
        work, scratch = folder / "work", folder / "scratch"
        # There is an out/ if a process was killed between the rename and the manifest.
        for leftover in (work, folder / "out"):
            if leftover.exists():
                shutil.rmtree(leftover)
        work.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        self.point_latest(stage, key)
        return work, scratch

    def point_latest(self, stage: str, key: str) -> None:
        """Points latest/<stage> at a key."""
        link = self.root / "latest" / stage
        link.parent.mkdir(parents=True, exist_ok=True)
        target = Path("..") / stage / key[:12]
        if link.is_symlink() and link.readlink() == target:
            return
        temporary = link.with_name(f".{stage}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)

    def publish(
        self,
        stage: str,
        version: int,
        key: str,
        ingredients: Mapping[str, object],
        summary: Mapping[str, object],
        started: float,
    ) -> Manifest:
        """Renames work to out, digests it, and writes the manifest last: now the stage is done."""
        folder = self.folder(stage, key)
        out = folder / "out"
        _sync_tree(folder / "work")
        (folder / "work").rename(out)
        states: dict[str, FileState] = {}
        files: dict[str, FileEntry] = {}
        for path in folder_files(out):
            name = path.relative_to(out).as_posix()
            states[name] = file_state(path)
            files[name] = {"sha256": file_digest(path), "bytes": states[name].size}
        manifest = Manifest(
            stage=stage,
            version=version,
            key=key,
            ingredients=dict(ingredients),
            output=digest({name: entry["sha256"] for name, entry in files.items()}),
            files=files,
            summary=dict(summary),
            started=started,
            seconds=round(time.time() - started, 3),
        )
        manifest = write_manifest(folder, manifest, states)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return manifest

    @contextlib.contextmanager
    def lock(self, on_wait: Callable[[str], None] | None = None) -> Iterator[int]:
        """Holds the run for one process (and its workers). Yields the lock's file descriptor.

        Where another process holds it: raises UsageError, or, given `on_wait`, calls it with a
        message that names the process, and waits.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a+")
        except OSError as error:
            raise CaiError(
                f"can't write to {self.root}: {error.strerror}; "
                "choose another place with outputs=..."
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                message = f"{self.root} is in use by {file.read().strip() or 'another process'}"
                if on_wait is None:
                    raise UsageError(message) from None
                on_wait(f"{message}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
            yield file.fileno()


def find_run(name: str | None) -> Path:
    """The named run's folder, or the newest below outputs/. Raises UsageError if there is none."""
    outputs = Path("outputs")
    folders = [path.parent for path in outputs.glob("*/run.json")]
    if name is None:
        if not folders:
            raise UsageError("no run in outputs/; start one with `cai experiment=quickstart`")
        return max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)
    if "/" not in name and (outputs / name / "run.json").is_file():
        return outputs / name
    if not (Path(name) / "run.json").is_file():
        hint = nearest(name, [str(folder) for folder in folders])
        raise UsageError(f"{name} is no run's folder (no run.json){hint}")
    return Path(name)


def _sync_tree(folder: Path) -> None:
    """fsync of every file and folder below, and of the folder itself."""
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in (*folder_files(folder), *folders, folder):
        fsync(path)
