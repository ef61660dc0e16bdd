"""Preference pairs from AI feedback (Bai et al. 2022, section 4.1) or from rules, pure: no disk, no torch."""

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations, product
from typing import NamedTuple, TypeVar

from cai.config.schema import LabelConfig
from cai.digest import seed_of
from cai.engines.base import Completion, Request
from cai.engines.rows import gather_rows
from cai.messages import Prompt
from cai.method.constitution import Constitution, Principle
from cai.method.refusal import redirects, refuses
from cai.method.requests import OPTIONS, comparison_request, thought_request
from cai.text import repeats, words

T = TypeVar("T")

Ask = Callable[[Request], Awaitable[Completion]]

Logprobs = tuple[tuple[float, ...], ...]  # of (A) and of (B), for each chain of thought, or once


@dataclass(frozen=True)
class Judgement:
    """Two answers compared under one principle, in both orders."""

    principle_id: str
    orders: tuple[
        float, float
    ]  # probability of the first answer, with it shown as (A), and with it shown as (B)
    logprobs: tuple[Logprobs, Logprobs]  # as the judge gave them, in these two orders

    @property
    def flipped(self) -> bool:
        """Whether the preference turned with the order: position bias."""
        return (self.orders[0] > 0.5) != (self.orders[1] > 0.5)


@dataclass(frozen=True)
class PreferencePair:
    """`probability` in [0.5, 1]: that `chosen` is the better answer, averaged over principles and both orders."""

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float
    principle_ids: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()  # of AI feedback alone
    seeds: tuple[int, ...] = ()  # that chosen and rejected were sampled with
    kind: str = "feedback"  # or: revision, rule, human, demonstration

    @property
    def orders(self) -> tuple[float, ...]:
        """The principles' mean of `Judgement.orders`."""
        count = len(self.judgements)
        return (
            tuple(sum(one.orders[i] for one in self.judgements) / count for i in (0, 1))
            if count
            else ()
        )


class Sampled(NamedTuple):
    """Of an answer."""

    seed: int
    ended: bool  # by itself, and not at max_new_tokens


async def compare(
    prompt: Prompt,
    first: str,
    second: str,
    constitution: Constitution,
    config: LabelConfig,
    seed: int,
    judge: Ask,
) -> PreferencePair | None:
    """Asks the judge in both orders under principles drawn for the prompt. None: too long for the judge's context."""
    rng = random.Random(seed_of(seed, prompt.id, "comparison"))  # noqa: S311 - a draw, not a secret
    principles = _drawn(constitution, config.principles, rng)
    orders = ((first, second), (second, first))
    given = await gather_rows(
        [_ask(prompt, o, p, config, seed, judge) for p in principles for o in orders]
    )
    judgements = []
    for principle, as_a, as_b in zip(principles, given[::2], given[1::2], strict=True):
        if as_a is None or as_b is None:
            return None
        both = (_mean_probability(as_a, config), 1 - _mean_probability(as_b, config))
        judgements.append(Judgement(principle.id, both, (as_a, as_b)))
    probability = sum(sum(one.orders) / 2 for one in judgements) / len(judgements)
    ids = tuple(principle.id for principle in principles)
    if probability >= 0.5:
        return PreferencePair(prompt, first, second, probability, ids, tuple(judgements))
    return PreferencePair(prompt, second, first, 1 - probability, ids, tuple(judgements))


def _drawn(constitution: Constitution, count: int, rng: random.Random) -> list[Principle]:
    """Different principles by weight, all of them where there are fewer than `count`."""
    left = [principle for principle in constitution.principles if principle.weight > 0]
    drawn = []
    while left and len(drawn) < count:
        drawn.append(rng.choices(left, [principle.weight for principle in left])[0])
        left.remove(drawn[-1])
    return drawn


async def _ask(
    prompt: Prompt,
    shown: tuple[str, str],
    principle: Principle,
    config: LabelConfig,
    seed: int,
    judge: Ask,
) -> Logprobs | None:
    """Log-probabilities of (A) and (B), after each sampled chain of thought or at once. None: too long."""
    thoughts: list[str | None] = [None]
    if config.thoughts:
        asked = thought_request(prompt.messages, *shown, principle)
        seeds = [seed_of(seed, prompt.id, "thought", number) for number in range(config.thoughts)]
        said = await gather_rows(
            [
                _complete(judge, Request(asked, config.thought, one, principle=principle.id))
                for one in seeds
            ]
        )
        if any(one.finish_reason == "too_long" for one in said):
            return None
        thoughts = [one.text for one in said]
    requests = [
        Request(
            comparison_request(prompt.messages, *shown, principle, thought),
            continuations=OPTIONS,
            principle=principle.id,
        )
        for thought in thoughts
    ]
    found = await gather_rows([_complete(judge, request) for request in requests])
    return (
        None
        if any(one.finish_reason == "too_long" for one in found)
        else tuple(one.logprobs for one in found)
    )


