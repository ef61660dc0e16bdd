"""Preference pairs: AI feedback on answers of the sl_cai model, or in later rounds of the one before's (section 4.1),
revisions over first answers, or both, or the model's answers by rules; beside them people's, where there are any (the
paper's helpfulness pairs are), and demonstrations over the policy's own answers."""

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from cai.config.schema import Human, LabelConfig, Prompts
from cai.data.parquet import read_rows, write_rows
from cai.data.prompts import load_demonstrations, load_preferences, load_prompts
from cai.digest import seed_of
from cai.engines.base import Request, RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_failing, gather_rows
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts, assistant, from_dicts
from cai.method.constitution import Constitution
from cai.method.preferences import (
    PreferencePair,
    Sampled,
    by_rule,
    compare,
    distinct,
    mixed,
    ordered,
    similar,
    tournament,
)
from cai.method.refusal import refuses
from cai.scoring.judge import accuracy_figures, doubts, judge_figures
from cai.stages.base import Context, decontaminated, split_failed, write_failed
from cai.text import words


def run(config: LabelConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/pairs.parquet in trl's preference format with probabilities. Returns counts and judge figures."""
    feedback, revisions, shown, failed, summary = [], [], [], [], {}
    human, overlapping = human_pairs(config.human, context) if config.human else ([], 0)
    if config.kind in ("feedback", "mixed"):
        feedback, failed, summary = _feedback(config, context)
    if config.kind == "rule":
        feedback, failed, summary = _ruled(config, context)
    if config.kind in ("revision", "mixed"):
        rows = read_rows(Path(context.inputs["revise"].path) / "revisions.parquet")
        revisions = [pair for row in rows if (pair := revision_pair(row, config)) is not None]
        summary |= {"revised_prompts": len(rows), "unrevised": len(rows) - len(revisions)}
    if config.kind == "mixed":
        pairs = mixed(feedback, revisions, config, context.seed)
    else:
        pairs = (feedback or revisions)[: config.limit]
    if config.demonstrations:
        shown, unanswered, counts = demonstration_pairs(config.demonstrations, config, context)
        failed, summary = failed + unanswered, summary | counts
    if config.demonstrations or config.kind != "revision":
        summary |= write_failed(work, failed)
    pairs = [*pairs, *shown]
    if not pairs:
        raise CaiError(
            f"no preference pair is left ({summary}); see label.min_margin, label.max_similarity, label.answers, "
            "label.sampling.max_new_tokens and prompts"
        )
    if human or shown:
        pairs = ordered([*pairs, *human], context.seed)
    if config.human:
        summary |= {"human": len(human), "human_overlapping": overlapping}
    write_rows(work / "pairs.parquet", [as_row(pair) for pair in pairs])
    return summary | {
        "pairs": len(pairs),
        "revisions": sum(pair.kind == "revision" for pair in pairs),
    }


def _feedback(
    config: LabelConfig, context: Context
) -> tuple[list[PreferencePair], list[dict[str, Any]], dict[str, Any]]:
    """Pairs by AI feedback, the rows that failed, and the counts of what was left out."""
    constitution = context.load_constitution()
    prompts, dropped = _asked("prompts", config.prompts, context)
    labelled = (
        load_preferences(config.calibrate, context.data, context.seed) if config.calibrate else []
    )
    ledger = context.ledger()
    try:
        found = asyncio.run(
            _answers(prompts, config, context, context.recorded(ledger, context.policy))
        )
        answered, failed = split_failed(prompts, found)
        seeds = [
            (prompt, {text: own.seed for text, own in answers.items()})
            for prompt, answers in answered
        ]
        different = [(prompt, answers) for prompt, answers in seeds if len(answers) > 1]
        feedback = context.on(config.engine)
        judge = feedback.recorded(ledger, config.judge, config.model)
        compared, known = asyncio.run(
            _judged(different, labelled, constitution, config, feedback, judge)
        )
    finally:
        ledger.close()
    judgements, more = split_failed([prompt for prompt, _ in different], compared)
    judged = [pairs for _, pairs in judgements]
    failed += more + split_failed([prompt for prompt, _, _ in labelled], known)[1]
    best = [pairs[0] for pairs in judged if pairs]
    kept = [pair for pair in best if pair.probability - 0.5 >= config.min_margin]
    figures = judge_figures([pair for pairs in judged for pair in pairs])
    if config.calibrate:
        figures |= accuracy_figures(
            [
                (pair, better)
                for pair, (_, better, _) in zip(known, labelled, strict=True)
                if isinstance(pair, PreferencePair)
            ]
        )
        figures |= {"labelled": config.calibrate.data}
    figures["doubts"] = doubts(figures, config.calibrate.data if config.calibrate else [])
    summary = {
        "prompts": len(prompts),
        "overlapping": dropped,
        "identical": len(answered) - len(different),
    }
    summary |= {"too_long": len(judged) - len(best), "uncertain": len(best) - len(kept)}
    return kept, failed, summary | {"judged": sum(map(len, judged)), "judge": figures}


def _ruled(
    config: LabelConfig, context: Context
) -> tuple[list[PreferencePair], list[dict[str, Any]], dict[str, Any]]:
    """Pairs of the policy's own answers that rules tell apart, the rows that failed, and the counts."""
    prompts, dropped = _asked("prompts", config.prompts, context)
    harmless, more = _asked("benign", config.benign, context) if config.benign else ([], 0)
    prompts, benign = prompts + harmless, {prompt.id for prompt in harmless}
    with closing(context.ledger()) as ledger:
        found = asyncio.run(
            _answers(prompts, config, context, context.recorded(ledger, context.policy))
        )
    answered, failed = split_failed(prompts, found)
    judged = [by_rule(prompt, answers, prompt.id in benign) for prompt, answers in answered]
    # mixed before the cut, so that harmful and harmless prompts keep their shares of the pairs, in every batch as well
    pairs = ordered([pair for pair in judged if isinstance(pair, PreferencePair)], context.seed)[
        : config.limit
    ]
    counts = Counter(one for one in judged if isinstance(one, str))
    longer = sum(len(words(pair.chosen)) > len(words(pair.rejected)) for pair in pairs)
    kinds = Counter("harmless" if pair.prompt.id in benign else "harmful" for pair in pairs)
    summary = {
        "prompts": len(prompts),
        "benign_prompts": len(harmless),
        "overlapping": dropped + more,
    }
    summary |= {key: counts[key] for key in ("all_good", "none_good")}
    summary |= {
        "cut_off": sum(not own.ended for _, answers in answered for own in answers.values())
    }
    return (
        pairs,
        failed,
        summary | {key: kinds[key] for key in ("harmful", "harmless")} | {"chosen_longer": longer},
    )


def _asked(key: str, chosen: Prompts, context: Context) -> tuple[list[Prompt], int]:
    """The prompts of label.`key`, and how many were left out since an evaluation suite holds them."""
    prompts, dropped = decontaminated(load_prompts(chosen, context.data, context.seed), context)
    if not prompts:
        raise CaiError(f"label.{key}: no prompt is left; see label.{key}.limit and offset")
    return prompts, len(dropped)


async def _answers(
    prompts: list[Prompt], config: LabelConfig, context: Context, model: Recorded
) -> list[dict[str, Sampled] | RequestFailed]:
    """The different answers to each prompt."""

    async def reply(prompt: Prompt, number: int) -> tuple[str, Sampled]:
        seed = seed_of(context.seed, prompt.id, "candidate", number)
        found = await model.complete(Request(prompt.messages, config.sampling, seed))
        return found.text, Sampled(seed, found.finish_reason == "stop")

    async def replies(prompt: Prompt) -> dict[str, Sampled]:
        texts = await gather_rows([reply(prompt, number) for number in range(config.answers)])
        return distinct(texts, config.max_similarity)

    context.progress.start(config.answers * len(prompts), "answers")
    try:
        return await gather_failing(
            [replies(prompt) for prompt in prompts], context.engine.max_failures
        )
    finally:
        model.close()


async def _judged(
    rows: list[tuple[Prompt, dict[str, int]]],
    labelled: list[tuple[Prompt, str, str]],
    constitution: Constitution,
    config: LabelConfig,
    context: Context,
    judge: Recorded,
) -> tuple[list[list[PreferencePair] | RequestFailed], list[PreferencePair | RequestFailed | None]]:
    """Every comparison of each prompt's answers, and of the labelled pairs."""
    comparisons = len(labelled) + sum(len(answers) * (len(answers) - 1) // 2 for _, answers in rows)
    principles = min(config.principles, len(constitution.principles))
    context.progress.start(
        comparisons * principles * 2 * max(1, 2 * config.thoughts), "comparisons"
    )
    rest, most = (constitution, config, context.seed, judge.complete), context.engine.max_failures
    try:
        judged = await gather_failing(
            [tournament(prompt, answers, *rest) for prompt, answers in rows], most
        )
        return judged, await gather_failing(
            [compare(p, good, bad, *rest) for p, good, bad in labelled], most
        )
    finally:
        judge.close()


def revision_pair(row: dict[str, Any], config: LabelConfig) -> PreferencePair | None:
    """The last good revision, preferred to the first answer with certainty; None where there is none, or no change.

    `row` is of revisions.parquet. This is the open recipes' shortcut: nothing judges it, neither text is the policy's.
    """
    last = next((step for step in reversed(row["steps"]) if not step["gates"]), None)
    if (
        last is None
        or not row["answer"]
        or similar(last["revision"], row["answer"], config.max_similarity)
    ):
        return None
    prompt = Prompt(row["id"], from_dicts(row["prompt"]), row["source"])
    return PreferencePair(
        prompt, last["revision"], row["answer"], 1.0, (last["principle"],), kind="revision"
    )


def human_pairs(config: Human, context: Context) -> tuple[list[PreferencePair], int]:
    """People's pairs, and how many were left out since a human turn of theirs stands in an evaluation suite."""
    labelled = load_preferences(config, context.data, context.seed)
    pairs = [
        PreferencePair(prompt, better, worse, config.probability, (), kind="human")
        for prompt, better, worse in labelled
        if not any(
            context.holds_out(turn.content) for turn in prompt.messages if turn.role == "user"
        )
    ]
    return pairs, len(labelled) - len(pairs)


def demonstration_pairs(
    chosen: Prompts, config: LabelConfig, context: Context
) -> tuple[list[PreferencePair], list[dict[str, Any]], dict[str, Any]]:
    """Rows whose answer is preferred to one of the policy's, a refusal if it gave one; the rows that failed; counts."""
    rows = load_demonstrations(chosen, context.data, context.seed)
    prompts, dropped = decontaminated([prompt for prompt, _ in rows], context)
    wanted = {prompt.id: answer for prompt, answer in rows}
    with closing(context.ledger()) as ledger:
        found = asyncio.run(
            _answers(prompts, config, context, context.recorded(ledger, context.policy))
        )
    answered, failed = split_failed(prompts, found)
    pairs = []
    for prompt, answers in answered:
        worse = next(
            iter(sorted(answers, key=refuses, reverse=True)), None
        )  # None: every answer was empty
        if worse is not None and not similar(wanted[prompt.id], worse, config.max_similarity):
            own = (answers[worse].seed,)
            pairs.append(
                PreferencePair(
                    prompt, wanted[prompt.id], worse, 1.0, (), seeds=own, kind="demonstration"
                )
            )
    counts = {
        "demonstrations": len(pairs),
        "demonstrations_refused": sum(refuses(pair.rejected) for pair in pairs),
    }
    return pairs, failed, counts | {"demonstrations_overlapping": len(dropped)}


def as_row(pair: PreferencePair) -> dict[str, Any]:
    """trl's conversational preference format, and what the feedback was."""
    return {
        "id": pair.prompt.id,
        "kind": pair.kind,
        "prompt": as_dicts(pair.prompt.messages),
        "chosen": as_dicts([assistant(pair.chosen)]),
        "rejected": as_dicts([assistant(pair.rejected)]),
        "probability": pair.probability,
        "orders": list(pair.orders),
        "principles": list(pair.principle_ids),
        "logprobs": [list(one.logprobs) for one in pair.judgements],
        "seeds": list(pair.seeds),
    }
