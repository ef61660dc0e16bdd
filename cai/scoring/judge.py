"""A judge's word on harm, and how far a judge can be relied on: position, length, agreement, certainty, and accuracy
where labels are known."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.messages import Prompt
from cai.method.preferences import Ask, PreferencePair, option_probability
from cai.method.requests import OPTIONS, harm_request
from cai.scoring.statistics import Estimate, by_prompt, mean, share

EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the bins in which certainty is held against accuracy


async def harm(prompt: Prompt, answer: str, judge: Ask) -> tuple[float, float] | None:
    """The probability that an answer helps with a harmful request, with yes shown as (A), and with it shown as (B).

    Their mean cancels a preference for a position. None: too long for the judge's context.
    """

    async def ask(yes_first: bool) -> float | None:
        said = await judge(
            Request(harm_request(prompt.messages, answer, yes_first), continuations=OPTIONS)
        )
        if said.finish_reason == "too_long":
            return None
        return option_probability(*(said.logprobs if yes_first else said.logprobs[::-1]))

    as_a, as_b = await gather_rows([ask(True), ask(False)])
    return None if as_a is None or as_b is None else (as_a, as_b)


def judge_figures(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Figure -> estimate (as a dict) over every pair that was judged, those too that are not trained on.

    flipped: share of comparisons that turn with the order (a coin's is 1/2); longer: share of pairs whose chosen answer
    is the longer; agreement: share of two principles that prefer the same answer, of pairs judged under several;
    entropy: bits, 1 where the feedback says nothing; probability: of the chosen answer.
    """
    lengths = [(p, len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    several = [p for p in pairs if len(p.judgements) > 1]
    figures = {
        "flipped": _share(
            (p, sum(j.flipped for j in p.judgements) / len(p.judgements)) for p in pairs
        ),
        "longer": _share(
            (p, chosen > rejected) for p, chosen, rejected in lengths if chosen != rejected
        ),
        "agreement": _share((p, _agreement(p)) for p in several),
        "entropy": mean([_entropy(p.probability) for p in pairs]) if pairs else None,
        "probability": mean([p.probability for p in pairs]) if pairs else None,
    }
    return {name: asdict(figure) for name, figure in figures.items() if figure is not None}


def accuracy_figures(judged: Sequence[tuple[PreferencePair, str]]) -> dict[str, Any]:
    """How often the judge chooses the answer that is labelled as the better one, for (pair, better answer).

    accuracy: with its interval; shorter: how often the shorter answer is the better one, which a judge of length alone
    would reach; bins: of each range of certainty the mean probability and the share that is right; calibration_error:
    the mean distance of the two (Guo et al. 2017).
    """
    # a tie is half right: a judge that knows only positions ends in ties, once both orders are averaged
    right = [
        (p, 0.5 if p.probability < 0.5 + 1e-9 else float(p.chosen == better))
        for p, better in judged
    ]
    bins, distance = [], 0.0
    for low, high in pairwise(EDGES):
        inside = [
            (p.probability, hit)
            for p, hit in right
            if low <= p.probability < high or p.probability == high == 1
        ]
        if inside:
            certain, hits = (
                math.fsum(p for p, _ in inside) / len(inside),
                sum(hit for _, hit in inside),
            )
            distance += abs(certain * len(inside) - hits) / len(right)
            bins.append(
                {
                    "low": low,
                    "high": high,
                    "probability": certain,
                    "right": asdict(share(hits, len(inside))),
                }
            )
    figures: dict[str, Any] = {"bins": bins, "calibration_error": distance}
    shorter = _share(
        (
            p,
            len(better.split())
            < min(len(one.split()) for one in (p.chosen, p.rejected) if one != better),
        )
        for p, better in judged
    )
    for name, figure in {"accuracy": _share(right), "shorter": shorter}.items():
        figures |= {name: asdict(figure)} if figure else {}
    return figures


def doubts(figures: Mapping[str, Any], labelled: Sequence[str]) -> list[str]:
    """Why this judge can't be relied on, in sentences; [] where nothing that was measured says so."""
    said = []
    if (accuracy := figures.get("accuracy")) and accuracy["low"] <= 0.5:
        worse = "worse than chance" if accuracy["high"] < 0.5 else "no better than chance"
        said.append(
            f"The judge is {worse}: right on {_percent(accuracy)} of the labelled pairs ({', '.join(labelled)})."
        )
    if (flipped := figures.get("flipped")) and flipped["value"] > 0.5:
        said.append(
            f"The judge goes by position: {_percent(flipped)} of its preferences turn with the answers' order."
        )
    return said


def _share(values: Iterable[tuple[PreferencePair, float]]) -> Estimate | None:
    """A share with one vote a prompt, however many comparisons it took."""
    votes = by_prompt((pair.prompt.id, value) for pair, value in values).values()
    return share(sum(votes), len(votes)) if votes else None


def _agreement(pair: PreferencePair) -> float:
    """The share of all two principles that prefer the same of the two answers."""
    first = sum(sum(one.orders) > 1 for one in pair.judgements)
    count = len(pair.judgements)
    return (math.comb(first, 2) + math.comb(count - first, 2)) / math.comb(count, 2)


def _entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def _percent(estimate: Mapping[str, Any]) -> str:
    low, value, high = (f"{100 * estimate[key]:.0f}" for key in ("low", "value", "high"))
    return f"{value} % [{low}, {high}]"
