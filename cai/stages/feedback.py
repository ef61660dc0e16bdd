"""AI feedback for `label`: a judge compares the policy's answers (section 4.1)."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from cai.config.schema import LabelConfig
from cai.data.prompts import SPLIT_SEED, load_preferences
from cai.digest import JsonObject
from cai.engines.base import RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results
from cai.messages import Prompt
from cai.method.constitution import Constitution
from cai.method.judgement import JudgeSettings
from cai.method.preferences import PreferencePair, SampledAnswer, compare, tournament
from cai.scoring.judge import accuracy_metrics, judge_metrics, judge_warnings
from cai.stages.base import Context, split_failed
from cai.stages.judge_summary import Judge
from cai.stages.pairs import Pairs, policy_answers, prompts_to_ask


def feedback_pairs(config: LabelConfig, context: Context) -> tuple[Pairs, Judge]:
    """Pairs by AI feedback, and how far the judge can be relied on."""
    law = context.load_constitution()
    prompts, overlapping = prompts_to_ask("prompts", config.prompts, context)
    labelled = labelled_pairs(config, context)
    with context.models() as open_model:
        answered, beyond, failed = policy_answers(prompts, config, context, open_model)
        different = [(prompt, sampled) for prompt, sampled in answered if len(sampled) > 1]
        judge = open_model(config.judge, config.engine, config.model)
        asking = replace(context, engine=config.engine or context.engine)
        rows = _judge(different, labelled, law, config, asking, judge)
        compared, compared_labelled = asyncio.run(rows)
    judgements, unjudged = split_failed([prompt for prompt, _ in different], compared)
    failed += unjudged + split_failed([prompt for prompt, _, _ in labelled], compared_labelled)[1]
    comparisons = [pair for _, pairs in judgements for pair in pairs]
    best = [pairs[0] for _, pairs in judgements if pairs]
    lettered = [pair for pair in best if min(pair.letters) >= config.min_letters]
    sure = [pair for pair in lettered if pair.probability - 0.5 >= config.min_margin]
    rated = [
        (pair, better)
        for pair, (_, better, _) in zip(compared_labelled, labelled, strict=True)
        if isinstance(pair, PreferencePair)
    ]
    numbers = {
        "prompts": len(prompts),
        "overlapping": overlapping,
        "identical": len(answered) - len(different),
        "prompt_too_long": beyond,
        "too_long": len(judgements) - len(best),
        "labelled_too_long": compared_labelled.count(None),
        "no_letter": len(best) - len(lettered),
        "uncertain": len(lettered) - len(sure),
        "judged": len(comparisons),
    }
    return Pairs(sure, numbers, failed), rate_judge(config, comparisons, rated)


def labelled_pairs(config: LabelConfig, context: Context) -> list[tuple[Prompt, str, str]]:
    """(prompt, better answer, worse answer) of label.calibrate, the same in every run."""
    if config.calibrate is None:
        return []
    return load_preferences(config.calibrate, context.data, SPLIT_SEED)


def rate_judge(
    config: LabelConfig,
    comparisons: Sequence[PreferencePair],
    labelled: Sequence[tuple[PreferencePair, str]],
    tau: float | None = None,
) -> Judge:
    """How far the judge of these comparisons can be relied on.

    `labelled`: (comparison, better answer) of the pairs of label.calibrate that were judged.
    """
    metrics: JsonObject = {**judge_metrics(comparisons)}
    sets = config.calibrate.data if config.calibrate else []
    if sets:
        metrics |= accuracy_metrics(labelled)
    name = config.model.name if config.model else config.judge
    return Judge(name, bool(config.model), metrics, judge_warnings(metrics, sets), sets, tau)


async def _judge(
    rows: list[tuple[Prompt, dict[str, SampledAnswer]]],
    labelled: list[tuple[Prompt, str, str]],
    law: Constitution,
    config: LabelConfig,
    context: Context,
    judge: Recorded,
) -> tuple[list[list[PreferencePair] | RequestFailed], list[PreferencePair | RequestFailed | None]]:
    """Every comparison of each prompt's answers, and of the labelled pairs."""
    settings = judge_settings(config)
    pairs = len(labelled) + sum(math.comb(len(answers), 2) for _, answers in rows)
    context.progress.start(pairs * requests_for_a_pair(config, law), "comparisons")
    seed, complete, allowed = context.seed, judge.complete, context.engine.max_failures
    tournaments = [
        tournament(prompt, answers, law, settings, seed, complete) for prompt, answers in rows
    ]
    judgements = await gather_results(tournaments, allowed)
    comparisons = [
        compare(prompt, better, worse, law, settings, seed, complete)
        for prompt, better, worse in labelled
    ]
    return judgements, await gather_results(comparisons, allowed)


def requests_for_a_pair(config: LabelConfig, law: Constitution) -> int:
    """In both orders, under each drawn principle: the options, and the thoughts before them."""
    principles = min(config.principles, len(law.principles))
    return principles * 2 * max(1, 2 * config.thoughts)


def judge_settings(config: LabelConfig) -> JudgeSettings:
    return JudgeSettings(config.principles, config.thoughts, config.thought, config.thought_clamp)
