"""Where things lie: what ships with cai, and the cache."""

import os
from pathlib import Path

from cai.errors import UsageError, nearest

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder `conf` or `principles`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def cache() -> Path:
    """Downloads and converted models: $CAI_CACHE, else $XDG_CACHE_HOME/cai, else ~/.cache/cai."""
    if path := os.environ.get("CAI_CACHE"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cai"


def resolve_file(name: str, folder: str, suffix: str) -> Path:
    """A file by path, else by name in ./<folder>, else among the shipped. Raises UsageError with the nearest name."""
    for candidate in (
        place / (name + end)
        for end in ("", suffix)
        for place in (Path(), Path(folder), shipped(folder))
    ):
        try:
            if candidate.is_file():
                return candidate
        except (OSError, ValueError):  # a name too long, or with a NUL
            break
    known = sorted(
        {p.stem for place in (Path(folder), shipped(folder)) for p in place.glob(f"*{suffix}")}
    )
    hint = nearest(Path(name).stem, known) or f" (known: {', '.join(known)})"
    raise UsageError(f"no file '{name}' here, nor in {folder}/{hint}")
