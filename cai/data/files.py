"""Rows of a file, by its suffix."""

import csv
import functools
import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pyarrow.parquet as parquet
import yaml

from cai.data.encoding import read_lines, read_odd_lines, refuse_misnamed, undecoded
from cai.data.parquet import Row
from cai.errors import UsageError

PlacedRow = tuple[str, Row]  # file and line, for messages; the row

# the only column of a row that can't be read, with the reason: it is left out, and others are not
UNREADABLE_ROW = "\0unreadable"

# what pyarrow raises on values that Python has no place for: dates beyond year 9999, no UTF-8
UNREADABLE_VALUE = (ValueError, OverflowError, LookupError)


def read_file(origin: str, suffix: str, file: BinaryIO) -> Iterator[PlacedRow]:
    """The rows of a file of this suffix. Raises UsageError where it can't be read."""
    suffix = suffix.lower()
    if suffix == ".gz":
        unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        try:
            yield from read_file(origin, Path(origin[: -len(suffix)]).suffix, unpacked)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"{origin}: not readable as gzip: {error}") from None
    elif suffix not in READERS:
        raise UsageError(
            f"{origin}: can't read '{suffix}'; use .jsonl, .json, .yaml, .csv, .tsv, .txt or "
            ".parquet, or one of these packed as .gz"
        )
    else:
        if suffix != ".parquet":
            refuse_misnamed(origin, suffix, file)
        yield from READERS[suffix](origin, file)


def _read_csv(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    """Columns end at commas, or at what else the header has: semicolons or tabs."""
    csv.field_size_limit(1 << 30)
    lines = read_odd_lines(origin, file)
    comments, header = 0, next(lines, "")
    # PyRIT's files begin with comments and only then name their columns.
    while header.startswith("# "):
        comments, header = comments + 1, next(lines, "")
    if reason := undecoded(header):
        raise UsageError(f"{origin}:{comments + 1}: {reason}")
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(
        itertools.chain([header], lines),
        restkey=UNREADABLE_ROW,
        delimiter=delimiter,
        skipinitialspace=f"{delimiter} " in header,
        strict=True,
    )
    try:
        _refuse_doubled(origin, reader.fieldnames or ())  # reads the header
        first_line = comments + reader.line_num + 1
        for row in reader:
            if UNREADABLE_ROW in row:
                row = {UNREADABLE_ROW: "more values than columns; put quotes around a text"}
            elif reason := next(filter(None, map(undecoded, filter(None, row.values()))), ""):
                row = {UNREADABLE_ROW: reason}
            yield f"{origin}:{first_line}", row
            first_line = comments + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{origin}:{comments + reader.line_num}: not CSV: {error}") from None


def _refuse_doubled(origin: str, columns: Sequence[str]) -> None:
    doubled = [name for name, count in Counter(columns).items() if name and count > 1]
    if doubled:
        raise UsageError(f"{origin}: the column '{doubled[0]}' stands twice; give one another name")


def _read_text(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    """A prompt a line."""
    for number, line in enumerate(read_odd_lines(origin, file), 1):
        if line.strip():
            reason = undecoded(line)
            row = {UNREADABLE_ROW: reason} if reason else {"prompt": line.strip()}
            yield f"{origin}:{number}", row


def _read_json_lines(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    for number, line in enumerate(read_odd_lines(origin, file), 1):
        if number == 1 and line.startswith("["):
            raise UsageError(f"{origin}: it begins as a list; end its name in .json")
        if line.strip():
            reason = undecoded(line)
            yield f"{origin}:{number}", {UNREADABLE_ROW: reason} if reason else _json_row(line)


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line)
    except RecursionError:
        return {UNREADABLE_ROW: "nested too deeply"}
    except ValueError as error:
        return {UNREADABLE_ROW: f"not JSON: {error}"}
    return row if isinstance(row, dict) else {UNREADABLE_ROW: "a line must be an object"}


def _read_parquet(origin: str, file: BinaryIO) -> Iterator[PlacedRow]:
    number = 0
    try:
        table = parquet.ParquetFile(file)
        _refuse_doubled(origin, table.schema_arrow.names)
        for batch in table.iter_batches(1024):
            for row in _batch_rows(batch):
                number += 1
                yield f"{origin} row {number}", row
    except (pyarrow.ArrowException, OSError, *UNREADABLE_VALUE) as error:
        raise UsageError(f"{origin}: not readable as Parquet: {one_line(error)}") from None


def _batch_rows(batch: pyarrow.RecordBatch) -> list[Row]:
    try:
        return batch.to_pylist()
    except UNREADABLE_VALUE as error:
        if batch.num_rows == 1:
            return [{UNREADABLE_ROW: f"a value that can't be read: {one_line(error)}"}]
    rows = [_batch_rows(batch.slice(number, 1)) for number in range(batch.num_rows)]
    return list(itertools.chain.from_iterable(rows))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_list(
    language: str, load: Callable[[str], object], origin: str, file: BinaryIO
) -> Iterator[PlacedRow]:
    """A file that is read whole: a list of objects."""
    try:
        rows = load("".join(read_lines(origin, file)))
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{origin}: not {language}: {one_line(error)}") from None
    except RecursionError:
        raise UsageError(f"{origin}: not {language}: nested too deeply") from None
    except (LookupError, AttributeError, TypeError):
        reason = "a value that its tag does not fit, or a name that is no text"
        raise UsageError(f"{origin}: not {language}: {reason}") from None
    if not isinstance(rows, list):
        names = f" with {', '.join(map(str, rows))[:80]}" if isinstance(rows, dict) else ""
        raise UsageError(
            f"{origin}: expected a list of objects, found {type(rows).__name__}{names}"
        )
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
