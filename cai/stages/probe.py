"""Prompts out of the constitution: for each principle, red-team prompts and benign look-alikes."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cai.config.names import PROBES, probes
from cai.config.schema import DataConfig, ProbeConfig
from cai.data.duplicates import duplicate_finder
from cai.data.parquet import write_rows
from cai.errors import CaiError
from cai.messages import Prompt, user
from cai.method.principle import Principle
from cai.method.probe import KINDS, part_to_evaluate
from cai.report.stage_view import Table
from cai.stages.base import Context, Input, Stage, own_model_part, write_failed
from cai.stages.lists import write_left_out
from cai.stages.probe_prompts import Harvest, write_prompts
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero

FILE = "probes.parquet"


@dataclass(frozen=True)
class Summary(BaseSummary):
    writer: str  # the model that wrote them
    target: int  # prompts of each kind that were asked for, for a principle
    lists: int  # lists of prompts that were asked for
    unread: int  # of them without an item
    parsed: int  # prompts that were read
    left_out: dict[str, int]  # reason -> prompts
    prompts: int
    failed: int  # requests that no engine answered
    # principle -> its prompts: red_team and benign, and those of both to evaluate on (test)
    principles: dict[str, dict[str, int]]

    counted: ClassVar = ("prompts",)

    def description(self) -> str:
        return "wrote red-team prompts and benign look-alikes for each principle"

    def lines(self) -> list[tuple[str, str]]:
        return nonzero(
            ("lists of prompts asked for", self.lists),
            ("of them without a prompt", self.unread),
            ("prompts read", self.parsed),
            *((f"left out: {reason}", count) for reason, count in self.left_out.items()),
            ("requests that no engine answered", self.failed),
            ("prompts kept", self.prompts),
        )

    def tables(self) -> list[Table]:
        rows = tuple(
            (name, *(str(counts[part]) for part in (*KINDS, "test")))
            for name, counts in self.principles.items()
        )
        columns = ("principle", "red-team", "benign", "of both to evaluate on")
        return [Table("prompts by principle", columns, rows)]

    def warnings(self) -> list[str]:
        few = [
            f"{name} ({counts['red_team']} red-team, {counts['benign']} benign)"
            for name, counts in self.principles.items()
            if min(counts[kind] for kind in KINDS) < self.target / 2
        ]
        if not few:
            return []
        return [
            f"{len(few)} of {len(self.principles)} principles have fewer than half of the "
            f"{self.target} prompts of a kind that probe.target asks for: {', '.join(few)}. A "
            "stronger model writes more that can be used (probe.model, probe.engine); "
            "left_out.parquet has the others and why they were left out."
        ]

    def notes(self) -> list[str]:
        return [
            f"The prompts were written by {self.writer}, and no person has chosen them: read them "
            "before you rely on them (cai show --stage probe)."
        ]

    def dataset(self) -> str:
        return (
            f"`{FILE}`: {self.prompts} prompts, each with the principle that it is about, its kind "
            "(red_team, benign) and its split (train, test)."
        )


def run(config: ProbeConfig, work: Path, context: Context) -> Summary:
    """Writes work/probes.parquet and work/left_out.parquet."""
    principles = [p for p in context.load_constitution().principles if p.weight]
    with context.models() as open_model:
        writer = open_model("base", config.engine, config.model)
        harvests, tally = asyncio.run(write_prompts(principles, config, context, writer))
    rows = probe_rows(harvests, config.test)
    left_out = [row for harvest in harvests for row in harvest.left_out]
    reasons = write_left_out(work, left_out)
    if not rows:
        raise CaiError(
            f"probe: not one prompt is left of {tally.parsed} in {tally.lists} lists (left out: "
            f"{reasons}); another probe.model may write better ones"
        )
    write_rows(work / FILE, rows)
    engine = config.engine or context.engine
    return Summary(
        writer=engine.model or (config.model or context.model).name,
        target=config.target,
        lists=tally.lists,
        unread=tally.unread,
        parsed=tally.parsed,
        left_out=reasons,
        prompts=len(rows),
        failed=write_failed(work, tally.failed),
        principles={principle.id: _counts(principle, rows) for principle in principles},
    )


def _counts(principle: Principle, rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    of_principle = [row for row in rows if row["principle"] == principle.id]
    counts = Counter(row["kind"] for row in of_principle)
    test = sum(row["split"] == "test" for row in of_principle)
    return {kind: counts[kind] for kind in KINDS} | {"test": test}


def probe_rows(harvests: Sequence[Harvest], test_share: float) -> list[dict[str, str]]:
    """The rows of all principles; what repeats an earlier principle's prompt is left out."""
    repeats = duplicate_finder("near")
    rows = []
    for harvest in harvests:
        for kind in KINDS:
            prompts = []
            for text in harvest.prompts[kind]:
                if repeats((user(text),)):
                    harvest.leave_out(text, kind, "duplicate")
                else:
                    prompts.append(Prompt.of((user(text),), "probe"))
            test_ids = part_to_evaluate([prompt.id for prompt in prompts], test_share)
            for prompt in prompts:
                split = "test" if prompt.id in test_ids else "train"
                row = {"id": prompt.id, "prompt": prompt.text, "principle": harvest.principle.id}
                rows.append(row | {"kind": kind, "split": split})
    return rows


def probe_sets(inputs: Mapping[str, Input], system: str | None) -> dict[str, DataConfig]:
    """The data sets of PROBES, behind the run's system prompt; {} where the stage is no input."""
    if "probe" not in inputs:
        return {}
    path = str(Path(inputs["probe"].path) / FILE)
    return {
        name: DataConfig("file", path, format="prompt", where=columns, system=system)
        for name, columns in PROBES.items()
    }


STAGE = Stage(
    kind="probe",
    version=1,
    run=run,
    summary=Summary,
    inputs=lambda config, round: (),
    key_parts=lambda config, law: {
        "constitution": law.probe_digests(),
        **own_model_part("writer", "probe", config),
    },
    included=probes,
    decontaminates=True,
)
