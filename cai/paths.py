"""Where things lie: what ships with cai, and the cache."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from cai.errors import UsageError, nearest

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder `conf` or `principles`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def own_conf() -> str | None:
    """The folder ./conf, where it is a person's own: `cai init` makes ./principles beside it."""
    conf = Path("conf")
    is_own = conf.is_dir() and Path("principles").is_dir() and not conf.samefile(shipped("conf"))
    return str(conf) if is_own else None


def cache() -> Path:
    """Downloads and converted models: $CAI_CACHE, else $XDG_CACHE_HOME/cai, else ~/.cache/cai."""
    if path := os.environ.get("CAI_CACHE"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cai"


def resolve_file(name: str, folder: str, suffixes: Sequence[str]) -> Path:
    """A file by path, else by name in ./<folder>, else among the shipped, with a suffix or without.

    Raises UsageError with the nearest name.
    """
    folders = (Path(folder), shipped(folder))
    for place, ending in product((Path(), *folders), ("", *suffixes)):
        path = place / (name + ending)
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or with a NUL
            break
    files = [path for place in folders for path in place.glob("*") if path.suffix in suffixes]
    names = sorted({path.stem for path in files})
    hint = nearest(Path(name).stem, names) or f" (known: {', '.join(names)})"
    raise UsageError(f"no file '{name}' here, nor in {folder}/{hint}")
