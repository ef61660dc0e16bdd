"""First answers, then rounds of critique and revision by the constitution (section 3.1)."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from cai.config import ReviseConfig
from cai.critique import CritiqueStep, Revision, revise
from cai.data.formats import load_prompts
from cai.dialogue import Prompt, as_dicts, assistant
from cai.digest import seed_of
from cai.engines.base import Completion, Request, gather_failing
from cai.errors import CaiError
from cai.gates import repeats
from cai.scoring.refusal import refuses
from cai.stages.base import Context, held_apart, split_failed, write_failed, write_rows


def run(config: ReviseConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/revisions.parquet, one row a prompt with the whole chain. Returns counts by gate and principle."""
    constitution = context.load_constitution()
    prompts, dropped = held_apart(load_prompts(config.prompts, context.data, context.seed), context)
    if not prompts:
        raise CaiError("revise.prompts: no prompt is left; see revise.prompts.limit and offset")
    rounds = len(constitution.principles) if config.draw == "all" else config.rounds
    helpful = helpful_requests(config, context)
    asked = len(prompts) * (1 + rounds * (2 if config.critique else 1)) + len(helpful)
    context.progress.start(asked, "completions")
    ledger = context.ledger()
    model = context.recorded(ledger, "sft")
    other = context.on(config.engine)
    critic = other.recorded(ledger, "sft", config.model) if config.model or config.engine else model
    allowed = max(context.engine.max_failures, other.engine.max_failures)
    try:
        chains = [revise(p, constitution, config, context.seed, model.complete, critic.complete) for p in prompts]
        chained, failed = split_failed(prompts, asyncio.run(gather_failing(chains, allowed)))
        revisions = [revision for _, revision in chained]
        replies = asyncio.run(gather_failing([model.complete(request) for _, request in helpful], allowed))
        answers, more = split_failed([prompt for prompt, _ in helpful], replies)
    finally:
        model.close()
        critic.close()
        ledger.close()
    failures = write_failed(work, failed + more)
    write_rows(work / "revisions.parquet", [as_row(revision) for revision in revisions])
    rows = [row for revision in revisions for row in training_rows(revision, config)]
    if not rows:
        raise CaiError(
            "no revision passed its gates, so there is nothing to train on; see revise.gates and revise.form"
        )
    write_rows(work / "training.parquet", rows)
    summary = {"prompts": len(prompts), "overlapping": len(dropped), "rows": len(rows)} | failures
    summary |= summarise(revisions)
    if helpful:
        good = [
            {"id": prompt.id, "messages": as_dicts((*prompt.messages, assistant(answer.text)))}
            for prompt, answer in answers
            if usable(answer)
        ]
        write_rows(work / "helpful.parquet", good)
        summary |= {"helpful": len(good), "helpful_left_out": len(helpful) - len(good)}
    return summary


def helpful_requests(config: ReviseConfig, context: Context) -> list[tuple[Prompt, Request]]:
    """What the helpful model is asked so that SL-CAI keeps its helpfulness (section 3.2): no red-team prompts."""
    if config.helpful is None:
        return []
    prompts, _ = held_apart(load_prompts(config.helpful.prompts, context.data, context.seed), context)
    return [
        (p, Request(p.messages, config.sampling.answer, seed_of(context.seed, p.id, "helpful", number)))
        for p in prompts
        for number in range(config.helpful.samples)
    ]


def usable(answer: Completion) -> bool:
    """Whether a helpful answer may be trained on: it came to an end, says something, does not go round in circles."""
    return answer.finish_reason == "stop" and bool(answer.text.strip()) and not repeats(answer.text)


def training_rows(revision: Revision, config: ReviseConfig) -> list[dict[str, Any]]:
    """SL-CAI's rows: the prompt with each revision that passed its gates as the answer; `last` marks the final one."""
    if config.when_gated == "drop" and revision.steps and revision.steps[-1].gates:
        return []
    good = [(number, step) for number, step in enumerate(revision.steps, 1) if not step.gates]
    return [
        {
            "id": revision.prompt.id,
            "round": number,
            "principle": step.principle_id,
            "messages": as_dicts((*revision.prompt.messages, assistant(step.revision))),
            "last": step is good[-1][1],
        }
        for number, step in good
    ]


def as_row(revision: Revision) -> dict[str, Any]:
    """The documented schema (docs/data.md): one row a prompt with the whole chain."""
    steps = [
        {
            "principle": step.principle_id,
            "critique": step.critique,
            "revision": step.revision,
            "gates": list(step.gates),
            "seeds": list(step.seeds),
            "tokens": step.tokens,
        }
        for step in revision.steps
    ]
    prompt = {"id": revision.prompt.id, "source": revision.prompt.source, "prompt": as_dicts(revision.prompt.messages)}
    return prompt | {"answer": revision.answer, "steps": steps, "final": revision.final}


def summarise(revisions: list[Revision]) -> dict[str, Any]:
    """How many rows keep a revision, how many fail which gate, and the same by principle and by round."""
    principles: dict[str, list[tuple[str, CritiqueStep]]] = {}
    rounds: dict[str, list[tuple[str, CritiqueStep]]] = {}
    for revision in revisions:
        before = revision.answer
        for number, step in enumerate(revision.steps, 1):
            principles.setdefault(step.principle_id, []).append((before, step))
            rounds.setdefault(str(number), []).append((before, step))
            before = before if step.gates else step.revision
    return {
        "kept": sum(bool(revision.final) for revision in revisions),
        "gates": dict(sorted(Counter(g for one in revisions for step in one.steps for g in step.gates).items())),
        "principles": {name: _tally(steps) for name, steps in sorted(principles.items())},
        "rounds": {name: _tally(steps) for name, steps in rounds.items()},
    }


def _tally(steps: list[tuple[str, CritiqueStep]]) -> dict[str, Any]:
    """(answer before, step) pairs: drawn, changed, refused, passed, and mean words before and after."""
    count = len(steps)
    return {
        "drawn": count,
        "changed": sum(before != step.revision for before, step in steps),
        "refused": sum(refuses(step.revision) for _, step in steps),
        "passed": sum(not step.gates for _, step in steps),
        "gates": dict(sorted(Counter(gate for _, step in steps for gate in step.gates).items())),
        "words_before": round(sum(len(before.split()) for before, _ in steps) / count, 1),
        "words_after": round(sum(len(step.revision.split()) for _, step in steps) / count, 1),
    }
