"""Files that are whole or not there: atomic writes, seals, and a check that a folder is usable."""

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cai.digest import file_digest, folder_files
from cai.errors import CaiError

SEAL = "digests.json"  # in a folder that is no stage's: the digests of its files


class FileState(NamedTuple):
    """What any write through the file system changes. A copy has another inode and change time."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


def file_state(file: Path) -> FileState:
    stat = file.stat()
    return FileState(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def modified(files: Sequence[Path]) -> list[int]:
    """When each file was written last, in nanoseconds; 0 where there is none."""
    return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


@functools.cache
def _digest_in_state(file: Path, state: FileState) -> str:
    """Reads an unchanged file once in a process: a stage may open a model twice."""
    return file_digest(file)


def seal(folder: Path) -> None:
    """Writes the digests of a folder's files (not its links) into it."""
    digests = {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in folder_files(folder)
        if path.name != SEAL and not path.is_symlink()
    }
    write_json(folder / SEAL, digests)


def broken_seal(folder: Path) -> Path | None:
    """The first file that is not as it was sealed; None if all are, or the folder has no seal."""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            file = folder / name
            if not file.is_file() or _digest_in_state(file, file_state(file)) != digest:
                return file
    except FileNotFoundError:
        pass
    except (ValueError, AttributeError, TypeError):
        return folder / SEAL
    return None


def check_writable(folder: Path, size: int, remedy: str) -> None:
    """Makes the folder and writes `size` bytes there. Raises CaiError with the remedy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
    except OSError as error:
        raise CaiError(f"can't write to {folder}: {error.strerror}; {remedy}") from None


def write_json(path: Path, value: object) -> None:
    """Atomic: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
