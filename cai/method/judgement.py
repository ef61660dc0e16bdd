"""How a judge compares two answers: by a principle, in both orders (Bai et al. 2022, section 4.1).

Notation
    principle           asks the judge which of two answers is better
    orders              the two orders in which a judge sees the answers as options (A) and (B)
    logprobs            the judge's natural-log probabilities of the options (A) and (B)
    letters             the probability that the judge writes (A) or (B) at all: of both together
    thought             a chain of thought that the judge writes before it gives an option
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cai.config.schema import Sampling
from cai.digest import seed_of
from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.messages import Prompt
from cai.method.principle import Principle
from cai.method.requests import OPTIONS, Complete, comparison_request, thought_request

Logprobs = tuple[tuple[float, ...], ...]  # of (A) and (B), for each chain of thought, or once


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge compares two answers."""

    principles: int = 1  # drawn for each pair; their probabilities are averaged
    thoughts: int = 0  # chains of thought in each order; their probabilities are averaged
    thought: Sampling = field(default_factory=Sampling)  # how they are sampled
    thought_clamp: float = 0.6  # after a thought, probabilities stay in [1 - this, this]


@dataclass(frozen=True)
class Judgement:
    """Two answers compared under one principle, in both orders."""

    principle_id: str
    # probability of the first answer: with it shown as (A), and with it shown as (B)
    orders: tuple[float, float]
    logprobs: tuple[Logprobs, Logprobs]  # in the same two orders

    @property
    def flipped(self) -> bool:
        """Whether the preference turned with the order: position bias."""
        return (self.orders[0] > 0.5) != (self.orders[1] > 0.5)

    @property
    def letters(self) -> tuple[float, float]:
        """The probability of both options together, in the two orders, over the thoughts' mean."""
        return letter_probability(self.logprobs[0]), letter_probability(self.logprobs[1])


async def judge_answers(
    prompt: Prompt,
    first: str,
    second: str,
    principles: Sequence[Principle],
    settings: JudgeSettings,
    seed: int,
    judge: Complete,
) -> list[Judgement] | None:
    """One judgement by each principle. None where a request is too long for the judge's context."""
    requests = []
    for principle in principles:
        for options in ((first, second), (second, first)):
            requests.append(_option_logprobs(prompt, options, principle, settings, seed, judge))
    logprobs = await gather_rows(requests)
    judgements = []
    for principle, as_a, as_b in zip(principles, logprobs[::2], logprobs[1::2], strict=True):
        if as_a is None or as_b is None:
            return None
        orders = (_probability_of_a(as_a, settings), 1 - _probability_of_a(as_b, settings))
        judgements.append(Judgement(principle.id, orders, (as_a, as_b)))
    return judgements


async def _option_logprobs(
    prompt: Prompt,
    options: tuple[str, str],
    principle: Principle,
    settings: JudgeSettings,
    seed: int,
    judge: Complete,
) -> Logprobs | None:
    """Log-probabilities of (A) and (B), after each chain of thought or at once. None: too long."""
    thoughts: list[str | None] = [None]
    if settings.thoughts:
        messages = thought_request(prompt.messages, *options, principle)
        seeds = [seed_of(seed, prompt.id, "thought", n) for n in range(settings.thoughts)]
        requests = [Request(messages, settings.thought, s, principle=principle.id) for s in seeds]
        completions = await gather_rows([judge(request) for request in requests])
        if any(completion.finish_reason == "too_long" for completion in completions):
            return None
        thoughts = [completion.text for completion in completions]
    requests = []
    for thought in thoughts:
        messages = comparison_request(prompt.messages, *options, principle, thought)
        requests.append(Request(messages, continuations=OPTIONS, principle=principle.id))
    completions = await gather_rows([judge(request) for request in requests])
    if any(completion.finish_reason == "too_long" for completion in completions):
        return None
    return tuple(completion.logprobs for completion in completions)


def _probability_of_a(logprobs: Logprobs, settings: JudgeSettings) -> float:
    """The mean over the chains of thought.

    After a thought, judges are far too sure of themselves: hence the clamp (section 4.1).
    """
    high = settings.thought_clamp if settings.thoughts else 1.0
    probabilities = [option_probability(a, b) for a, b in logprobs]
    return sum(min(high, max(1 - high, p)) for p in probabilities) / len(probabilities)


def option_probability(a: float, b: float) -> float:
    """The normalised probability of the first of two options, from log-probabilities `a`, `b`."""
    difference = max(-700.0, min(700.0, b - a))
    return 1 / (1 + math.exp(difference))


def letter_probability(logprobs: Sequence[Sequence[float]]) -> float:
    """The probability of both options together: the mean over all pairs of log-probabilities."""
    # Where it is small, the judge wants to write something else.
    # Rounding, or a server's bound on an option that it does not list, may lift it above 1
    sums = [min(1.0, math.exp(min(a, 0.0)) + math.exp(min(b, 0.0))) for a, b in logprobs]
    return math.fsum(sums) / len(sums)
