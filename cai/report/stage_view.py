"""What a finished stage did, as the terminal, the page and the cards show it: plain texts that a stage has written.

A stage's `Summary` (in cai/stages/) makes a StageView; whoever shows it knows no key of any summary.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A small table of texts. Every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class StageView:
    """One finished stage, in words."""

    name: str  # e.g. label2
    description: str  # what it did, without a subject: "tuned the starting model on instructions"
    counts: str  # the main counts in a line: "8 pairs, 4 steps"
    lines: tuple[tuple[str, str], ...]  # (what, how much), in the order in which they are shown
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()  # what a reader has to know before trusting it
