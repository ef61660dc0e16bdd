"""Rows as Parquet files, with the same bytes for the same rows."""

from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Parquet, with the same bytes for the same rows. Lone surrogates, which UTF-8 has no place for, become U+FFFD."""
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(
        pyarrow.Table.from_pylist([_clean(row) for row in rows]), path, compression="zstd"
    )


class RowWriter:
    """As write_rows, of `schema`, for rows that come one by one: CHUNK of them are in memory."""

    CHUNK = 2_000

    def __init__(self, path: Path, schema: Any):
        import pyarrow.parquet as parquet

        self.count = 0
        self._schema, self._rows = schema, []
        self._file = parquet.ParquetWriter(path, schema, compression="zstd")

    def __enter__(self) -> "RowWriter":
        return self

    def write(self, row: dict[str, Any]) -> None:
        self.count += 1
        self._rows.append(_clean(row))
        if len(self._rows) == self.CHUNK:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._file.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value
