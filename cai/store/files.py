"""Files that are whole or not there: atomic writes, seals, and a check that a folder can be written."""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cai.digest import file_digest, folder_files
from cai.errors import CaiError

SEAL = "digests.json"  # in a folder outside any stage: the digests of its files


def file_state(file: Path) -> list[int]:
    """What any write through the file system changes. A copy has another inode and another time of change."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def digest_of(file: Path) -> str:
    """A file that has not changed is read once in a process: a stage may open a model twice."""
    return _read_once(file, *file_state(file))


@functools.cache
def _read_once(file: Path, *look: int) -> str:
    return file_digest(file)


def seal(folder: Path) -> None:
    """Writes the digests of a folder's files (links apart) into it."""
    files = [path for path in folder_files(folder) if path.name != SEAL and not path.is_symlink()]
    write_json(
        folder / SEAL, {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    )


def unsealed(folder: Path) -> Path | None:
    """The first file that is not as it was sealed, or None; a folder that was never sealed has none."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        wrong = (
            folder / n
            for n, d in sealed.items()
            if not (folder / n).is_file() or digest_of(folder / n) != d
        )
        return next(wrong, None)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        return folder / SEAL


def probe(folder: Path, size: int, remedy: str) -> None:
    """Makes the folder and writes `size` bytes there. Raises CaiError, with the remedy, where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
    except OSError as error:
        raise CaiError(f"can't write to {folder}: {error.strerror}; {remedy}") from None


def write_json(path: Path, value: Any) -> None:
    """Atomic: temporary file, fsync, rename, fsync of the folder."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=True)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
