"""The run folder: stage folders by key, manifests, atomic publishing, and the lock.

outputs/<name>/
  run.json               the configuration of the last run here
  ledger.sqlite          every completion
  latest/<stage>         -> ../<stage>/<key12>, what the last run used
  <stage>/<key12>/
    work/                while the stage runs; renamed to out/ when it is finished
    scratch/             checkpoints and progress; removed when the stage is done
    logs/                TensorBoard's curves; kept, and no part of the output
    manifest.json        written last: only a manifest means done
"""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cai.digest import digest, file_digest, folder_files
from cai.errors import CaiError, UsageError

SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """What a finished stage was made from and what it made."""

    stage: str
    version: int
    key: str  # sha256 of the ingredients
    ingredients: dict[str, Any]
    output: str  # sha256 over the names and digests of the files in out/
    files: dict[str, dict[str, Any]]  # path below out/ -> {"sha256", "bytes"}
    summary: dict[str, Any]  # figures for a table
    started: float  # seconds since the epoch
    seconds: float
    schema: int = SCHEMA


class Run:
    """One run's folder."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:12]

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a finished stage, or None. A manifest whose files are missing or resized raises."""
        return read_manifest(self.folder(stage, key), key)

    def latest(self, stage: str) -> Manifest | None:
        """The manifest of the last use of a stage, if it was finished."""
        link = self.root / "latest" / stage
        return read_manifest(link.resolve()) if link.exists() else None

    def begin(self, stage: str, key: str) -> tuple[Path, Path]:
        """The folders (work, scratch) in which a stage runs or goes on."""
        folder = self.folder(stage, key)
        work, out, scratch = folder / "work", folder / "out", folder / "scratch"
        if out.exists() and not work.exists():  # killed between the rename and the manifest
            out.rename(work)
        work.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(exist_ok=True)
        self.point(stage, key)
        return work, scratch

    def point(self, stage: str, key: str) -> None:
        """Points latest/<stage> at a key."""
        link = self.root / "latest" / stage
        link.parent.mkdir(parents=True, exist_ok=True)
        target = Path("..") / stage / key[:12]
        if link.is_symlink() and link.readlink() == target:
            return
        fresh = link.with_name(f".{stage}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)

    def publish(self, stage: str, version: int, key: str, ingredients: Any, summary: Any, started: float) -> Manifest:
        """Renames work to out, digests it, and writes the manifest last. After this the stage is done."""
        folder = self.folder(stage, key)
        for path in (*folder_files(folder / "work"), *(p for p in (folder / "work").rglob("*") if p.is_dir())):
            _fsync(path)
        _fsync(folder / "work")
        (folder / "work").rename(folder / "out")
        files = {
            path.relative_to(folder / "out").as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size}
            for path in folder_files(folder / "out")
        }
        output = digest({name: entry["sha256"] for name, entry in files.items()})
        took = round(time.time() - started, 3)
        manifest = Manifest(stage, version, key, ingredients, output, files, summary, started, took)
        write_json(folder / "manifest.json", asdict(manifest))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return manifest

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Holds the run for one process (and the workers it starts). Yields the lock's file descriptor."""
        import fcntl

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a+")
        except OSError as error:
            raise CaiError(
                f"can't write to {self.root}: {error.strerror}; choose another place with outputs=..."
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UsageError(f"{self.root} is in use by {file.read().strip() or 'another process'}") from None
            file.seek(0)
            file.truncate()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
            yield file.fileno()


def read_manifest(folder: Path, key: str | None = None) -> Manifest | None:
    """The manifest in `folder`, or None where there is none. Raises CaiError where it or its files are damaged."""
    path = folder / "manifest.json"
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CaiError(f"{path} is damaged ({error}); remove {folder} to make it again") from None
    if manifest.schema != SCHEMA or (key is not None and manifest.key != key):
        raise CaiError(f"{path} belongs to another version of cai or another key; remove {folder} to make it again")
    for name, entry in manifest.files.items():
        file = folder / "out" / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CaiError(f"{file} is missing or was changed; remove {folder} to make it again")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Atomic: temporary file, fsync, rename, fsync of the folder."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=True)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
