"""First answers, then rounds of critique and revision by the constitution (section 3.1)."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cai.config.schema import Config, ReviseConfig
from cai.data.parquet import RowWriter, write_rows
from cai.data.prompts import load_prompts
from cai.digest import seed_of
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.rows import gather_results, stream_results
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts, assistant
from cai.method.critique import CritiqueStep, Revision, revise
from cai.method.refusal import refuses
from cai.report.stage_view import Table
from cai.stages.base import Context, Stage, own_model_part, split_failed, write_failed
from cai.stages.revision_rows import CUT, REVISIONS, TRAINING, as_row, rows_to_train_on
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero
from cai.text import repeats


@dataclass(frozen=True)
class Revised:
    """What became of the revisions of a principle, or of a round."""

    drawn: int
    changed: int
    refused: int
    passed: int
    gates: dict[str, int]  # gate -> revisions that failed it
    words_before: float  # means
    words_after: float

    def cells(self, name: str) -> tuple[str, ...]:
        gates = sorted(self.gates.items(), key=lambda gate: -gate[1])
        failures = ", ".join(f"{gate} {count}" for gate, count in gates)
        counts = (self.drawn, self.changed, self.refused, self.passed)
        return (name, *map(str, counts), failures, f"{self.words_before}", f"{self.words_after}")


@dataclass(frozen=True)
class Summary(BaseSummary):
    prompts: int
    overlapping: int  # prompts left out because an evaluation suite holds them
    rows: int  # training rows
    failed: int  # prompts that no engine answered
    kept: int  # prompts with a revision that passed its gates
    gates: dict[str, int]  # gate -> revisions that failed it
    principles: dict[str, Revised]
    rounds: dict[str, Revised]
    helpful: int | None = None  # helpful answers that were sampled
    helpful_left_out: int = 0
    critic: str | None = None  # the model that critiques and revises, where it is another

    counted: ClassVar = ("prompts", "rows")

    def description(self) -> str:
        return (
            "answered red-team prompts, then criticised and revised each answer by a drawn "
            "principle"
        )

    def lines(self) -> list[tuple[str, str]]:
        return nonzero(
            ("prompts", self.prompts),
            ("prompts that keep a revision", self.kept),
            ("helpful answers sampled", self.helpful or 0),
            ("helpful answers left out", self.helpful_left_out),
            ("training rows", self.rows),
            ("prompts that no engine answered", self.failed),
            ("left out because an evaluation suite holds them", self.overlapping),
        )

    def notes(self) -> list[str]:
        if self.critic is None:
            return []
        return [f"Critiques and revisions came from another model, {self.critic}."]

    def tables(self) -> list[Table]:
        columns = ("drawn", "changed", "refused", "passed", "gated by", "words before", "after")
        tables = [
            Table(
                f"revisions by {title}",
                (title, *columns),
                tuple(revised.cells(name) for name, revised in groups.items()),
            )
            for title, groups in (("principle", self.principles), ("round", self.rounds))
        ]
        total = sum(revised.drawn for revised in self.rounds.values())
        gates = sorted(self.gates.items(), key=lambda gate: -gate[1])
        rows = tuple((gate, str(count), f"{count / total:.0%}") for gate, count in gates)
        title = "gates: why a revision was not trained on; one may fail several"
        return [*tables, Table(title, ("gate", "failed", f"of {total} revisions"), rows)]

    def dataset(self) -> str:
        return (
            f"`revisions.parquet`: for each of {self.prompts} prompts the first answer and each "
            "round's critique and revision, with the gates that it failed. `training.parquet`: the "
            "rows that are trained on."
        )


def run(config: ReviseConfig, work: Path, context: Context) -> Summary:
    """Writes work/revisions.parquet, a row a prompt, and work/training.parquet."""
    law = context.load_constitution()
    loaded = load_prompts(config.prompts, context.data, context.seed)
    prompts, overlapping = context.decontaminate(loaded)
    if not prompts:
        raise CaiError("revise.prompts: no prompt is left; see revise.prompts.limit and offset")
    helpful = helpful_requests(config, context)
    rounds = len(law.principles) if config.draw == "all" else config.rounds
    completions = len(prompts) * (1 + rounds * (2 if config.critique else 1)) + len(helpful)
    context.progress.start(completions, "completions")
    engines = [context.engine, config.engine or context.engine]
    allowed_failures = max(engine.max_failures for engine in engines)
    with context.models() as open_model:
        model = critic = open_model("sft")
        if config.model or config.engine:
            critic = open_model("sft", config.engine, config.model)
        chains = (
            revise(prompt, law, config, context.seed, model.complete, critic.complete)
            for prompt in prompts
        )
        revisions = stream_results(chains, len(prompts), allowed_failures)
        tally, failed = asyncio.run(write_chains(prompts, revisions, config, work))
        if helpful:
            model = open_model(config.helpful.model)
        requests = [model.complete(request) for _, request in helpful]
        replies = asyncio.run(gather_results(requests, allowed_failures))
    answers, unanswered = split_failed([prompt for prompt, _ in helpful], replies)
    failed_count = write_failed(work, failed + unanswered)
    if not tally.rows:
        raise CaiError(
            "no revision passed its gates, so there is nothing to train on; see revise.gates and "
            "revise.form"
        )
    kept_helpful = helpful_rows(answers)
    if helpful:
        write_rows(work / "helpful.parquet", kept_helpful)
    return Summary(
        prompts=len(prompts),
        overlapping=overlapping,
        rows=tally.rows,
        failed=failed_count,
        kept=tally.kept,
        gates=failed_gates(tally.all),
        principles={name: revised(tally.principles[name]) for name in sorted(tally.principles)},
        rounds={name: revised(counts) for name, counts in tally.rounds.items()},
        helpful=len(kept_helpful) if helpful else None,
        helpful_left_out=len(helpful) - len(kept_helpful),
        critic=config.model.name if config.model else None,
    )


async def write_chains(
    prompts: Sequence[Prompt],
    revisions: AsyncIterator[Revision | RequestFailed],
    config: ReviseConfig,
    work: Path,
) -> tuple["Tally", list[dict[str, Any]]]:
    """Writes each prompt's chain as soon as it is done, so that few are in memory.

    Returns what the summary needs, and the rows that failed.
    """
    tally, failed = Tally(), []
    with (
        RowWriter(work / "revisions.parquet", REVISIONS) as chain_rows,
        RowWriter(work / "training.parquet", TRAINING) as training_rows,
    ):
        waiting = iter(prompts)
        async for result in revisions:
            answered, unanswered = split_failed([next(waiting)], [result])
            failed += unanswered
            for _, revision in answered:
                chain_rows.write(as_row(revision))
                tally.add(revision)
                for row in rows_to_train_on(revision, config):
                    training_rows.write(row)
        tally.rows = training_rows.count
    return tally, failed


def helpful_requests(config: ReviseConfig, context: Context) -> list[tuple[Prompt, Request]]:
    """What the helpful model is asked so that SL-CAI stays helpful (section 3.2)."""
    if config.helpful is None:
        return []
    loaded = load_prompts(config.helpful.prompts, context.data, context.seed)
    requests = []
    for prompt in context.decontaminate(loaded)[0]:
        for sample in range(config.helpful.samples):
            seed = seed_of(context.seed, prompt.id, "helpful", sample)
            requests.append((prompt, Request(prompt.messages, config.sampling.answer, seed)))
    return requests


def helpful_rows(answers: Sequence[tuple[Prompt, Completion]]) -> list[dict[str, Any]]:
    return [
        {
            "id": prompt.id,
            "messages": as_dicts((*prompt.messages, assistant(answer.text))),
            "answer": "whole" if answer.finish_reason == "stop" else CUT,
        }
        for prompt, answer in answers
        if usable(answer)
    ]


def usable(answer: Completion) -> bool:
    """Whether a helpful answer may be trained on: it has words, repeats none, does not decline.

    One that was cut is trained on without an end of turn.
    """
    return bool(answer.text.strip()) and not repeats(answer.text) and not refuses(answer.text)


class Tally:
    """Counts of the revisions: in all, by principle and by round."""

    def __init__(self) -> None:
        self.rows = self.kept = 0  # rows to train on; prompts with a revision that passed
        self.all: Counter[str] = Counter()
        self.principles: dict[str, Counter[str]] = defaultdict(Counter)
        self.rounds: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, revision: Revision) -> None:
        before = revision.answer
        self.kept += bool(revision.final)
        for round, step in enumerate(revision.steps, 1):
            counts = step_counts(before, step)
            for tally in (self.all, self.principles[step.principle_id], self.rounds[str(round)]):
                tally.update(counts)
            before = before if step.gates else step.revision


def step_counts(before: str, step: CritiqueStep) -> dict[str, int]:
    return {
        "drawn": 1,
        "changed": before != step.revision,
        "refused": refuses(step.revision),
        "passed": not step.gates,
        "words_before": len(before.split()),
        "words_after": len(step.revision.split()),
    } | {f"gate {gate}": 1 for gate in step.gates}


def failed_gates(counts: Counter[str]) -> dict[str, int]:
    names = sorted(name for name in counts if name.startswith("gate "))
    return {name.removeprefix("gate "): counts[name] for name in names}


def revised(counts: Counter[str]) -> Revised:
    return Revised(
        drawn=counts["drawn"],
        changed=int(counts["changed"]),
        refused=int(counts["refused"]),
        passed=int(counts["passed"]),
        gates=failed_gates(counts),
        words_before=round(counts["words_before"] / counts["drawn"], 1),
        words_after=round(counts["words_after"] / counts["drawn"], 1),
    )


def _data(config: Config, round: int) -> list[str]:
    helpful = config.revise.helpful
    return [*config.revise.prompts.data, *(helpful.prompts.data if helpful else ())]


STAGE = Stage(
    kind="revise",
    version=5,
    run=run,
    summary=Summary,
    inputs=lambda config, round: ("sft",),
    data=_data,
    key_parts=lambda config, law: {
        "constitution": law.revision_digests(),
        **own_model_part("critic", "revise", config),
    },
    decontaminates=True,
)
