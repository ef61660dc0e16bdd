"""Feedback by contrast for `label`: how much likelier a principle makes each of two answers."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cai.config.schema import LabelConfig
from cai.data.parquet import Row
from cai.engines.base import RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results
from cai.messages import Prompt
from cai.method.constitution import Constitution
from cai.method.contrast import (
    ContrastPair,
    contrast,
    contrast_laws,
    nearest_in_length,
    surest,
)
from cai.method.preferences import shuffle_pairs, with_origins
from cai.scoring.judge import fit_tau
from cai.stages.base import Context, split_failed
from cai.stages.feedback import labelled_pairs, rate_judge
from cai.stages.judge_summary import Judge
from cai.stages.pairs import (
    Answered,
    Pairs,
    count_pairs,
    policy_answers,
    prompts_of_both,
    split_by_harm,
)

# of each prompt every two of its answers; None: too long for the judge
Contrasts = list[list[ContrastPair] | RequestFailed | None]

# a prompt, its answers, and what they are scored under
Question = tuple[Prompt, list[str], Constitution]


@dataclass(frozen=True)
class Scored:
    """The policy's answers, and every two of them that were compared."""

    answered: Answered
    harmless: set[str]  # the ids of such prompts
    compared: list[list[ContrastPair]]  # for each prompt with two answers that ended
    labelled: list[ContrastPair]  # `first` is the better one
    numbers: dict[str, int]  # see label.COUNTS
    failed: list[Row]


def contrast_pairs(config: LabelConfig, context: Context) -> tuple[Pairs, Judge]:
    """The surer pairs, as many of harmful as of harmless prompts, and how often they are right."""
    scored = _score(config, context)
    tau = config.tau or _typical(scored)
    if scored.labelled and config.tau is None:
        tau = fit_tau([pair.log_ratio for pair in scored.labelled])
    chosen = _choose(scored, config.surest)
    seeds = {prompt.id: sampled for prompt, sampled in scored.answered}
    pairs = [with_origins(pair.preference(tau), seeds[pair.prompt.id]) for pair in chosen]
    sure = [pair for pair in pairs if pair.probability - 0.5 >= config.min_margin]
    sure = shuffle_pairs(sure, context.seed)[: config.limit]
    comparisons = [pair.preference(tau) for pairs in scored.compared for pair in pairs]
    numbers = scored.numbers | count_pairs(sure, scored.answered, scored.harmless)
    unsure = len(scored.compared) - len(chosen) + len(pairs) - len(sure)
    numbers |= {"uncertain": unsure, "judged": len(comparisons)}
    rated = [(pair.preference(tau), pair.first) for pair in scored.labelled]
    return Pairs(sure, numbers, scored.failed), rate_judge(config, comparisons, rated, tau)


def _score(config: LabelConfig, context: Context) -> Scored:
    benign = config.benign and config.benign.constitution
    law, benign_law = contrast_laws(context.constitution, benign)
    prompts, harmless, overlapping = prompts_of_both(config, context)
    labelled = labelled_pairs(config, context)
    with context.models() as open_model:
        answered, beyond, failed = policy_answers(prompts, config, context, open_model)
        ended = [
            (prompt, [text for text, answer in sampled.items() if answer.ended])
            for prompt, sampled in answered
        ]
        questions: list[Question] = [
            (prompt, texts, benign_law if prompt.id in harmless else law)
            for prompt, texts in ended
            if len(texts) > 1
        ]
        ours = len(questions)
        questions += [(prompt, [better, worse], law) for prompt, better, worse in labelled]
        judge = open_model(config.judge, config.engine, config.model)
        results = asyncio.run(_compare(questions, config, context, judge))
    _, unjudged = split_failed([prompt for prompt, _, _ in questions], results)
    numbers = {
        "prompts": len(prompts),
        "overlapping": overlapping,
        "identical": sum(len(sampled) < 2 for _, sampled in answered),
        "ended_once": sum(len(sampled) > 1 for _, sampled in answered) - ours,
        "prompt_too_long": beyond,
        "too_long": results[:ours].count(None),
        "labelled_too_long": results[ours:].count(None),
    }
    return Scored(
        answered,
        harmless,
        [pairs for pairs in results[:ours] if isinstance(pairs, list)],
        [pairs[0] for pairs in results[ours:] if isinstance(pairs, list)],
        numbers,
        failed + unjudged,
    )


async def _compare(
    questions: Sequence[Question], config: LabelConfig, context: Context, judge: Recorded
) -> Contrasts:
    context.progress.start(2 * config.principles * len(questions), "contrasts")
    engine = config.engine or context.engine
    rows = [
        contrast(prompt, answers, law, config.principles, context.seed, judge.complete)
        for prompt, answers, law in questions
    ]
    return await gather_results(rows, engine.max_failures)


def _typical(scored: Scored) -> float:
    """The tau that makes the median pair 75 % sure."""
    sizes = [abs(pair.log_ratio) for pairs in scored.compared for pair in pairs]
    return median(sizes) / math.log(3) if any(sizes) else 1.0


def _choose(scored: Scored, share: float) -> list[ContrastPair]:
    """One pair of a prompt, the surer ones, as many of harmful as of harmless prompts."""
    nearest = [nearest_in_length(pairs) for pairs in scored.compared]
    harmful, harmless = split_by_harm(nearest, scored.harmless)
    if not scored.harmless:
        return surest(harmful, math.ceil(share * len(harmful)))
    count = round(share * min(len(harmful), len(harmless)))
    return [*surest(harmful, count), *surest(harmless, count)]
