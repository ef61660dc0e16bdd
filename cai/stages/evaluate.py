"""Every model on the same held-out prompts, with the same seeds, through the ledger."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.config import EvaluateConfig, Suite
from cai.data.audit import Overlap
from cai.data.formats import load_dialogues, load_prompts
from cai.dialogue import Dialogue, Prompt, as_dicts
from cai.digest import seed_of
from cai.engines.base import Recorded, Request, RequestFailed, gather_failing, gather_rows
from cai.errors import CaiError
from cai.gates import repeats
from cai.scoring.reference import exact, rouge_l
from cai.scoring.refusal import refuses
from cai.scoring.statistics import Estimate, mean, share
from cai.stages.base import Context, sample_dialogues, split_failed, write_failed, write_rows
from cai.store import write_json


@dataclass(frozen=True)
class Reference:
    """A held-out prompt, after its examples, and the reference answer. The prompt's id is that without examples."""

    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Attempt:
    """A model's own answer, and how likely it finds the reference: in bits, over the reference's bytes in UTF-8."""

    text: str
    bits_per_byte: float


def run(config: EvaluateConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/answers.parquet and work/metrics.json (model -> suite -> figure with interval). Returns the table."""
    prompts = {
        name: load_prompts(suite.prompts, context.data, context.seed)
        for name, suite in config.suites.items()
        if suite.kind != "instructions"
    }
    references: dict[str, list[Reference]] = {}
    for name, suite in config.suites.items():
        references |= load_references(name, suite, context) if suite.kind == "instructions" else {}
    for name, rows in prompts.items():
        if not rows:
            raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    counts = {s: len(rows) for s, rows in (prompts | references).items()}
    requests = sum(counts.values()) + sum(map(len, references.values()))  # a reference is answered and scored
    context.progress.start(requests * len(config.models), "requests")
    ledger = context.ledger()
    records: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    metrics: dict[str, dict[str, Any]] = {}
    try:
        for name in config.models:
            context.progress.note = name
            model = context.recorded(ledger, name)
            try:
                found, attempts = asyncio.run(_ask(prompts, references, config, context, model))
            finally:
                model.close()
            metrics[name] = {}
            for s, texts in found.items():
                answered, more = split_failed(prompts[s], texts)
                failed += [{"model": name, "suite": s} | row for row in more]
                metrics[name][s] = answer_figures([text for _, text in answered])
                records += [_record(name, s, prompt, text) for prompt, text in answered]
            for s, tried in attempts.items():
                answered, more = split_failed([one.prompt for one in references[s]], tried)
                failed += [{"model": name, "suite": s} | row for row in more]
                wanted = {one.prompt.id: one.answer for one in references[s]}
                fitting = [(prompt, attempt, wanted[prompt.id]) for prompt, attempt in answered if attempt]
                metrics[name][s] = reference_figures([one[1:] for one in fitting], len(answered))
                records += [_record(name, s, prompt, attempt.text, answer) for prompt, attempt, answer in fitting]
                if missing := len(answered) - len(fitting):
                    context.progress.say(f"{name}: {missing} of {len(answered)} rows of {s} do not fit its context")
    finally:
        ledger.close()
    write_rows(work / "answers.parquet", records)
    write_json(work / "metrics.json", metrics)
    return {"prompts": counts, "metrics": metrics} | write_failed(work, failed)


def _record(model: str, suite: str, prompt: Prompt, answer: str, reference: str = "") -> dict[str, Any]:
    row = {"model": model, "suite": suite, "id": prompt.id, "prompt": as_dicts(prompt.messages), "answer": answer}
    return row | {"reference": reference, "refuses": refuses(answer)}


def shown_name(suite: str, shots: int) -> str:
    """What a suite is called in tables, with so many examples before each prompt."""
    return f"{suite}, {shots} shot{'s' if shots > 1 else ''}" if shots else suite


def load_references(name: str, suite: Suite, context: Context) -> dict[str, list[Reference]]:
    """For each of the suite's shots, by shown name: its held-out prompts with so many examples before them.

    A prompt's examples follow from the seed and the prompt, and fewer shots are the first of more. Raises CaiError
    where no row is left, or where there are not enough examples.
    """
    dialogues = [dialogue for dialogue, _ in load_dialogues(suite.prompts.data, context.data, context.seed).dialogues]
    rows = list({d[:-1]: d for d in dialogues if d[-1].role == "assistant" and len(d) > 1}.values())  # no prompt twice
    rows.sort(key=lambda d: seed_of(context.seed, as_dicts(d)))
    rows = rows[suite.prompts.offset :][: suite.prompts.limit]
    if not rows:
        raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    most = max(suite.shots)
    pool = example_pool(suite, dialogues, context) if most else []
    if len(pool) < most:
        raise CaiError(
            f"evaluate.suites.{name}.shots: {most} examples are wanted, and {', '.join(suite.examples)} has {len(pool)}"
            ": rows of one request and its answer that repeat no held-out prompt; name other data in examples"
        )
    found: dict[str, list[Reference]] = {shown_name(name, shots): [] for shots in suite.shots}
    for row in rows:
        plain = Prompt.of(row[:-1], name)
        drawn = random.Random(seed_of(context.seed, plain.id, "shots")).sample(pool, most)  # noqa: S311 - a draw
        head = int(row[0].role == "system")
        for shots in suite.shots:
            turns = (*row[:head], *(turn for example in drawn[:shots] for turn in example), *row[head:-1])
            found[shown_name(name, shots)].append(Reference(replace(plain, messages=turns), row[-1].content))
    return found


def example_pool(suite: Suite, held_out: Sequence[Dialogue], context: Context) -> list[Dialogue]:
    """At most `POOL` training rows of one request and its answer, drawn by the seed; none repeats a held-out prompt."""
    overlap = Overlap.of(held_out)

    def usable(dialogue: Dialogue) -> bool:
        return [m.role for m in dialogue] == ["user", "assistant"] and dialogue[0].content not in overlap

    return sample_dialogues(suite.examples, context, usable)


async def _ask(
    prompts: dict[str, list[Prompt]],
    references: dict[str, list[Reference]],
    config: EvaluateConfig,
    context: Context,
    model: Recorded,
) -> tuple[dict[str, list[str | RequestFailed]], dict[str, list[Attempt | RequestFailed | None]]]:
    async def reply(prompt: Prompt) -> str:
        request = Request(prompt.messages, config.sampling, seed_of(context.seed, prompt.id, "evaluate"))
        return (await model.complete(request)).text

    greedy = replace(config.sampling, temperature=0.0)  # figures against a reference compare models, not draws

    async def attempt(one: Reference) -> Attempt | None:
        """None where the prompt with its examples does not fit the model's context."""
        asked = [Request(one.prompt.messages, greedy), Request(one.prompt.messages, continuations=(one.answer,))]
        reply, score = await gather_rows([model.complete(request) for request in asked])
        if "too_long" in (reply.finish_reason, score.finish_reason):
            return None
        return Attempt(reply.text, -score.logprobs[0] / math.log(2) / len(one.answer.encode()))

    allowed = context.engine.max_failures
    texts = await gather_rows([gather_failing([reply(p) for p in rows], allowed) for rows in prompts.values()])
    tried = await gather_rows([gather_failing([attempt(r) for r in rows], allowed) for rows in references.values()])
    return dict(zip(prompts, texts, strict=True)), dict(zip(references, tried, strict=True))


def answer_figures(answers: list[str]) -> dict[str, Any]:
    """Refusal and degeneration as shares with Wilson intervals, words an answer as a mean with a bootstrap interval."""
    degenerate = sum(not text.strip() or repeats(text) for text in answers)
    figures: dict[str, Estimate] = {
        "refusal": share(sum(map(refuses, answers)), len(answers)),
        "degenerate": share(degenerate, len(answers)),
        "words": mean([len(text.split()) for text in answers]),
    }
    return {name: asdict(figure) for name, figure in figures.items()}


def reference_figures(attempts: Sequence[tuple[Attempt, str]], count: int) -> dict[str, Any]:
    """Of (attempt, reference answer): the share with the same words, and mean ROUGE-L and bits per byte.

    Bits per byte is the reference's negative log-likelihood, comparable between models with different tokenizers.
    `count` rows were asked: where some do not fit the context, `too_long` is their share and the rest is of the others.
    """
    figures: dict[str, Estimate] = {}
    if len(attempts) < count:
        figures["too_long"] = share(count - len(attempts), count)
    if attempts:
        figures["exact"] = share(sum(exact(one.text, wanted) for one, wanted in attempts), len(attempts))
        figures["rouge_l"] = mean([rouge_l(one.text, wanted) for one, wanted in attempts])
        figures["bits_per_byte"] = mean([one.bits_per_byte for one, _ in attempts])
    return {name: asdict(figure) for name, figure in figures.items()}
