"""What a finished stage did, in plain texts that the stage writes, for terminal, page and cards.

A stage's `Summary` (in cai/stages/) makes a StageView; whoever shows it knows no key of any
summary.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NUMBER = re.compile(r"[-+]?\d[\d\u202f.,]*( %.*)?")


@dataclass(frozen=True)
class Table:
    """A small table of texts. Every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers; the first is a name."""
        columns = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        return tuple(
            place > 0 and any(cells) and all(NUMBER.fullmatch(cell) for cell in cells if cell)
            for place, cells in enumerate(columns)
        )


@dataclass(frozen=True)
class StageView:
    """One finished stage, in words."""

    name: str  # e.g. label2
    description: str  # what it did, without a subject: "tuned the starting model on instructions"
    counts: str  # the main counts in a line: "8 pairs, 4 steps"
    lines: tuple[tuple[str, str], ...]  # (what, how much), in the order in which they are shown
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()  # what went wrong, or can't be relied on, in sentences
    notes: tuple[str, ...] = ()  # what else a reader has to know before trusting it
    lengths: Mapping[str, int] = field(default_factory=dict)  # training rows by tokens
    dataset: str = ""  # what its rows are, for a data card; "" of stages that make no data
