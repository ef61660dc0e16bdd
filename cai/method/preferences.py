"""Preference pairs from AI feedback (Bai et al. 2022, section 4.1) or from rules.

Notation
    chosen, rejected    two answers to one prompt; chosen is the better one
    probability         that chosen is the better one, in [0.5, 1]: a soft label
    orders, letters     of the judge: see judgement.py
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations, product
from typing import NamedTuple, TypeVar

from cai.digest import seed_of
from cai.engines.rows import gather_rows
from cai.language import is_english
from cai.messages import Prompt
from cai.method.constitution import Constitution
from cai.method.judgement import Judgement, JudgeSettings, judge_answers
from cai.method.principle import draw_principles
from cai.method.refusal import redirects, refuses
from cai.method.requests import Complete
from cai.text import repeats, words

T = TypeVar("T")


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to a prompt, and how sure it is that `chosen` is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float  # averaged over principles and both orders
    principle_ids: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()  # of AI feedback alone
    seeds: tuple[int, ...] = ()  # that chosen and rejected were sampled with
    ended: tuple[bool, bool] = (True, True)  # whether chosen and rejected did, before their limit
    kind: str = "feedback"  # or: contrast, revision, rule, human, demonstration
    log_ratio: float | None = None  # nats, of a contrast (cai/method/contrast.py)

    @property
    def orders(self) -> tuple[float, ...]:
        """`Judgement.orders`, averaged over the principles."""
        return _mean_by_order([judgement.orders for judgement in self.judgements])

    @property
    def letters(self) -> tuple[float, ...]:
        """`Judgement.letters`, averaged over the principles."""
        return _mean_by_order([judgement.letters for judgement in self.judgements])


def _mean_by_order(probabilities: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(math.fsum(order) / len(order) for order in zip(*probabilities, strict=True))


class SampledAnswer(NamedTuple):
    """How an answer was sampled."""

    seed: int
    ended: bool  # by itself, not at max_new_tokens


async def compare(
    prompt: Prompt,
    first: str,
    second: str,
    constitution: Constitution,
    settings: JudgeSettings,
    seed: int,
    judge: Complete,
) -> PreferencePair | None:
    """Asks the judge in both orders, under principles drawn for the prompt.

    Returns None where a request is too long for the judge's context.
    """
    rng = random.Random(seed_of(seed, prompt.id, "comparison"))  # noqa: S311 - a draw, not a secret
    about = constitution.about(prompt)
    principles = draw_principles(constitution.principles, settings.principles, rng, about)
    judgements = await judge_answers(prompt, first, second, principles, settings, seed, judge)
    if judgements is None:
        return None
    probability = sum(sum(judgement.orders) / 2 for judgement in judgements) / len(judgements)
    chosen, rejected = first, second
    if probability < 0.5:
        chosen, rejected, probability = second, first, 1 - probability
    ids = tuple(principle.id for principle in principles)
    return PreferencePair(prompt, chosen, rejected, probability, ids, tuple(judgements))


async def tournament(
    prompt: Prompt,
    answers: Mapping[str, SampledAnswer],
    constitution: Constitution,
    settings: JudgeSettings,
    seed: int,
    judge: Complete,
) -> list[PreferencePair]:
    """Every two of `answers` compared; [] where one is too long for the judge.

    The first pair is of the answers with the best and the worst mean probability.
    """
    comparisons = [
        compare(prompt, first, second, constitution, settings, seed, judge)
        for first, second in combinations(answers, 2)
    ]
    scores = dict.fromkeys(answers, 0.0)
    pairs = []
    for pair in await gather_rows(comparisons):
        if pair is None:
            return []
        scores[pair.chosen] += pair.probability
        scores[pair.rejected] += 1 - pair.probability
        pairs.append(with_origins(pair, answers))
    # of equal scores, the first answer is the best and the last the worst
    best = max(scores, key=scores.__getitem__)
    worst = min(reversed(scores), key=scores.__getitem__)
    return sorted(pairs, key=lambda pair: {pair.chosen, pair.rejected} != {best, worst})


def similar(first: str, second: str, threshold: float) -> bool:
    """Whether texts share `threshold` of their words, in order (Ratcliff and Obershelp's ratio)."""
    first_words, second_words = words(first), words(second)
    if first == second or not (first_words or second_words):
        return first == second
    return SequenceMatcher(None, first_words, second_words, autojunk=False).ratio() >= threshold


def distinct_answers(answers: Sequence[tuple[str, T]], threshold: float) -> dict[str, T]:
    """(text, its value) as a mapping, without empty texts and those similar to an earlier one."""
    distinct: dict[str, T] = {}
    for text, value in answers:
        if text and not any(similar(text, earlier, threshold) for earlier in distinct):
            distinct[text] = value
    return distinct


def rule_pair(
    prompt: Prompt, answers: Mapping[str, SampledAnswer], benign: bool
) -> PreferencePair | str:
    """Two answers that rules tell apart, or why not: "all_good", "none_good" or "unread".

    A good answer declines a harmful prompt or objects to it, and does not decline a benign one (as
    the rule-based rewards of Mu et al. 2024). An answer without words, or in circles, is no part
    of a pair; one that was cut off is chosen only where no good one has ended (its end is not
    trained). Answers that are not in English are in no pair, since the rules can't read them;
    where such leave no pair, that is the reason ("unread").
    """

    def good(text: str) -> bool:
        return not refuses(text) if benign else refuses(text) or redirects(text)

    sound = [text for text in answers if words(text) and not repeats(text)]
    usable = [text for text in sound if is_english(text)]
    good_answers = [text for text in usable if good(text)]
    good_answers = [text for text in good_answers if answers[text].ended] or good_answers
    bad_answers = [text for text in usable if not good(text)]
    if not good_answers or not bad_answers:
        if len(usable) < len(sound):
            return "unread"
        return "all_good" if good_answers else "none_good"

    def length_gap(pair: tuple[str, str]) -> int:
        return abs(len(words(pair[0])) - len(words(pair[1])))

    # Refusals are short. Pairs of other lengths would teach length, which confounds preference
    # data (Singhal et al. 2023).
    chosen, rejected = min(product(good_answers, bad_answers), key=length_gap)
    pair = PreferencePair(prompt, chosen, rejected, 1.0, (), kind="rule")
    return with_origins(pair, answers)


def with_origins(pair: PreferencePair, answers: Mapping[str, SampledAnswer]) -> PreferencePair:
    """The pair with how its answers were sampled. `answers`: text -> that, of the sampled ones."""
    sides = (pair.chosen, pair.rejected)
    seeds = tuple(answers[text].seed for text in sides if text in answers)
    chosen_ended, rejected_ended = (text not in answers or answers[text].ended for text in sides)
    return replace(pair, seeds=seeds, ended=(chosen_ended, rejected_ended))


def mix_pairs(
    first: Sequence[PreferencePair],
    second: Sequence[PreferencePair],
    ratio: float,
    limit: int | None,
    seed: int,
) -> list[PreferencePair]:
    """As many pairs of both as there are at `ratio`, the share of `second`; shuffled."""
    count = int(min(len(first) / (1 - ratio), len(second) / ratio))
    count = min(count, limit or count)
    second_count = min(len(second), round(count * ratio))
    return shuffle_pairs([*second[:second_count], *first[: count - second_count]], seed)


def shuffle_pairs(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    """A random order that depends on `seed` and the prompts alone.

    A prompt's pairs of one kind stay together.
    """
    return sorted(pairs, key=lambda pair: seed_of(seed, pair.prompt.id, pair.kind, "mixed"))
