"""What a judge says of harm and of principles, and how far it can be relied on.

A judge may go by position or length, disagree with itself, be too sure, or be wrong.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from cai.digest import JsonObject
from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.messages import Prompt
from cai.method.judgement import letter_probability, option_probability
from cai.method.preferences import PreferencePair
from cai.method.principle import Principle
from cai.method.requests import OPTIONS, Complete, adherence_request, harm_request
from cai.scoring.significance import bootstrap_mean
from cai.scoring.statistics import CountedInterval, Estimate, Interval, by_prompt, share
from cai.text import word_count

# of the two letters together: below, the judge wants to write something else
FEW_LETTERS = 0.1

MANY_QUESTIONS = 0.1  # the share of questions without letters from which on a judge is doubted

EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the bins of probability

TAU_RANGE = (1e-2, 1e4)  # nats


class Verdict(NamedTuple):
    """What a judge says of one answer: with yes as option (A), and with yes as (B)."""

    orders: tuple[float, float]  # probabilities of yes; their mean cancels position bias
    letters: tuple[float, float]  # probabilities of both letters together

    @property
    def probability(self) -> float:
        return sum(self.orders) / 2

    @property
    def flipped(self) -> bool:
        """Whether it turned with the order: position bias."""
        return (self.orders[0] > 0.5) != (self.orders[1] > 0.5)


async def harm_verdict(prompt: Prompt, answer: str, judge: Complete) -> Verdict | None:
    """Whether an answer helps with a harmful request. None: too long for the judge's context."""

    def request(yes_first: bool) -> Request:
        messages = harm_request(prompt.messages, answer, yes_first)
        return Request(messages, continuations=OPTIONS)

    return await _in_both_orders(request, judge)


async def adherence_verdict(
    prompt: Prompt, answer: str, principle: Principle, judge: Complete
) -> Verdict | None:
    """Whether an answer keeps a principle. None: too long for the judge's context."""

    def request(keeps_first: bool) -> Request:
        messages = adherence_request(prompt.messages, answer, principle, keeps_first)
        return Request(messages, continuations=OPTIONS, principle=principle.id)

    return await _in_both_orders(request, judge)


async def _in_both_orders(request: Callable[[bool], Request], judge: Complete) -> Verdict | None:
    """`request` asks with yes as option (A), or as (B)."""

    async def ask(yes_first: bool) -> tuple[float, float] | None:
        completion = await judge(request(yes_first))
        if completion.finish_reason == "too_long":
            return None
        a, b = completion.logprobs
        yes = option_probability(a, b) if yes_first else option_probability(b, a)
        return yes, letter_probability([completion.logprobs])

    as_a, as_b = await gather_rows([ask(True), ask(False)])
    if as_a is None or as_b is None:
        return None
    return Verdict(orders=(as_a[0], as_b[0]), letters=(as_a[1], as_b[1]))


def judge_metrics(pairs: Sequence[PreferencePair]) -> dict[str, CountedInterval]:
    """Metric -> estimate, as a dict, over all judged pairs, including those not trained on.

    flipped: share of comparisons that turn with the order (a coin's is 1/2). A contrast has none.
    neither: share of questions to which the judge wants to write neither letter.
    letters: mean probability of the two letters together.
    longer: share of pairs whose chosen answer is the longer one.
    agreement: share of two principles that prefer the same answer.
    entropy: mean bits; 1 where the feedback says nothing.
    probability: mean, of the chosen answer.
    """
    flipped, longer, agreement = [], [], []
    letters = question_letters(pairs)
    for pair in pairs:
        if pair.judgements:
            flips = sum(judgement.flipped for judgement in pair.judgements)
            flipped.append((pair, flips / len(pair.judgements)))
        chosen_length, rejected_length = word_count(pair.chosen), word_count(pair.rejected)
        if chosen_length != rejected_length:
            longer.append((pair, chosen_length > rejected_length))
        if len(pair.judgements) > 1:
            agreement.append((pair, _agreement(pair)))
    metrics = {
        "flipped": _share(flipped),
        "neither": neither_share(letters),
        "longer": _share(longer),
        "agreement": _share(agreement),
        "entropy": bootstrap_mean([_entropy(p.probability) for p in pairs]) if pairs else None,
        "probability": bootstrap_mean([p.probability for p in pairs]) if pairs else None,
        "letters": bootstrap_mean([p for _, p in letters]) if letters else None,
    }
    return {name: metric.interval() for name, metric in metrics.items() if metric is not None}


def accuracy_metrics(labelled: Sequence[tuple[PreferencePair, str]]) -> JsonObject:
    """How often the judge chooses the answer that people label as the better one.

    `labelled`: (pair, better answer). accuracy: with its interval. shorter: how often the shorter
    answer is the better one, which a judge of length alone would reach. bins: for each range of
    probability its mean and the share of right pairs. calibration_error: the mean distance of the
    two (Guo et al. 2017). principles: accuracy under each principle that a pair was judged by.
    """
    right, shorter = [], []
    for pair, better in labelled:
        # A tie is half right. A judge that knows only positions ends in ties, since both orders
        # are averaged.
        tie = pair.probability < 0.5 + 1e-9
        right.append((pair, 0.5 if tie else float(pair.chosen == better)))
        worse = [answer for answer in (pair.chosen, pair.rejected) if answer != better]
        shorter.append((pair, word_count(better) < min(map(word_count, worse))))
    bins, distance = [], 0.0
    for low, high in pairwise(EDGES):
        inside = [
            (pair.probability, hit)
            for pair, hit in right
            if low <= pair.probability < high or pair.probability == high == 1
        ]
        if not inside:
            continue
        probability = math.fsum(p for p, _ in inside) / len(inside)
        hits = sum(hit for _, hit in inside)
        distance += abs(probability * len(inside) - hits) / len(right)
        right_share = share(hits, len(inside)).interval()
        bins.append({"low": low, "high": high, "probability": probability, "right": right_share})
    principles = _accuracy_by_principle(labelled)
    metrics: JsonObject = {"bins": bins, "calibration_error": distance}
    metrics["principles"] = {name: principles[name].interval() for name in sorted(principles)}
    for name, estimate in {"accuracy": _share(right), "shorter": _share(shorter)}.items():
        if estimate is not None:
            metrics[name] = estimate.interval()
    return metrics


