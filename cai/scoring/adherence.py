"""How often models keep each principle, says a judge. adherence_rates.py measures it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import TypeAdapter

from cai.digest import JsonObject
from cai.scoring.statistics import Estimate, ModelComparison


@dataclass(frozen=True)
class Reliability:
    """Of a judge: the share of prompts where its verdict turns with the order of the options, and
    of questions where it wants to write neither letter; the mean probability of both letters."""

    flipped: Estimate
    neither: Estimate
    letters: float
    doubt: str  # why it can't be relied on, in a few words; "" where neither share says so


@dataclass(frozen=True)
class AdherenceRates:
    """How often each model keeps one principle, or those of a group."""

    name: str  # the principle's id, or the group
    prompts: int
    rates: dict[str, Estimate]  # by model
    judge: Reliability
    agreement: Estimate | None  # share of people's verdicts that are the judge's too
    # each trained model against the one before, and the last against the first
    changes: Sequence[ModelComparison]


@dataclass(frozen=True)
class Adherence:
    """What `evaluate.adherence` has measured."""

    judge: str  # its name
    judges_itself: list[str]  # the models that are the judge itself
    unjudged: int  # answers that were too long for the judge, or failed
    reliability: Reliability | None  # None: no answer was judged
    agreement: Estimate | None  # with people, over all principles
    principles: list[AdherenceRates]
    groups: list[AdherenceRates]
    routed: list[str]  # principles measured on the suites' prompts, which share words with them
    unmeasured: list[str]  # principles without a prompt
    warnings: list[str]  # in sentences

    @classmethod
    def of(cls, summary: JsonObject) -> Self | None:
        """Out of the summary that a manifest of `evaluate` keeps; None where nothing is there."""
        fields = summary.get("adherence")
        return TypeAdapter(cls).validate_python(fields) if fields else None
