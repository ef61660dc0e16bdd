"""First answers, then rounds of critique and revision by the constitution (section 3.1)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cai.config.names import reads_probes, suite_data, unprobed
from cai.config.schema import Config, ReviseConfig
from cai.data.parquet import Row, RowWriter, write_rows
from cai.data.prompts import load_prompts
from cai.digest import seed_of
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.rows import gather_results, stream_results
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts, assistant
from cai.method.constitution import Constitution
from cai.method.critique import TOO_LONG, Rank, Revision, revise
from cai.method.gates import ENGLISH_GATES
from cai.method.refusal import refuses
from cai.report.stage_view import Table
from cai.stages.base import Context, Stage, own_model_part, split_failed, write_failed
from cai.stages.revision_counts import Revised, Tally, failed_gates, revised
from cai.stages.revision_rows import CUT, REVISIONS, TRAINING, as_row, rows_to_train_on
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero
from cai.text import repeats


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
    too_long: int = 0  # prompts beyond the model's context, in no other count
    rounds_too_long: int = 0  # rounds of other prompts beyond the critic's
    helpful_too_long: int = 0
    languages: dict[str, int] = field(default_factory=dict)  # of revisions not in English
    blind_gates: Sequence[str] = ()  # switched on, and let those revisions pass
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
            ("prompts beyond the model's context", self.too_long),
            ("rounds beyond the critic's context", self.rounds_too_long),
            ("helpful prompts beyond the context", self.helpful_too_long),
            ("revisions not in English", sum(self.languages.values())),
            ("training rows", self.rows),
            ("prompts that no engine answered", self.failed),
            ("left out because an evaluation suite holds them", self.overlapping),
        )

    def warnings(self) -> list[str]:
        if not self.languages:
            return []
        total = sum(revised.drawn for revised in self.rounds.values())
        counts = ", ".join(f"{code} {count}" for code, count in self.languages.items())
        blind = ", ".join(self.blind_gates)
        passes = f" The gates {blind} let them pass." if blind else ""
        return [
            f"{sum(self.languages.values())} of {total} revisions are not in English ({counts})."
            f"{passes} The rules that count refusals know English only and find none in them."
        ]

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
        if not total:
            return []
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


def ranking(law: Constitution) -> Rank:
    """For `draw: relevant`."""
    from cai.method.relevance import Relevance

    return Relevance(law.principles).rank


def run(config: ReviseConfig, work: Path, context: Context) -> Summary:
    """Writes work/revisions.parquet, a row a prompt, and work/training.parquet."""
    law = context.load_constitution()
    loaded = load_prompts(config.prompts, context.data, context.seed)
    prompts, overlapping = context.decontaminate(loaded)
    if not prompts:
        raise CaiError("revise.prompts: no prompt is left; see revise.prompts.limit and offset")
    helpful = helpful_requests(config, context)
    completions = len(prompts) * completions_for_a_prompt(config, law) + len(helpful)
    context.progress.start(completions, "completions")
    requests = [request for _, request in helpful]
    tally, failed, replies = ask_models(prompts, requests, law, config, work, context)
    answers, unanswered = split_failed([prompt for prompt, _ in helpful], replies)
    failed_count = write_failed(work, failed + unanswered)
    if not tally.rows:
        raise CaiError(
            "no revision passed its gates, so there is nothing to train on; see revise.gates and "
            "revise.form"
        )
    helpful_too_long = sum(answer.finish_reason == TOO_LONG for _, answer in answers)
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
        helpful_left_out=len(helpful) - len(kept_helpful) - helpful_too_long,
        too_long=tally.too_long,
        rounds_too_long=tally.rounds_too_long,
        helpful_too_long=helpful_too_long,
        languages=dict(tally.languages.most_common()),
        blind_gates=[gate for gate in config.gates if gate in ENGLISH_GATES],
        critic=config.model.name if config.model else None,
    )


def completions_for_a_prompt(config: ReviseConfig, law: Constitution) -> int:
    rounds = len(law.principles) if config.draw == "all" else config.rounds
    return 1 + rounds * (2 if config.critique else 1)


def ask_models(
    prompts: Sequence[Prompt],
    helpful: Sequence[Request],
    law: Constitution,
    config: ReviseConfig,
    work: Path,
    context: Context,
) -> tuple[Tally, list[Row], list[Completion | RequestFailed]]:
    """Writes each prompt's chain, then asks for the helpful answers.

    Returns the counts of the chains, those that failed, and the helpful answers.
    """
    engines = [context.engine, config.engine or context.engine]
    allowed_failures = max(engine.max_failures for engine in engines)
    rank = ranking(law) if config.draw == "relevant" else None
    with context.models() as open_model:
        model = critic = open_model("sft")
        if config.model or config.engine:
            critic = open_model("sft", config.engine, config.model)
        chains = (
            revise(prompt, law, config, context.seed, model.complete, critic.complete, rank)
            for prompt in prompts
        )
        revisions = stream_results(chains, len(prompts), allowed_failures)
        tally, failed = asyncio.run(write_chains(prompts, revisions, config, work))
        if config.helpful and config.helpful.model != "sft":
            model.close()  # two at once might not fit
            critic.close()
            model = open_model(config.helpful.model)
        requests = [model.complete(request) for request in helpful]
        return tally, failed, asyncio.run(gather_results(requests, allowed_failures))


async def write_chains(
    prompts: Sequence[Prompt],
    revisions: AsyncIterator[Revision | RequestFailed],
    config: ReviseConfig,
    work: Path,
) -> tuple[Tally, list[Row]]:
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


def helpful_rows(answers: Sequence[tuple[Prompt, Completion]]) -> list[Row]:
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


def _prompt_sets(config: Config) -> list[str]:
    helpful = config.revise.helpful
    return [*config.revise.prompts.data, *(helpful.prompts.data if helpful else ())]


STAGE = Stage(
    kind="revise",
    version=9,
    run=run,
    summary=Summary,
    inputs=lambda config, round: [
        *reads_probes([*_prompt_sets(config), *suite_data(config)]),
        "sft",
    ],
    data=lambda config, round: unprobed(_prompt_sets(config)),
    key_parts=lambda config, law: {
        "constitution": law.revision_digests(),
        **own_model_part("critic", "revise", config),
    },
    decontaminates=True,
)