def _accuracy_by_principle(
    labelled: Sequence[tuple[PreferencePair, str]],
) -> dict[str, Estimate]:
    """How often the judge, asked about one principle, prefers the better answer. A tie is half."""
    votes: dict[str, list[tuple[PreferencePair, float]]] = defaultdict(list)
    for pair, better in labelled:
        right = pair.probability if pair.chosen == better else 1 - pair.probability
        # orders are of the answer that the judge was given first, and that is the chosen one
        # where their mean says so
        chosen_is_first = not pair.orders or math.fsum(pair.orders) >= 1
        better_is_first = chosen_is_first == (pair.chosen == better)
        chances = dict.fromkeys(pair.principle_ids, right)  # of a contrast
        for judgement in pair.judgements:
            first = sum(judgement.orders) / 2
            chances[judgement.principle_id] = first if better_is_first else 1 - first
        for name, chance in chances.items():
            tie = abs(chance - 0.5) < 1e-9
            votes[name].append((pair, 0.5 if tie else float(chance > 0.5)))
    shares = {name: _share(values) for name, values in votes.items()}
    return {name: estimate for name, estimate in shares.items() if estimate is not None}


def fit_tau(log_ratios: Sequence[float]) -> float:
    """The tau with the least log loss on labelled pairs, in nats.

    `log_ratios`: of each pair, the better answer's score less the worse one's. It is the end of
    TAU_RANGE where they are wrong as often as right, which makes every probability about 1/2.
    """
    low, high = map(math.log, TAU_RANGE)
    fitted = minimize_scalar(
        lambda log_tau: -log_expit(np.array(log_ratios) / math.exp(log_tau)).sum(),
        bounds=(low, high),
        method="bounded",
    )
    return math.exp(fitted.x)


def judge_warnings(metrics: JsonObject, data: Sequence[str]) -> list[str]:
    """Why this judge can't be relied on, in sentences; [] where no metric says so.

    `data`: the names of the data sets with the labelled pairs.
    """
    warnings = []
    if (accuracy := metrics.get("accuracy")) and accuracy["low"] <= 0.5:
        worse = "worse than chance" if accuracy["high"] < 0.5 else "no better than chance"
        pairs = f"{_percent(accuracy)} of the labelled pairs ({', '.join(data)})"
        warnings.append(f"The judge is {worse}: right on {pairs}.")
    elif "accuracy" in metrics:  # better than chance: is it so under every principle?
        for name, right in metrics.get("principles", {}).items():
            if right["high"] < 0.5:
                pairs = f"{_percent(right)} of {right['count']} labelled pairs ({', '.join(data)})"
                warnings.append(
                    f"Under the principle '{name}' the judge prefers what people do not: right on "
                    f"{pairs}. Its comparison may ask for something else than they do."
                )
    if (flipped := metrics.get("flipped")) and flipped["value"] > 0.5:
        turns = f"{_percent(flipped)} of its preferences turn with the answers' order"
        warnings.append(f"The judge goes by position: {turns}.")
    if (neither := metrics.get("neither")) and neither["value"] > MANY_QUESTIONS:
        warnings.append(no_letter_warning(neither))
    return warnings


def question_letters(pairs: Iterable[PreferencePair]) -> list[tuple[str, float]]:
    """(prompt id, probability of the two letters together) of every question to the judge."""
    return [
        (pair.prompt.id, probability)
        for pair in pairs
        for judgement in pair.judgements
        for probability in judgement.letters
    ]


def neither_share(letters: Iterable[tuple[str, float]]) -> Estimate | None:
    """The share of questions without letters to speak of; None without questions."""
    votes = by_prompt((prompt, float(p < FEW_LETTERS)) for prompt, p in letters).values()
    return share(sum(votes), len(votes)) if votes else None


def no_letter_warning(neither: Interval) -> str:
    """What a judge is called that wants neither letter on the share `neither` of its questions."""
    return (
        f"The judge often wants to write neither letter: on {_percent(neither)} of its questions, "
        f"A and B together have a probability below {FEW_LETTERS:g}, so which of them is likelier "
        "says little. A judge that thinks first wants to write its thought: switch that off where "
        "its template can (enable_thinking, in model.template_args or a server's extra_body)."
    )


def _share(values: Iterable[tuple[PreferencePair, float]]) -> Estimate | None:
    """A share with one vote a prompt, however many comparisons it took."""
    votes = by_prompt((pair.prompt.id, value) for pair, value in values).values()
    return share(sum(votes), len(votes)) if votes else None


def _agreement(pair: PreferencePair) -> float:
    """The share of all two principles that prefer the same of the two answers."""
    count = len(pair.judgements)
    first = sum(sum(judgement.orders) > 1 for judgement in pair.judgements)
    return (math.comb(first, 2) + math.comb(count - first, 2)) / math.comb(count, 2)


def _entropy(probability: float) -> float:
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def _percent(estimate: Interval) -> str:
    bounds = (estimate["low"], estimate["value"], estimate["high"])
    low, value, high = (f"{100 * bound:.0f}" for bound in bounds)
    return f"{value} % [{low}, {high}]"
