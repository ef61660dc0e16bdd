"""Every model on the same held-out prompts, with the same seeds, through the ledger."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.config import EvaluateConfig, Suite
from cai.data.formats import load_dialogues, load_prompts
from cai.dialogue import Dialogue, Prompt, as_dicts
from cai.digest import seed_of
from cai.engines.base import Recorded, Request, RequestFailed, gather_failing, gather_rows
from cai.errors import CaiError
from cai.gates import repeats
from cai.scoring.refusal import refuses
from cai.scoring.statistics import Estimate, mean, share
from cai.stages.base import Context, split_failed, write_failed, write_rows
from cai.store import write_json


def run(config: EvaluateConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/answers.parquet and work/metrics.json (model -> suite -> figure with interval). Returns the table."""
    prompts = {
        name: load_prompts(suite.prompts, context.data, context.seed)
        for name, suite in config.suites.items()
        if suite.kind != "instructions"
    }
    references = {
        name: load_references(suite, context) for name, suite in config.suites.items() if suite.kind == "instructions"
    }
    for name, rows in (prompts | references).items():
        if not rows:
            raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    total = sum(map(len, prompts.values())) + sum(map(len, references.values()))
    context.progress.start(total * len(config.models), "answers")
    ledger = context.ledger()
    records: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    metrics: dict[str, dict[str, Any]] = {}
    try:
        for name in config.models:
            context.progress.note = name
            model = context.recorded(ledger, name)
            try:
                found, scores = asyncio.run(_ask(prompts, references, config, context, model))
            finally:
                model.close()
            metrics[name] = {}
            answers: dict[str, list[tuple[Prompt, str]]] = {}
            for s, texts in found.items():
                answers[s], more = split_failed(prompts[s], texts)
                failed += [{"model": name, "suite": s} | row for row in more]
                metrics[name][s] = answer_figures([text for _, text in answers[s]])
            for s, bits in scores.items():
                scored, more = split_failed([Prompt.of(row[:-1], s) for row in references[s]], bits)
                failed += [{"model": name, "suite": s} | row for row in more]
                metrics[name][s] = {"bits_per_byte": asdict(mean([value for _, value in scored]))}
            records += [
                {
                    "model": name,
                    "suite": s,
                    "id": p.id,
                    "prompt": as_dicts(p.messages),
                    "answer": text,
                    "refuses": refuses(text),
                }
                for s, rows in answers.items()
                for p, text in rows
            ]
    finally:
        ledger.close()
    write_rows(work / "answers.parquet", records)
    write_json(work / "metrics.json", metrics)
    counts = {s: len(rows) for s, rows in (prompts | references).items()}
    return {"prompts": counts, "metrics": metrics} | write_failed(work, failed)


def load_references(suite: Suite, context: Context) -> list[Dialogue]:
    """Held-out dialogues that end in a reference answer."""
    loaded = load_dialogues(suite.prompts.data, context.data, context.seed)
    rows = [d for d, _ in loaded.dialogues if d[-1].role == "assistant" and len(d) > 1]
    rows.sort(key=lambda d: seed_of(context.seed, as_dicts(d)))
    return rows[suite.prompts.offset :][: suite.prompts.limit]


async def _ask(
    prompts: dict[str, list[Prompt]],
    references: dict[str, list[Dialogue]],
    config: EvaluateConfig,
    context: Context,
    model: Recorded,
) -> tuple[dict[str, list[str | RequestFailed]], dict[str, list[float | RequestFailed]]]:
    async def reply(prompt: Prompt) -> str:
        request = Request(prompt.messages, config.sampling, seed_of(context.seed, prompt.id, "evaluate"))
        return (await model.complete(request)).text

    async def score(row: Dialogue) -> float:
        """Bits per byte of the reference answer: comparable between models with different tokenizers."""
        completion = await model.complete(Request(row[:-1], continuations=(row[-1].content,)))
        if completion.finish_reason == "too_long":
            raise CaiError(f"a held-out row does not fit the context of the model: {row[-2].content[:80]!r}")
        return -completion.logprobs[0] / 0.6931471805599453 / len(row[-1].content.encode())

    allowed = context.engine.max_failures
    texts = await gather_rows([gather_failing([reply(p) for p in rows], allowed) for rows in prompts.values()])
    scores = await gather_rows([gather_failing([score(r) for r in rows], allowed) for rows in references.values()])
    return dict(zip(prompts, texts, strict=True)), dict(zip(references, scores, strict=True))


def answer_figures(answers: list[str]) -> dict[str, Any]:
    """Refusal and degeneration as shares with Wilson intervals, words an answer as a mean with a bootstrap interval."""
    degenerate = sum(not text.strip() or repeats(text) for text in answers)
    figures: dict[str, Estimate] = {
        "refusal": share(sum(map(refuses, answers)), len(answers)),
        "degenerate": share(degenerate, len(answers)),
        "words": mean([len(text.split()) for text in answers]),
    }
    return {name: asdict(figure) for name, figure in figures.items()}
