"""Digests: sha256 of files, and of values by a canonical JSON that raises on what it can't write.

The same value has the same digest on every machine.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]  # what a JSON file holds: names and values of any JSON type


def plain(value: object) -> Any:
    """`value` as JSON types. Raises TypeError on what could have other bytes in another run."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no canonical JSON form")
        return value
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only string keys have a canonical form")
        return {key: plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII (so that lone surrogates have a form too)."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def sha256(data: bytes) -> str:
    """Hexadecimal sha256, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def digest(value: object) -> str:
    """sha256 of the canonical JSON of `value`."""
    return sha256(canonical(value))


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any canonical parts. Draws with it depend on no order of rows."""
    return int(digest(parts)[:16], 16) >> 1


def folder_files(folder: Path) -> Iterable[Path]:
    """Every regular file below `folder`, in sorted order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
