"""First answers, then rounds of critique and revision by the constitution (section 3.1)."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from cai.config.schema import ReviseConfig
from cai.data.parquet import RowWriter, write_rows
from cai.data.prompts import load_prompts
from cai.digest import seed_of
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.rows import failing, gather_failing
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts, assistant
from cai.method.critique import CritiqueStep, Revision, revise
from cai.method.refusal import refuses
from cai.stages.base import Context, decontaminated, split_failed, write_failed
from cai.text import repeats


def run(config: ReviseConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/revisions.parquet, one row a prompt with the whole chain. Returns counts by gate and principle."""
    constitution = context.load_constitution()
    prompts, dropped = decontaminated(
        load_prompts(config.prompts, context.data, context.seed), context
    )
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
        chains = (
            revise(p, constitution, config, context.seed, model.complete, critic.complete)
            for p in prompts
        )
        tally, failed = asyncio.run(
            write_chains(prompts, failing(chains, len(prompts), allowed), config, work)
        )
        replies = asyncio.run(
            gather_failing([model.complete(request) for _, request in helpful], allowed)
        )
        answers, more = split_failed([prompt for prompt, _ in helpful], replies)
    finally:
        model.close()
        critic.close()
        ledger.close()
    failures = write_failed(work, failed + more)
    if not tally.rows:
        raise CaiError(
            "no revision passed its gates, so there is nothing to train on; see revise.gates and revise.form"
        )
    summary = (
        {"prompts": len(prompts), "overlapping": len(dropped), "rows": tally.rows}
        | failures
        | tally.figures()
    )
    if helpful:
        good = [
            {"id": prompt.id, "messages": as_dicts((*prompt.messages, assistant(answer.text)))}
            for prompt, answer in answers
            if usable(answer)
        ]
        write_rows(work / "helpful.parquet", good)
        summary |= {"helpful": len(good), "helpful_left_out": len(helpful) - len(good)}
    return summary


async def write_chains(
    prompts: Sequence[Prompt],
    chains: AsyncIterator[Revision | RequestFailed],
    config: ReviseConfig,
    work: Path,
) -> tuple["Tally", list[dict[str, Any]]]:
    """Writes each prompt's chain as it is done, so that no more than some thousands are in memory. Returns what the
    summary needs, and the rows that failed."""
    tally, failed = Tally(), []
    with (
        RowWriter(work / "revisions.parquet", chain_schema()) as revisions,
        RowWriter(work / "training.parquet", training_schema()) as training,
    ):
        asked = iter(prompts)
        async for chain in chains:
            answered, missing = split_failed([next(asked)], [chain])
            failed += missing
            for _, revision in answered:
                revisions.write(as_row(revision))
                tally.add(revision)
                for row in training_rows(revision, config):
                    training.write(row)
        tally.rows = training.count
    return tally, failed


def chain_schema() -> Any:
    """Of revisions.parquet (docs/data.md)."""
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    step = {"principle": text, "critique": text, "revision": text, "gates": pa.list_(text)}
    steps = pa.list_(pa.struct(step | {"seeds": pa.list_(number), "tokens": number}))
    row = {
        "id": text,
        "source": text,
        "prompt": turns_type(),
        "answer": text,
        "steps": steps,
        "final": text,
    }
    return pa.schema(row)


def training_schema() -> Any:
    """Of training.parquet (docs/data.md)."""
    import pyarrow as pa

    row = {
        "id": pa.string(),
        "round": pa.int64(),
        "principle": pa.string(),
        "messages": turns_type(),
    }
    return pa.schema(row | {"last": pa.bool_()})


def turns_type() -> Any:
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def helpful_requests(config: ReviseConfig, context: Context) -> list[tuple[Prompt, Request]]:
    """What the helpful model is asked so that SL-CAI keeps its helpfulness (section 3.2): no red-team prompts."""
    if config.helpful is None:
        return []
    prompts, _ = decontaminated(
        load_prompts(config.helpful.prompts, context.data, context.seed), context
    )
    return [
        (
            p,
            Request(
                p.messages, config.sampling.answer, seed_of(context.seed, p.id, "helpful", number)
            ),
        )
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
    prompt = {
        "id": revision.prompt.id,
        "source": revision.prompt.source,
        "prompt": as_dicts(revision.prompt.messages),
    }
    return prompt | {"answer": revision.answer, "steps": steps, "final": revision.final}


class Tally:
    """How many rows keep a revision, how many fail which gate, and the same by principle and by round."""

    def __init__(self) -> None:
        self.rows = self.kept = 0  # rows to train on; prompts with a revision that passed
        self._all: Counter[str] = Counter()
        self._principles: dict[str, Counter[str]] = defaultdict(Counter)
        self._rounds: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, revision: Revision) -> None:
        before = revision.answer
        self.kept += bool(revision.final)
        for number, step in enumerate(revision.steps, 1):
            seen = _counts(before, step)
            for counter in (
                self._all,
                self._principles[step.principle_id],
                self._rounds[str(number)],
            ):
                counter.update(seen)
            before = before if step.gates else step.revision

    def figures(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "gates": _gates(self._all),
            "principles": {
                name: _figures(found) for name, found in sorted(self._principles.items())
            },
            "rounds": {name: _figures(found) for name, found in self._rounds.items()},
        }


def _counts(before: str, step: CritiqueStep) -> dict[str, int]:
    return {
        "drawn": 1,
        "changed": before != step.revision,
        "refused": refuses(step.revision),
        "passed": not step.gates,
        "words_before": len(before.split()),
        "words_after": len(step.revision.split()),
    } | {f"gate {gate}": 1 for gate in step.gates}


def _gates(found: Counter[str]) -> dict[str, int]:
    return {
        name.removeprefix("gate "): found[name]
        for name in sorted(found)
        if name.startswith("gate ")
    }


def _figures(found: Counter[str]) -> dict[str, Any]:
    """Steps drawn, changed, refused, passed, gated, and mean words before and after."""
    counts = {name: int(found[name]) for name in ("drawn", "changed", "refused", "passed")}
    means = {
        name: round(found[name] / found["drawn"], 1) for name in ("words_before", "words_after")
    }
    return counts | {"gates": _gates(found)} | means
