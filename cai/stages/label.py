"""Two answers a prompt from the sl_cai model, and AI feedback on which is better (section 4.1)."""

import asyncio
from pathlib import Path
from typing import Any

from cai.config import LabelConfig
from cai.constitution import Constitution
from cai.data.formats import load_prompts
from cai.dialogue import Prompt, as_dicts, assistant
from cai.digest import seed_of
from cai.engines.base import Recorded, Request, RequestFailed, gather_failing
from cai.errors import CaiError
from cai.preferences import PreferencePair, compare
from cai.stages.base import Context, held_apart, split_failed, write_failed, write_rows


def run(config: LabelConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/pairs.parquet in trl's preference format with probabilities. Returns counts and judge figures."""
    constitution = context.load_constitution()
    prompts, dropped = held_apart(load_prompts(config.prompts, context.data, context.seed), context)
    if not prompts:
        raise CaiError("label.prompts: no prompt is left; see label.prompts.limit and offset")
    ledger = context.ledger()
    try:
        found = asyncio.run(_answers(prompts, config, context, context.recorded(ledger, "sl_cai")))
        answered, failed = split_failed(prompts, found)
        different = [(p, a, b) for p, (a, b) in answered if a and b and a != b]
        context.progress.start(2 * len(different), "comparisons")
        feedback = context.on(config.engine)
        compared = asyncio.run(_pairs(different, constitution, feedback, feedback.recorded(ledger, config.judge)))
        judged, more = split_failed([p for p, _, _ in different], compared)
    finally:
        ledger.close()
    failures = write_failed(work, failed + more)
    pairs = [pair for _, pair in judged if pair is not None]
    kept = [pair for pair in pairs if pair.probability - 0.5 >= config.min_margin]
    if not kept:
        raise CaiError(f"no preference pair is left of {len(prompts)} prompts; see label.min_margin and label.prompts")
    write_rows(work / "pairs.parquet", [as_row(pair) for pair in kept])
    summary = {"prompts": len(prompts), "overlapping": len(dropped), "identical": len(answered) - len(different)}
    summary |= failures | {"too_long": len(judged) - len(pairs)}
    return summary | {"uncertain": len(pairs) - len(kept), "pairs": len(kept)} | judge_figures(pairs)


async def _answers(
    prompts: list[Prompt], config: LabelConfig, context: Context, model: Recorded
) -> list[tuple[str, str] | RequestFailed]:
    async def reply(prompt: Prompt, number: int) -> str:
        seed = seed_of(context.seed, prompt.id, "candidate", number)
        return (await model.complete(Request(prompt.messages, config.sampling, seed))).text

    async def two(prompt: Prompt) -> tuple[str, str]:
        first, second = await asyncio.gather(reply(prompt, 0), reply(prompt, 1))
        return first, second

    context.progress.start(2 * len(prompts), "answers")
    try:
        return await gather_failing([two(prompt) for prompt in prompts], context.engine.max_failures)
    finally:
        model.close()


async def _pairs(
    rows: list[tuple[Prompt, str, str]], constitution: Constitution, context: Context, judge: Recorded
) -> list[PreferencePair | RequestFailed | None]:
    try:
        asked = [compare(p, a, b, constitution, context.seed, judge.complete) for p, a, b in rows]
        return await gather_failing(asked, context.engine.max_failures)
    finally:
        judge.close()


def as_row(pair: PreferencePair) -> dict[str, Any]:
    """trl's conversational preference format, and what the feedback was."""
    return {
        "id": pair.prompt.id,
        "prompt": as_dicts(pair.prompt.messages),
        "chosen": as_dicts([assistant(pair.chosen)]),
        "rejected": as_dicts([assistant(pair.rejected)]),
        "probability": pair.probability,
        "orders": list(pair.orders),
        "principles": list(pair.principle_ids),
    }


def judge_figures(pairs: list[PreferencePair]) -> dict[str, Any]:
    """The share of preferences that flip when the options are swapped, and the mean certainty."""
    if not pairs:
        return {}
    flips = sum(pair.flipped for pair in pairs)
    return {"flipped": flips, "mean_probability": round(sum(p.probability for p in pairs) / len(pairs), 4)}
