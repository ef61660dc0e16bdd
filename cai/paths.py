"""Where things lie: what ships with cai, and the cache."""

import os
from pathlib import Path

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
