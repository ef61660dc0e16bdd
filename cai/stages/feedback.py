"""AI feedback for `label`: a judge compares the policy's answers (section 4.1)."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cai.config.schema import LabelConfig
from cai.data.prompts import SPLIT_SEED, load_preferences
from cai.engines.base import RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results
from cai.messages import Prompt
from cai.method.constitution import Constitution
from cai.method.judgement import JudgeSettings
from cai.method.preferences import PreferencePair, SampledAnswer, compare, tournament
from cai.report.metrics import format_mean, format_share
from cai.report.stage_view import Table
from cai.stages.base import Context, split_failed
from cai.stages.pairs import Pairs, policy_answers, prompts_to_ask
from cai.stages.summary import number

JUDGE_SHARES = {
    "flipped": "preferences that turn with the order",
    "neither": "comparisons where the judge wants neither letter",
    "longer": "the longer answer is chosen",
    "agreement": "two principles agree",
    "accuracy": "right on labelled pairs",
    "shorter": "of these, the shorter is labelled better",
}
JUDGE_MEANS = {
    "probability": "mean probability of the chosen",
    "entropy": "entropy of the feedback, bits",
    "letters": "probability of the two letters together",
}


@dataclass(frozen=True)
class Judge:
    """Who gave the feedback, and how far it can be relied on (cai/scoring/judge.py)."""

    name: str
    is_other_model: bool  # whether it is none of the run's own
    metrics: dict[str, Any]  # name -> estimate; bins and calibration_error where labels are known
    warnings: list[str]
    labelled: list[str]  # the data sets that its accuracy was measured on
    tau: float | None = None  # nats, of a contrast: the log-ratio that makes a pair 73 % sure

    def lines(self) -> list[tuple[str, str]]:
        shares = [(name, title, format_share) for name, title in JUDGE_SHARES.items()]
        means = [(name, title, format_mean) for name, title in JUDGE_MEANS.items()]
        lines = [
            (title, write(self.metrics[name]))
            for name, title, write in (*shares, *means)
            if name in self.metrics
        ]
        return lines + ([("tau, nats", number(self.tau))] if self.tau else [])

    def tables(self) -> list[Table]:
        if "bins" not in self.metrics:
            return []
        distance = round(100 * self.metrics["calibration_error"])
        title = (
            f"calibration on labelled pairs ({', '.join(self.labelled)}): certainty and accuracy "
            f"lie {distance} points apart"
        )
        rows = tuple(_calibration_cells(certainty) for certainty in self.metrics["bins"])
        tables = [Table(title, ("probability", "mean", "right", "pairs"), rows)]
        by_principle = tuple(
            (name, format_share(right), str(right["count"]))
            for name, right in self.metrics.get("principles", {}).items()
        )
        if by_principle:
            title = f"the judge and people ({', '.join(self.labelled)}), by principle"
            tables.append(Table(title, ("principle", "agree", "pairs"), by_principle))
        return tables


def _calibration_cells(certainty: dict[str, Any]) -> tuple[str, ...]:
    right = certainty["right"]
    return (
        f"{certainty['low']} to {certainty['high']}",
        f"{certainty['probability']:.2f}",
        format_share(right),
        str(right["count"]),
    )


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
    from cai.scoring.judge import accuracy_metrics, judge_metrics, judge_warnings

    metrics = judge_metrics(comparisons)
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
