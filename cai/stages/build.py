"""Training data where there is little: self-instruct (Wang et al. 2022), and answers distilled from a teacher."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

from cai.config.schema import BuildConfig
from cai.data.parquet import write_rows
from cai.data.prompts import load_prompts
from cai.digest import seed_of
from cai.engines.base import Request
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_failing
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, as_dicts, assistant, user
from cai.method.self_instruct import (
    Known,
    answer_fault,
    draw,
    instruction_fault,
    list_request,
    read_list,
)
from cai.stages.base import Context, decontaminated, sample_dialogues, split_failed, write_failed


def run(config: BuildConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/instructions.parquet, which sft reads as `built`, and work/left_out.parquet. Returns the counts."""
    given, overlapping = [], []
    if config.prompts is not None:
        given, overlapping = decontaminated(
            load_prompts(config.prompts, context.data, context.seed), context
        )
    left_out = [_left_out(prompt.text, "overlapping") for prompt in overlapping]
    ledger = context.ledger()
    other = context.on(config.engine)
    teacher = other.recorded(ledger, "base", config.model)
    try:
        written, counts, more, failed = asyncio.run(
            _write(config, context, teacher, other.engine.max_failures)
        )
        left_out += more
        asked = list({prompt.id: prompt for prompt in (*written, *given)}.values())
        context.progress.start(len(asked), "answers")
        sampling = config.sampling.answer
        requests = [
            Request(p.messages, sampling, seed_of(context.seed, p.id, "build answer"))
            for p in asked
        ]
        replies = asyncio.run(
            gather_failing([teacher.complete(r) for r in requests], other.engine.max_failures)
        )
        answered, unanswered = split_failed(asked, replies)
    finally:
        teacher.close()
        ledger.close()
    rows = []
    for prompt, answer in answered:
        if fault := answer_fault(answer.text, answer.finish_reason):
            left_out.append(_left_out(prompt.text, f"answer_{fault}", answer.text))
        else:
            messages = as_dicts((*prompt.messages, assistant(answer.text)))
            rows.append({"id": prompt.id, "source": prompt.source, "messages": messages})
    reasons = dict(sorted(Counter(row["reason"] for row in left_out).items()))
    summary = counts | {"distilled": len(given), "left_out": reasons, "built": len(rows)}
    if not rows:
        raise CaiError(
            f"build: not one row is left: {summary}; another build.model may write better lists and answers"
        )
    write_rows(work / "instructions.parquet", rows)
    if left_out:
        write_rows(work / "left_out.parquet", left_out)
    return summary | write_failed(work, failed + unanswered)


def _left_out(instruction: str, reason: str, answer: str = "") -> dict[str, str]:
    return {"instruction": instruction, "reason": reason, "answer": answer}


async def _write(
    config: BuildConfig, context: Context, teacher: Recorded, max_failures: float
) -> tuple[list[Prompt], dict[str, int], list[dict[str, str]], list[dict[str, Any]]]:
    """New instructions, counts, what was left out, and the requests that failed.

    Each round asks for its lists at once, and reads them in the order in which it has asked: which answer comes first
    decides nothing.
    """
    seeds = [text for text in seed_instructions(config, context) if not context.holds_out(text)]
    if config.target and not seeds:
        raise CaiError(
            f"build.data: no seed instruction in {', '.join(config.data)} that no evaluation suite holds"
        )
    known = Known(seeds, config.max_similarity)
    written: list[str] = []
    left_out: list[dict[str, str]] = []
    failed: list[dict[str, Any]] = []
    counts = {"lists": 0, "unread": 0, "parsed": 0}
    context.progress.start(config.rounds * config.requests if config.target else 0, "lists")
    for number in range(config.rounds):
        if len(written) >= config.target:
            break
        asked, requests = [], []
        for place in range(config.requests):
            seed = seed_of(context.seed, "build", number, place)
            rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
            messages = list_request(draw(seeds, written, config.shown, config.shown_built, rng))
            asked.append(Prompt.of(messages, "self_instruct"))
            requests.append(Request(messages, config.sampling.instructions, seed))
        replies = await gather_failing(
            [teacher.complete(request) for request in requests], max_failures
        )
        lists, more = split_failed(asked, replies)
        failed += more
        counts["lists"] += len(asked)
        for _, reply in lists:
            items = read_list(reply.text)
            counts["unread"] += not items
            counts["parsed"] += len(items)
            if reply.finish_reason != "stop" and items:
                left_out.append(_left_out(items.pop(), "cut_off"))
            for text in items:
                fault = instruction_fault(text)
                if fault is None and len(written) >= config.target:
                    fault = "surplus"
                elif fault is None and context.holds_out(text):
                    fault = "overlapping"
                elif fault is None and text in known:
                    fault = "similar"
                if fault is not None:
                    left_out.append(_left_out(text, fault))
                else:
                    known.add(text)
                    written.append(text)
    return [Prompt.of((user(text),), "self_instruct") for text in written], counts, left_out, failed


def seed_instructions(config: BuildConfig, context: Context) -> list[str]:
    """At most `POOL` different requests that data sets' conversations begin with and that may be shown, by the seed."""

    def usable(dialogue: Dialogue) -> bool:
        return dialogue[0].role == "user" and instruction_fault(dialogue[0].content) is None

    return list(
        dict.fromkeys(row[0].content for row in sample_dialogues(config.data, context, usable))
    )
