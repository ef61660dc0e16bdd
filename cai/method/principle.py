"""One principle: the texts that a model is asked with, and worked examples of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.messages import Dialogue


@dataclass(frozen=True)
class Principle:
    """One principle, as three requests: critique the answer, revise it, compare two answers.

    And as two system messages, for the contrast of a model that keeps it and one that does not.
    """

    id: str
    critique: str
    revision: str
    comparison: str
    weight: float = 1.0  # relative chance to be drawn
    tags: tuple[str, ...] = ()
    positive: str = ""
    negative: str = ""
    sentence: str = ""  # what a person has written in place of these texts; no model sees it
    file: Path | None = None  # where it stands

    @property
    def statement(self) -> str:
        """What it says in the fewest words: its sentence, else its comparison."""
        return self.sentence or self.comparison

    @property
    def adherence_rule(self) -> str:
        """What a judge is told who says whether one answer keeps the principle.

        The critique request names the fault to look for; a comparison needs two answers.
        """
        if self.sentence:
            return f"The rule: {self.sentence}"
        return f"The rule is that this request finds no fault in an answer: {self.critique}"


@dataclass(frozen=True)
class Exemplar:
    """A worked example of one principle, for critique and revision."""

    principle: Principle
    dialogue: Dialogue
    critique: str
    revision: str


def draw_principles(
    among: Sequence[Principle],
    count: int,
    rng: random.Random,
    about: Sequence[Principle] = (),
) -> list[Principle]:
    """Different principles by weight, all of them where there are fewer than `count`.

    Those of them that the prompt is `about` come first, whatever they weigh.
    """
    principles = [principle for principle in about if principle in among]
    remaining = [p for p in among if p.weight > 0 and p not in principles]
    while remaining and len(principles) < count:
        weights = [principle.weight for principle in remaining]
        principles.append(rng.choices(remaining, weights)[0])
        remaining.remove(principles[-1])
    return principles
