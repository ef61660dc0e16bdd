"""Digests: canonical JSON that raises on what it doesn't know, and sha256 of bytes, files and folders."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON types only. Raises TypeError on anything whose bytes might differ from run to run."""
    if type(value) in (str, int, bool) or value is None:  # at once: most of what is digested
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError("only string keys have a canonical form")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise TypeError(f"{value} has no canonical JSON form")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII (so that lone surrogates have a form too)."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal sha256, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return sha256(canonical(value))


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from anything canonical: the same parts give the same draw, on any machine and in any order."""
    return int(digest(list(parts))[:16], 16) >> 1


def folder_files(folder: Path) -> Iterable[Path]:
    """Every regular file below `folder`, in sorted order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
