"""A stage's rows in memory: any row by its number, its texts to search, values to filter by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as parquet

from cai.data.parquet import Row

pc: Any = pyarrow.compute  # its functions are made when it is loaded, so no type is known

SEPARATOR = pa.scalar("\n", pa.large_string())  # of texts that are searched together


@dataclass(frozen=True)
class Source:
    """A file of a stage."""

    stage: str
    file: Path


class Table:
    """The rows of several files, one after the other, each with its stage.

    Files of an earlier version may lack columns: their rows lack them too.
    """

    def __init__(self, sources: Sequence[Source], columns: Sequence[str]):
        self.batches: list[pa.RecordBatch] = []
        for source in sources:
            with parquet.ParquetFile(source.file) as file:
                present = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=10_000, columns=present):
                    stages = pa.array([source.stage] * batch.num_rows)
                    self.batches.append(batch.append_column("stage", stages))
        sizes = [batch.num_rows for batch in self.batches]
        self.starts = np.cumsum([0, *sizes])  # the number of each batch's first row, and of rows

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, number: int) -> Row:
        place = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.batches[place].slice(number - int(self.starts[place]), 1).to_pylist()[0]

    def rows(self) -> Iterator[Row]:
        """Every row, few in memory at a time."""
        for batch in self.batches:
            yield from batch.to_pylist()

    def values(self, path: str) -> tuple[pa.ChunkedArray, np.ndarray]:
        """What stands at a path such as `steps.principle`, and the number of each value's row."""
        column, *fields = path.split(".")
        arrays, numbers = [], []
        for batch, start in zip(self.batches, self.starts, strict=False):
            if column in batch.schema.names:
                array, rows = _values(batch.column(column), fields)
                arrays.append(array)
                numbers.append(rows + start)
        if not arrays:
            return pa.chunked_array([], pa.string()), np.array([], dtype=np.int64)
        return pa.chunked_array(arrays), np.concatenate(numbers)


def _values(array: pa.Array, fields: Sequence[str]) -> tuple[pa.Array, np.ndarray]:
    rows = np.arange(len(array))
    remaining = list(fields)
    while True:
        if pa.types.is_list(array.type):
            rows = rows[pc.list_parent_indices(array).to_numpy()]
            array = pc.list_flatten(array)
        elif remaining:
            array = pc.struct_field(array, remaining.pop(0))
        else:
            return array, rows


def searchable(batch: pa.RecordBatch) -> pa.Array:
    """All texts of each row, in lower case, as one text."""
    texts = [text for column in batch.columns if (text := _texts(column)) is not None]
    return pc.utf8_lower(pc.binary_join_element_wise(*texts, SEPARATOR))


def _texts(array: pa.Array) -> pa.Array | None:
    """One text for each entry of an array; None of numbers."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.fill_null(array.cast(pa.large_string()), "")
    if pa.types.is_struct(kind):
        fields = [pc.struct_field(array, field.name) for field in kind if field.name != "role"]
        texts = [text for field in fields if (text := _texts(field)) is not None]
        return pc.binary_join_element_wise(*texts, SEPARATOR) if texts else None
    if pa.types.is_list(kind):
        inner = _texts(array.values)
        if inner is None:
            return None
        lists = pa.LargeListArray.from_arrays(array.offsets.cast(pa.int64()), inner)
        return pc.fill_null(pc.binary_join(lists, SEPARATOR), "")
    return None
