"""All records of a run, page by page, by search and filters."""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from cai.report.page import records
from cai.review.tables import Row, Source, Table, pc, searchable
from cai.store.manifest import verify_files
from cai.store.run_folder import Run

RecordKind = Literal["revisions", "pairs", "answers"]

PAGE = 25  # records


class Shape(NamedTuple):
    """Where the records of a kind lie, what is read of them, and what they can be filtered by."""

    stage: str
    file: str
    columns: tuple[str, ...]
    facets: Mapping[str, str]  # a filter -> the path of its values
    together: tuple[str, ...] = ()  # rows with the same values here are one record


SHAPES: dict[RecordKind, Shape] = {
    "revisions": Shape(
        "revise",
        "revisions.parquet",
        ("id", "source", "prompt", "answer", "steps"),
        {"principle": "steps.principle", "gate": "steps.gates"},
    ),
    "pairs": Shape(
        "label",
        "pairs.parquet",
        ("id", "kind", "prompt", "chosen", "rejected", "probability", "orders", "principles"),
        {"principle": "principles", "origin": "kind", "stage": "stage"},
    ),
    "answers": Shape(
        "evaluate",
        "answers.parquet",
        ("id", "suite", "model", "sample", "prompt", "answer", "refuses", "reference"),
        {"suite": "suite", "model": "model"},
        ("suite", "id"),
    ),
}
# what rows of an earlier version may lack
DEFAULTS: dict[RecordKind, Row] = {
    "revisions": {},
    "pairs": {"kind": "feedback", "probability": 1.0, "orders": [], "principles": []},
    "answers": {"reference": None, "refuses": False},
}


def sources(run: Run, kind: RecordKind) -> list[Source]:
    """The files with the records of a kind, of the stages that have finished, in order.

    Raises Damaged where one is not as it was written.
    """
    shape = SHAPES[kind]
    files = []
    for link in sorted((run.root / "latest").glob(f"{shape.stage}*"), key=_round):
        stage = link.name
        if stage.rstrip("0123456789") == shape.stage and (manifest := run.latest(stage)):
            folder = run.folder(stage, manifest.key)
            if shape.file in manifest.files:
                verify_files(folder, manifest)
                files.append(Source(stage, folder / "out" / shape.file))
    return files


def _round(link: Path) -> int:
    return int(link.name.strip("abcdefghijklmnopqrstuvwxyz_") or 1)


class Records:
    """The records of one kind. The first use reads all of them; more may use it at once."""

    def __init__(self, kind: RecordKind, files: Sequence[Source]):
        self.kind: RecordKind = kind
        self.shape = SHAPES[kind]
        self.table = Table(files, self.shape.columns)
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return int(self._groups[-1]) if len(self.table) else 0

    @cached_property
    def _groups(self) -> np.ndarray:
        """The record that each row belongs to, and behind these the number of records."""
        rows = len(self.table)
        if not self.shape.together:
            return np.arange(rows + 1)
        columns = [self.table.values(name)[0] for name in self.shape.together]
        keys = pc.binary_join_element_wise(*columns, "\n")
        encoded = keys.combine_chunks().dictionary_encode()
        return np.append(encoded.indices.to_numpy(), len(encoded.dictionary))

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows, record by record, and where each record begins among them."""
        groups = self._groups[:-1]
        order = np.argsort(groups, kind="stable")
        return order, np.searchsorted(groups[order], np.arange(self.count + 1))

    @cached_property
    def _texts(self) -> pa.ChunkedArray:
        return pa.chunked_array([searchable(batch) for batch in self.table.batches])

    @cached_property
    def _values(self) -> dict[str, tuple[pa.ChunkedArray, np.ndarray]]:
        return {name: self.table.values(path) for name, path in self.shape.facets.items()}

    @cached_property
    def facets(self) -> dict[str, list[str]]:
        """For each filter the values that it may ask for."""
        return {
            name: sorted(value for value in values.unique().to_pylist() if value is not None)
            for name, (values, _) in self._values.items()
        }

    def page(self, query: str, filters: Mapping[str, str], start: int) -> tuple[int, list[Row]]:
        """How many records fit, and PAGE of them from the number `start`, as the page shows them.

        A record fits where one of its rows has every value of `filters` and, in any case, the
        text `query`.
        """
        if not len(self.table):
            return 0, []
        with self._lock:  # what is computed once must not be computed by two requests
            fitting = np.ones(len(self.table), dtype=bool)
            if query:
                matches = pc.match_substring(self._texts, query.lower())
                fitting &= matches.to_numpy(zero_copy_only=False)
            for name, value in filters.items():
                values, rows = self._values[name]
                has_value = np.zeros(len(self.table), dtype=bool)
                equal = pc.fill_null(pc.equal(values, value), False)
                has_value[rows[equal.to_numpy(zero_copy_only=False)]] = True
                fitting &= has_value
            numbers = np.unique(self._groups[:-1][fitting])
            order, starts = self._order
        rows = [
            self._row(int(row))
            for number in numbers[start : start + PAGE]
            for row in order[starts[number] : starts[number + 1]]
        ]
        of_kind: dict[str, list[Row]] = {"revisions": [], "pairs": [], "answers": []}
        of_kind[self.kind] = rows
        page, _ = records(of_kind["revisions"], of_kind["pairs"], of_kind["answers"], PAGE)
        return len(numbers), page[self.kind]

    def _row(self, number: int) -> Row:
        row = DEFAULTS[self.kind] | self.table.row(number)
        if row.get("sample"):  # each of several answers of a model is shown
            row["model"] += f", answer {row['sample'] + 1}"
        return row