async def _complete(judge: Ask, request: Request) -> Completion:
    return await judge(request)


def _mean_probability(logprobs: Logprobs, config: LabelConfig) -> float:
    """Of (A), over the chains of thought. Those are far too sure of themselves, hence the clamp (section 4.1)."""
    high = config.thought_clamp if config.thoughts else 1.0
    return sum(min(high, max(1 - high, option_probability(a, b))) for a, b in logprobs) / len(
        logprobs
    )


def option_probability(a: float, b: float) -> float:
    """The normalised probability of the first option from two log-probabilities: 1 / (1 + exp(b - a))."""
    difference = max(-700.0, min(700.0, b - a))
    return 1 / (1 + math.exp(difference))


async def tournament(
    prompt: Prompt,
    answers: Mapping[str, int],
    constitution: Constitution,
    config: LabelConfig,
    seed: int,
    judge: Ask,
) -> list[PreferencePair]:
    """Every two of `answers` (text -> its seed) compared; [] where one is too long for the judge.

    The first pair is of the answers with the best and the worst mean probability.
    """
    asked = [
        compare(prompt, a, b, constitution, config, seed, judge)
        for a, b in combinations(answers, 2)
    ]
    found = [pair for pair in await gather_rows(asked) if pair is not None]
    if len(found) < len(asked):
        return []
    won = dict.fromkeys(answers, 0.0)
    for pair in found:
        won[pair.chosen] += pair.probability
        won[pair.rejected] += 1 - pair.probability
    ends = {max(won, key=won.__getitem__), min(reversed(won), key=won.__getitem__)}
    found = [replace(pair, seeds=(answers[pair.chosen], answers[pair.rejected])) for pair in found]
    return sorted(found, key=lambda pair: {pair.chosen, pair.rejected} != ends)


def similar(one: str, other: str, most: float) -> bool:
    """Whether two texts share at least `most` of their words, in order (Ratcliff and Obershelp's ratio)."""
    a, b = words(one), words(other)
    return one == other or (
        bool(a or b) and SequenceMatcher(None, a, b, autojunk=False).ratio() >= most
    )


def distinct(answers: Sequence[tuple[str, T]], most: float) -> dict[str, T]:
    """(text, what belongs to it) as a mapping, without empty texts and without those similar to an earlier one."""
    kept: dict[str, T] = {}
    for text, its in answers:
        if text and not any(similar(text, other, most) for other in kept):
            kept[text] = its
    return kept


def by_rule(prompt: Prompt, answers: Mapping[str, Sampled], benign: bool) -> PreferencePair | str:
    """Two answers that a rule tells apart, or why there is no such pair: "all_good" or "none_good".

    It is good to decline a harmful prompt or to object to it, and not to decline a benign one (as rule-based rewards,
    Mu et al. 2024). An answer without words, or in circles, is no part of a pair; one that was cut off is not chosen.
    """
    sound = [text for text in answers if words(text) and not repeats(text)]
    right = [
        text
        for text in sound
        if (not refuses(text) if benign else refuses(text) or redirects(text))
    ]
    good, bad = (
        [text for text in right if answers[text].ended],
        [text for text in sound if text not in right],
    )
    if not good or not bad:
        return "all_good" if good else "none_good"
    # refusals are short: any other choice would teach length, the confounder of preference data (Singhal et al. 2023)
    chosen, rejected = min(
        product(good, bad), key=lambda two: abs(len(words(two[0])) - len(words(two[1])))
    )
    seeds = (answers[chosen].seed, answers[rejected].seed)
    return PreferencePair(prompt, chosen, rejected, 1.0, (), seeds=seeds, kind="rule")


def mixed(
    feedback: Sequence[PreferencePair],
    revisions: Sequence[PreferencePair],
    config: LabelConfig,
    seed: int,
) -> list[PreferencePair]:
    """As many pairs of both kinds as there are at `config.ratio` (the revisions' share), in a random order."""
    size = int(min(len(feedback) / (1 - config.ratio), len(revisions) / config.ratio))
    size = min(size, config.limit or size)
    late = min(len(revisions), round(size * config.ratio))
    return ordered([*revisions[:late], *feedback[: size - late]], seed)


def ordered(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    """In a random order that depends on `seed` and the prompts alone; a prompt's pairs of one kind stay together."""
    return sorted(pairs, key=lambda pair: seed_of(seed, pair.prompt.id, pair.kind, "mixed"))
