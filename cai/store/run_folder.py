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
    verified.json        which files were found as the manifest says, and what they looked like: they aren't read again
"""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.digest import digest, file_digest, folder_files
from cai.errors import CaiError, UsageError, nearest
from cai.redact import redacted
from cai.store.files import file_state, fsync, write_json

SCHEMA = 1

VERIFIED = "verified.json"

SETTLED = 1_000_000_000  # ns: a change so soon after another may leave a file's times as they were


class Damaged(CaiError):
    """A finished stage's manifest or file is not what was written. `folder` is the stage's."""

    def __init__(self, folder: Path, text: str):
        super().__init__(f"{text}; running again moves {folder} aside and makes it anew")
        self.folder = folder


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
    checksum: str = ""  # sha256 of all other fields; empty in old ones

    @property
    def kind(self) -> str:
        """The stage's kind: label of label2."""
        return self.ingredients.get("kind", self.stage)


class Run:
    """One run's folder."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:12]

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a finished stage, or None. A manifest whose files are missing or resized raises."""
        return read_manifest(self.folder(stage, key), key)

    def verify(self) -> Iterator[tuple[Path, Damaged | None]]:
        """Every finished stage's folder, each file read and compared with its digest, and what is damaged there."""
        for folder in self.finished():
            try:
                if manifest := read_manifest(folder):
                    verify(folder, manifest, whole=True)
                yield folder, None
            except Damaged as damaged:
                yield folder, damaged

    def finished(self) -> list[Path]:
        """The folders of every finished stage, of all configurations."""
        folders = sorted(path.parent for path in self.root.glob("*/*/manifest.json"))
        return [
            one for one in folders if one.parent.name != "latest" and ".damaged-" not in one.name
        ]

    def latest(self, stage: str) -> Manifest | None:
        """The manifest of the last use of a stage, if it was finished."""
        link = self.root / "latest" / stage
        return read_manifest(link.resolve()) if link.exists() else None

    def set_aside(self, folder: Path) -> Path:
        """Moves a damaged stage's folder to a name that no key has. Nothing is deleted."""
        aside = next(
            p
            for n in range(1, 1 << 30)
            if not (p := folder.with_name(f"{folder.name}.damaged-{n}")).exists()
        )
        return folder.rename(aside)

    def begin(self, stage: str, key: str) -> tuple[Path, Path]:
        """The folders (work, scratch) in which a stage runs, or goes on by what scratch and the ledger hold.

        `work` is empty: what a killed process left there, say a half-written temporary file, must not be published.
        """
        folder = self.folder(stage, key)
        work, out, scratch = folder / "work", folder / "out", folder / "scratch"
        for left in (work, out):  # out: killed between the rename and the manifest
            if left.exists():
                shutil.rmtree(left)
        work.mkdir(parents=True)
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

    def publish(
        self, stage: str, version: int, key: str, ingredients: Any, summary: Any, started: float
    ) -> Manifest:
        """Renames work to out, digests it, and writes the manifest last. After this the stage is done."""
        folder = self.folder(stage, key)
        for path in (
            *folder_files(folder / "work"),
            *(p for p in (folder / "work").rglob("*") if p.is_dir()),
        ):
            fsync(path)
        fsync(folder / "work")
        (folder / "work").rename(folder / "out")
        looks = {path: file_state(path) for path in folder_files(folder / "out")}
        files = {
            path.relative_to(folder / "out").as_posix(): {
                "sha256": file_digest(path),
                "bytes": look[0],
            }
            for path, look in looks.items()
        }
        output = digest({name: entry["sha256"] for name, entry in files.items()})
        took = round(time.time() - started, 3)
        manifest = Manifest(stage, version, key, ingredients, output, files, summary, started, took)
        manifest = Manifest(**redacted(manifest))
        manifest = replace(manifest, checksum=_checksum(asdict(manifest)))
        write_json(folder / "manifest.json", asdict(manifest))
        _note(folder, manifest, dict(zip(files, looks.values(), strict=True)))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return manifest

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
        """Holds the run for one process (and the workers it starts). Yields the lock's file descriptor.

        Where another holds it: raises UsageError, or tells `waiting` who does, and waits.
        """
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
                used = f"{self.root} is in use by {file.read().strip() or 'another process'}"
                if waiting is None:
                    raise UsageError(used) from None
                waiting(f"{used}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
            yield file.fileno()


def read_manifest(folder: Path, key: str | None = None) -> Manifest | None:
    """The manifest in `folder`, or None where there is none. Raises Damaged, also where a file has another size."""
    path = folder / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA and isinstance(values["schema"], int):
            raise CaiError(
                f"{path} belongs to another version of cai (schema {values['schema']}, not {SCHEMA})"
            )
        manifest = Manifest(**values)
        files = {folder / "out" / name: entry for name, entry in manifest.files.items()}
        sound = not manifest.checksum or manifest.checksum == _checksum(values)
        sizes = {file: entry["bytes"] for file, entry in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(folder, f"{path} is damaged ({error})") from None
    if not sound or (key is not None and manifest.key != key):
        raise Damaged(folder, f"{path} is damaged (its checksum or its key is another)")
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            raise Damaged(folder, f"{file} is missing or was changed")
    return manifest


def chain(last: Manifest, done: Iterable[Manifest]) -> dict[str, Manifest]:
    """The stages, of those that are done, that led to a manifest, itself included, in the order of their start."""
    made = {(manifest.stage, manifest.output): manifest for manifest in done}
    found, waiting = {}, [last]
    while waiting:
        manifest = waiting.pop()
        found[manifest.stage] = manifest
        waiting += [
            made[one] for one in manifest.ingredients.get("inputs", {}).items() if one in made
        ]
    return dict(sorted(found.items(), key=lambda item: item[1].started))


def _checksum(manifest: dict[str, Any]) -> str:
    return digest({name: value for name, value in manifest.items() if name != "checksum"})


def verify(folder: Path, manifest: Manifest, whole: bool = False) -> None:
    """Compares every file of a finished stage with its digest. Raises Damaged, which names the first that has another.

    A file that was found sound, and whose size, times and inode are as they were then, is read again only if `whole`.
    """
    known = {} if whole else _noted(folder)
    looks, wrong = {}, []
    for name, entry in manifest.files.items():
        look = file_state(folder / "out" / name)
        if (
            known.get(name) == [entry["sha256"], *look]
            or file_digest(folder / "out" / name) == entry["sha256"]
        ):
            looks[name] = look
        else:
            wrong.append(folder / "out" / name)
    if wrong or any(known.get(name, [])[1:] != look for name, look in looks.items()):
        _note(folder, manifest, looks)
    if wrong:
        raise Damaged(folder, f"{wrong[0]} is damaged (its digest is another)")


def _noted(folder: Path) -> dict[str, list[Any]]:
    try:
        noted = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
        return {name: list(entry) for name, entry in noted.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _note(folder: Path, manifest: Manifest, looks: dict[str, list[int]]) -> None:
    """Notes how the sound files look, but for what was written a moment ago. Only costs another reading if it fails."""
    old = time.time_ns() - SETTLED
    noted = {
        name: [manifest.files[name]["sha256"], *look]
        for name, look in looks.items()
        if max(look[1:3]) < old
    }
    with contextlib.suppress(OSError):
        write_json(folder / VERIFIED, noted)


def find_run(name: str | None) -> Path:
    """The named run's folder, or the newest below outputs/. Raises UsageError where there is none."""
    if name is None:
        runs = sorted(Path("outputs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise UsageError("no run in outputs/; start one with `cai experiment=quickstart`")
        return runs[-1].parent
    if "/" not in name and (Path("outputs") / name / "run.json").is_file():
        return Path("outputs") / name
    if not (Path(name) / "run.json").is_file():
        known = [str(path.parent) for path in Path("outputs").glob("*/run.json")]
        raise UsageError(f"{name} is no run's folder (no run.json){nearest(name, known)}")
    return Path(name)
