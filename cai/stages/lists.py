"""What `build` and `probe` share: lists that a model writes, and what becomes of their entries."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cai.data.parquet import Row, write_rows


@dataclass
class ListTally:
    """The lists that were asked for, and the requests that failed."""

    lists: int = 0
    unread: int = 0  # of them without an entry
    parsed: int = 0  # entries that were read
    failed: list[Row] = field(default_factory=list)


def write_left_out(work: Path, left_out: list[dict[str, str]]) -> dict[str, int]:
    """Writes work/left_out.parquet where an entry was left out. Returns how many, by reason."""
    (work / "left_out.parquet").unlink(missing_ok=True)  # of an earlier try that was stopped
    if left_out:
        write_rows(work / "left_out.parquet", [*left_out])
    return dict(sorted(Counter(row["reason"] for row in left_out).items()))
