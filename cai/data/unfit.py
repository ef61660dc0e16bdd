"""Rows that do not fit their format: how many, and why the first of them do not."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from cai.errors import CaiError
from cai.observe.log import say

EXAMPLES = 3  # rows that do not fit, of each data set


@dataclass
class UnfitRows:
    """Rows that did not fit: how many, and file, line and reason of each data set's first."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    # "set: field" -> rows that fit and hold something there that is not read
    ignored: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, reason: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{place}: {reason}")

    def add_all(self, name: str, unfit: "UnfitRows", ignored: Mapping[str, int]) -> None:
        """Adds those of the set `name`, and says what they are and what is not read of others."""
        self.count += unfit.count
        self.examples += unfit.examples
        self.ignored |= {f"{name}: {field}": count for field, count in ignored.items()}
        if ignored:
            fields = ", ".join(f"{field} (in {count} rows)" for field, count in ignored.items())
            say(f"data.{name}: not read, so what they mean is lost: {fields}", logging.WARNING)
        if unfit.count:
            lines = "\n  ".join(unfit.examples)
            say(
                f"data.{name}: left out {unfit.count} rows that do not fit, first\n  {lines}",
                logging.WARNING,
            )


def leave_out(place: str, error: Exception, unfit: UnfitRows, strict: str | None) -> None:
    """Raises CaiError where `strict` names a set that no row may be left out of."""
    if strict:
        reason = f"{_reason(error)}; mend the row, or set data.{strict}.strict=false"
        raise CaiError(f"{place}: {reason}") from None
    unfit.add(place, _reason(error))


def _reason(error: Exception) -> str:
    """Why a row does not fit. Only a ValueError is worded for people."""
    if isinstance(error, KeyError):
        return f"no column {error}"
    return str(error) if type(error) is ValueError else "no known layout has values of its kinds"
