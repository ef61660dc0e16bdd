"""What a finished stage did, as the terminal, the page and the cards show it: plain texts that a stage has written.

A stage's `Summary` (in cai/stages/) makes a StageView; whoever shows it knows no key of any summary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A small table of texts. Every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    topic: str = ""  # the page's section that it belongs to: training, principles or judge
    note: str = ""  # a sentence below the title


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
    lengths: Mapping[str, int] = field(default_factory=dict)  # training rows by tokens: "8" -> rows of 5 to 8
