"""What `revise` and `compare` return."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow
from datasets import Dataset

from cai.data.parquet import Row
from cai.messages import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """A row that has no result."""

    prompt: Prompt
    reason: str


class Results(list[T]):
    """The results in the order of the rows that were given.

    Rows that failed stand in `failed` alone. There is none, unless the engine's `max_failures`
    allows it: one failure raises.
    """

    def __init__(
        self,
        results: Iterable[T],
        failed: Sequence[Failed],
        as_row: Callable[[T], Row],
        schema: pyarrow.Schema | None = None,
    ):
        super().__init__(results)
        self.failed = list(failed)
        self._as_row, self._schema = as_row, schema

    def to_dataset(self) -> Dataset:
        """As rows with the columns that a run's own files have (docs/run-folder.md)."""
        rows = [self._as_row(result) for result in self]
        return Dataset(pyarrow.Table.from_pylist(rows, self._schema))
