"""What a stage reports when it is done, and the words in which it is shown."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from cai.errors import CaiError
from cai.report.stage_view import StageView, Table
from cai.store.manifest import Manifest


class Summary:
    """What a stage reports. Each stage has its own: a frozen dataclass of JSON types.

    The manifest keeps the fields. The terminal, the page and the cards show the words that the
    methods below make of them.
    """

    counted: ClassVar[tuple[str, ...]] = ()  # the fields that `counts` shows

    @classmethod
    def load(cls, manifest: Manifest) -> Self:
        """The summary that a manifest keeps. Raises CaiError: another version of cai wrote it."""
        try:
            return TypeAdapter(cls).validate_python(manifest.summary)
        except ValidationError as error:
            raise CaiError(
                f"the summary of {manifest.stage} ({manifest.key[:12]}) is of another version of "
                f"cai ({error.error_count()} fields differ); run the stage again"
            ) from None

    def description(self) -> str:
        """What the stage did, in a few words without a subject."""
        raise NotImplementedError

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much) pairs."""
        return []

    def tables(self) -> list[Table]:
        return []

    def warnings(self) -> list[str]:
        """What went wrong, or can't be relied on, in sentences."""
        return []

    def notes(self) -> list[str]:
        """What else a reader has to know before trusting the stage's output, in sentences."""
        return []

    def lengths(self) -> Mapping[str, int]:
        """Training rows by their number of tokens, in bins up to 2, 4, 8, ..."""
        return {}

    def dataset(self) -> str:
        """What the rows of the stage's output are, for a data card."""
        return ""

    def counts(self) -> str:
        return ", ".join(f"{getattr(self, name)} {name}" for name in self.counted)

    def view(self, name: str) -> StageView:
        return StageView(
            name=name,
            description=self.description(),
            counts=self.counts(),
            lines=tuple(self.lines()),
            tables=tuple(self.tables()),
            warnings=tuple(self.warnings()),
            notes=tuple(self.notes()),
            lengths=self.lengths(),
            dataset=self.dataset(),
        )


def number(value: float) -> str:
    """Thousands apart by a thin space; four significant digits of what is not whole."""
    return f"{value:.4g}" if value != int(value) else f"{value:,.0f}".replace(",", "\u202f")


def nonzero(*lines: tuple[str, float]) -> list[tuple[str, str]]:
    """Lines of a summary for those counts that are not 0."""
    return [(name, number(count)) for name, count in lines if count]


def attack_title(suite: str, attack: str) -> str:
    """What a suite under attack is called in tables."""
    return f"{suite}, {attack}"


def suite_title(suite: str, shots: int) -> str:
    """What a suite is called in tables, with so many examples before each prompt."""
    return f"{suite}, {shots} shot{'s' if shots > 1 else ''}" if shots else suite
