"""Rows as Parquet files, with the same bytes for the same rows."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from cai.text import well_formed

Row = dict[str, Any]  # column -> a value of any JSON type

CHUNK = 2_000  # rows that RowWriter holds in memory


def write_rows(path: Path, rows: list[Row]) -> None:
    """Lone surrogates, which UTF-8 has no place for, become U+FFFD."""
    table = pyarrow.Table.from_pylist([_well_formed_row(row) for row in rows])
    parquet.write_table(table, path, compression="zstd")


class RowWriter:
    """As write_rows, with a schema, for rows that come one by one."""

    def __init__(self, path: Path, schema: pyarrow.Schema):
        self.count = 0
        self._schema = schema
        self._rows: list[Row] = []
        self._file = parquet.ParquetWriter(path, schema, compression="zstd")

    def __enter__(self) -> "RowWriter":
        return self

    def write(self, row: Row) -> None:
        self.count += 1
        self._rows.append(_well_formed_row(row))
        if len(self._rows) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    return parquet.read_table(path).to_pylist()


def _well_formed_row(row: Row) -> Row:
    return {column: _without_surrogates(value) for column, value in row.items()}


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {key: _without_surrogates(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(entry) for entry in value]
    return value
