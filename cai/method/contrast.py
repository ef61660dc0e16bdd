"""Preferences by contrast: how much likelier a principle makes an answer (Liu et al. 2024, DLMA).

A judge too small to read two answers and name the better one still knows what it would say itself.
An answer's score is log p(answer | positive, prompt) - log p(answer | negative, prompt), where the
principle's `positive` and `negative` texts are system messages (arXiv 2402.11907, equation 4).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from cai.digest import seed_of
from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.errors import UsageError
from cai.messages import Prompt, under_system
from cai.method.constitution import Constitution
from cai.method.judgement import option_probability
from cai.method.preferences import PreferencePair
from cai.method.principle import Principle, draw_principles
from cai.method.requests import Complete
from cai.text import word_count


@dataclass(frozen=True)
class ContrastPair:
    """Two answers to a prompt. `log_ratio`: how far the first one's score is above the second's."""

    prompt: Prompt
    first: str
    second: str
    log_ratio: float  # nats, the mean over the principles
    principle_ids: tuple[str, ...]

    def preference(self, tau: float) -> PreferencePair:
        """The likelier answer is chosen, with the probability sigmoid(|log_ratio| / tau)."""
        chosen, rejected = self.first, self.second
        if self.log_ratio < 0:
            chosen, rejected = rejected, chosen
        return PreferencePair(
            self.prompt,
            chosen,
            rejected,
            option_probability(abs(self.log_ratio) / tau, 0.0),
            self.principle_ids,
            kind="contrast",
            log_ratio=abs(self.log_ratio),
        )


async def contrast(
    prompt: Prompt,
    answers: Sequence[str],
    constitution: Constitution,
    principles: int,
    seed: int,
    judge: Complete,
) -> list[ContrastPair] | None:
    """Every two of the answers, under `principles` drawn for the prompt.

    Returns None where a request is too long for the judge's context.
    """
    rng = random.Random(seed_of(seed, prompt.id, "contrast"))  # noqa: S311 - a draw, not a secret
    about = constitution.about(prompt)
    drawn_principles = draw_principles(constitution.contrasting(), principles, rng, about)
    rows = [_scores(prompt, answers, principle, judge) for principle in drawn_principles]
    scored = await gather_rows(rows)
    by_principle = [scores for scores in scored if scores is not None]
    if len(by_principle) < len(drawn_principles):
        return None
    means = [
        math.fsum(scores) / len(drawn_principles) for scores in zip(*by_principle, strict=True)
    ]
    score = dict(zip(answers, means, strict=True))
    ids = tuple(principle.id for principle in drawn_principles)
    return [
        ContrastPair(prompt, first, second, score[first] - score[second], ids)
        for first, second in combinations(answers, 2)
    ]


async def _scores(
    prompt: Prompt, answers: Sequence[str], principle: Principle, judge: Complete
) -> list[float] | None:
    """Each answer's score. None: too long."""
    requests = [
        Request(
            under_system(prompt.messages, text),
            continuations=tuple(answers),
            principle=principle.id,
        )
        for text in (principle.positive, principle.negative)
    ]
    positive, negative = await gather_rows([judge(request) for request in requests])
    if "too_long" in (positive.finish_reason, negative.finish_reason):
        return None
    return [a - b for a, b in zip(positive.logprobs, negative.logprobs, strict=True)]


def contrast_laws(constitution: str, benign: str | None) -> tuple[Constitution, Constitution]:
    """What answers to harmful prompts are scored under, and those to harmless ones.

    Raises UsageError where no principle has the texts that a contrast needs.
    """
    law = _load_contrasting(constitution, "constitution")
    if benign is None:
        return law, law
    return law, _load_contrasting(benign, "label.benign.constitution")


def _load_contrasting(name: str, setting: str) -> Constitution:
    law = Constitution.load(name)
    if not law.contrasting():
        raise UsageError(
            f"{setting}={name}: label.kind=contrast needs a principle with a 'positive' and a "
            "'negative' text (two system messages), and this file has none; see docs/preferences.md"
        )
    return law


def nearest_in_length(pairs: Sequence[ContrastPair]) -> ContrastPair:
    """Of the surer half of a prompt's pairs, the one whose answers are nearest in length.

    A log-ratio is a sum over tokens. Pairs of unlike lengths would teach length (Singhal et al.
    2023).
    """
    surer = sorted(pairs, key=lambda pair: -abs(pair.log_ratio))[: math.ceil(len(pairs) / 2)]
    return min(surer, key=lambda pair: abs(word_count(pair.first) - word_count(pair.second)))


def surest(pairs: Sequence[ContrastPair], count: int) -> list[ContrastPair]:
    """The `count` pairs with the largest log-ratios, in the order in which they come."""
    places = sorted(range(len(pairs)), key=lambda place: -abs(pairs[place].log_ratio))[:count]
    return [pairs[place] for place in sorted(places)]
