"""A finished stage's manifest: written, read, and compared with the files that it names."""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

from cai.digest import JsonObject, digest, file_digest
from cai.errors import CaiError
from cai.redact import redacted
from cai.store.files import FileState, file_state, write_json

SCHEMA = 1

VERIFIED = "verified.json"

SETTLED_NS = 1_000_000_000  # two changes closer than this may leave a file with the same times


class Damaged(CaiError):
    """A finished stage's manifest or file is not what was written. `folder` is the stage's."""

    def __init__(self, folder: Path, text: str):
        super().__init__(f"{text}; running again moves {folder} aside and makes it anew")
        self.folder = folder


class FileEntry(TypedDict):
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a finished stage was made from and what it made."""

    stage: str
    version: int
    key: str  # sha256 of the ingredients
    ingredients: JsonObject
    output: str  # sha256 over the names and digests of the files in out/
    files: dict[str, FileEntry]  # by path below out/
    summary: JsonObject  # metrics for a table
    started: float  # seconds since the epoch
    seconds: float
    schema: int = SCHEMA
    checksum: str = ""  # sha256 of all other fields; empty in old ones

    @property
    def kind(self) -> str:
        """The stage's kind: label of label2."""
        return self.ingredients.get("kind", self.stage)


def write_manifest(folder: Path, manifest: Manifest, states: Mapping[str, FileState]) -> Manifest:
    """Writes it without secrets and with its checksum. `states`: of the files when digested."""
    manifest = Manifest(**redacted(manifest))
    manifest = replace(manifest, checksum=_checksum(asdict(manifest)))
    write_json(folder / "manifest.json", asdict(manifest))
    _write_verified(folder, manifest, states)
    return manifest


def read_manifest(folder: Path, key: str | None = None) -> Manifest | None:
    """The manifest in `folder`, or None where there is none.

    Raises Damaged where it is not what was written, or a file is missing or has another size.
    """
    path = folder / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA and isinstance(values["schema"], int):
            raise CaiError(
                f"{path} belongs to another version of cai "
                f"(schema {values['schema']}, not {SCHEMA})"
            )
        manifest = Manifest(**values)
        sizes = {folder / "out" / name: entry["bytes"] for name, entry in manifest.files.items()}
        checksum_holds = not manifest.checksum or manifest.checksum == _checksum(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(folder, f"{path} is damaged ({error})") from None
    if not checksum_holds or (key is not None and manifest.key != key):
        raise Damaged(folder, f"{path} is damaged (its checksum or its key is another)")
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            raise Damaged(folder, f"{file} is missing or was changed")
    return manifest


def verify_files(folder: Path, manifest: Manifest, reread: bool = False) -> None:
    """Compares every file of a finished stage with its digest. Raises Damaged, naming the first.

    A file that had its digest before, and whose state has not changed since, is read again only
    with `reread`.
    """
    verified = {} if reread else _read_verified(folder)
    sound: dict[str, FileState] = {}
    damaged: list[Path] = []
    for name, entry in manifest.files.items():
        file = folder / "out" / name
        state = file_state(file)
        unchanged = verified.get(name) == [entry["sha256"], *state]
        if unchanged or file_digest(file) == entry["sha256"]:
            sound[name] = state
        else:
            damaged.append(file)
    if damaged or any(verified.get(name, [])[1:] != [*state] for name, state in sound.items()):
        _write_verified(folder, manifest, sound)
    if damaged:
        raise Damaged(folder, f"{damaged[0]} is damaged (its digest is another)")


def _read_verified(folder: Path) -> dict[str, list[str | int]]:
    """What verified.json says: name -> [sha256, *state]. Empty where it can't be read."""
    try:
        verified = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
        return {name: list(entry) for name, entry in verified.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _write_verified(folder: Path, manifest: Manifest, sound: Mapping[str, FileState]) -> None:
    """Notes the state of the sound files, except those that were written a moment ago.

    If it can't be written, the files are read again: nothing else is lost.
    """
    settled = time.time_ns() - SETTLED_NS
    verified = {
        name: [manifest.files[name]["sha256"], *state]
        for name, state in sound.items()
        if max(state.modified_ns, state.changed_ns) < settled
    }
    with contextlib.suppress(OSError):
        write_json(folder / VERIFIED, verified)


def _checksum(manifest: Mapping[str, object]) -> str:
    return digest({name: value for name, value in manifest.items() if name != "checksum"})


def ancestors(last: Manifest, finished: Iterable[Manifest]) -> dict[str, Manifest]:
    """The finished stages that led to a manifest, and itself, in the order of their start."""
    by_output = {(manifest.stage, manifest.output): manifest for manifest in finished}
    stages: dict[str, Manifest] = {}
    queue = [last]
    while queue:
        manifest = queue.pop()
        stages[manifest.stage] = manifest
        inputs = manifest.ingredients.get("inputs", {})
        queue += [by_output[source] for source in inputs.items() if source in by_output]
    return dict(sorted(stages.items(), key=lambda named: named[1].started))
