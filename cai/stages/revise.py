"""First answers, then rounds of critique and revision by the constitution (section 3.1)."""

import asyncio
from pathlib import Path
from typing import Any

from cai.config import ReviseConfig
from cai.critique import Revision, revise
from cai.data.formats import load_prompts
from cai.dialogue import as_dicts
from cai.engines.base import gather_rows
from cai.errors import CaiError
from cai.stages.base import Context, held_apart, write_rows


def run(config: ReviseConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/revisions.parquet, one row a prompt with the whole chain. Returns counts by gate and principle."""
    constitution = context.load_constitution()
    prompts, dropped = held_apart(load_prompts(config.prompts, context.data, context.seed), context)
    if not prompts:
        raise CaiError("revise.prompts: no prompt is left; see revise.prompts.limit and offset")
    context.progress.start(len(prompts) * (1 + 2 * config.rounds), "completions")
    ledger = context.ledger()
    model = context.recorded(ledger, "sft")
    try:
        rows = [revise(prompt, constitution, config, context.seed, model.complete) for prompt in prompts]
        revisions = asyncio.run(gather_rows(rows))
    finally:
        model.close()
        ledger.close()
    write_rows(work / "revisions.parquet", [as_row(revision) for revision in revisions])
    return {"prompts": len(prompts), "overlapping": len(dropped)} | summarise(revisions)


def as_row(revision: Revision) -> dict[str, Any]:
    steps = [
        {"principle": s.principle_id, "critique": s.critique, "revision": s.revision, "gates": list(s.gates)}
        for s in revision.steps
    ]
    prompt = {"id": revision.prompt.id, "source": revision.prompt.source, "prompt": as_dicts(revision.prompt.messages)}
    return prompt | {"answer": revision.answer, "steps": steps, "final": revision.final}


def summarise(revisions: list[Revision]) -> dict[str, Any]:
    """How many rows keep a revision, how many fail which gate, and how often each principle was drawn and passed."""
    gates: dict[str, int] = {}
    principles: dict[str, dict[str, int]] = {}
    for revision in revisions:
        for step in revision.steps:
            tally = principles.setdefault(step.principle_id, {"drawn": 0, "passed": 0})
            tally["drawn"] += 1
            tally["passed"] += not step.gates
            for gate in step.gates:
                gates[gate] = gates.get(gate, 0) + 1
    kept = sum(bool(revision.final) for revision in revisions)
    return {"kept": kept, "gates": dict(sorted(gates.items())), "principles": dict(sorted(principles.items()))}
