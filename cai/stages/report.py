"""The report: reads what the other stages outputs and writes one HTML page."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cai.config.compose import from_json
from cai.config.names import (
    ADHERENCE,
    BUILT,
    MODEL_SECTIONS,
    helpful_data,
    in_round,
    other_model,
    probes_are_read,
)
from cai.config.schema import Config, ModelConfig, ReportConfig
from cai.data.parquet import Row, read_rows
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.report.changes import shows_change
from cai.report.page import (
    MODELS,
    cost_rows,
    notices,
    records,
    render,
    stage_warnings,
    verdict,
)
from cai.report.pictures import bars, curves, picture
from cai.report.stage_view import StageView
from cai.report.trackers import send_results
from cai.scoring.statistics import ModelComparison
from cai.stages import evaluate
from cai.stages.base import Context, Stage
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import attack_title, suite_title
from cai.store.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Summary(BaseSummary):
    records: dict[str, int]  # of each kind that the page carries

    def description(self) -> str:
        return "wrote the page"

    def lines(self) -> list[tuple[str, str]]:
        return [(f"records of {kind}", str(count)) for kind, count in self.records.items()]


def run(config: ReportConfig, work: Path, context: Context) -> Summary:
    """Writes work/report.html."""
    outputs = StageOutputs(context)
    metrics = json.loads((context.output("evaluate") / "metrics.json").read_text("utf-8"))
    metrics = {
        name: metrics[name] for name in sorted(metrics, key=[*outputs.models, *metrics].index)
    }
    own_metrics = {name: suites for name, suites in metrics.items() if name in outputs.models}
    measured = outputs.evaluate
    kept_records, totals = outputs.records(config.records)
    with closing(context.ledger()) as ledger:
        cost = cost_rows(ledger.cost(), outputs.model_names(), config.price)
    views = outputs.views
    page = render(
        "report.html.j2",
        context=context,
        settings={"name": context.root.name} | outputs.settings,
        manifests=outputs.manifests,
        finished=outputs.finished,
        verdict=verdict(own_metrics, outputs.suite_kinds, outputs.changes, measured.adherence),
        notices=[
            *stage_warnings(views.values()),
            *outputs.notes(),
            *notices(own_metrics, outputs.suite_kinds),
        ],
        views=views,
        training=[name for name, view in views.items() if view.lengths],
        labels=outputs.of_kind("label"),
        picture=picture(own_metrics, outputs.suite_kinds),
        lengths={name: bars(view.lengths) for name, view in views.items() if view.lengths},
        metrics=metrics,
        changes=[(row, shows_change(row)) for row in outputs.changes],
        comparisons=[row for row in measured.comparisons if row["first"] == next(iter(metrics))],
        attacks=measured.attacks,
        wins=measured.wins,
        refusal=measured.refusal,
        harm=measured.harm,
        sources=outputs.suite_sources(),
        curves=outputs.curves(),
        texts=outputs.principle_texts(),
        cost=cost,
        records=kept_records,
        totals=totals,
    )
    (work / "report.html").write_bytes(page)
    send_results(
        context.report_to,
        context.root.name,
        outputs.settings,
        metrics,
        [work / "report.html", context.output("evaluate") / "metrics.json"],
        context.progress.say,
    )
    return Summary({kind: len(rows) for kind, rows in kept_records.items()})


class StageOutputs:
    """What the stages before have outputs, as the page shows it."""

    def __init__(self, context: Context):
        self.context = context
        self.manifests: dict[str, Manifest] = {}
        for name in context.inputs:
            if manifest := read_manifest(context.output(name).parent):
                self.manifests[name] = manifest
        self.settings = configuration(context.root / "run.json", self.manifests)
        self.views: dict[str, StageView] = {
            name: summary.view(name) for name, summary in context.summaries.items()
        }
        later = [name for name in self.of_kind("dpo") if name not in MODELS]
        self.models = [*MODELS, *later]  # the run's own, in the order of training

    def notes(self) -> list[str]:
        """Of the first rounds: later ones would say the same again."""
        first = [name for name, manifest in self.manifests.items() if manifest.kind == name]
        return [note for name in first for note in self.views[name].notes]

    def of_kind(self, kind: str) -> list[str]:
        """The names of the stages of a kind, one for each round."""
        return [name for name, manifest in self.manifests.items() if manifest.kind == kind]

    @property
    def evaluate(self) -> evaluate.Summary:
        summary = self.context.summaries["evaluate"]
        assert isinstance(summary, evaluate.Summary)
        return summary

    @property
    def changes(self) -> list[ModelComparison]:
        return list(self.evaluate.changes)

    @property
    def finished(self) -> datetime:
        ends = [manifest.started + manifest.seconds for manifest in self.manifests.values()]
        return datetime.fromtimestamp(max(ends), UTC)

    @property
    def suite_kinds(self) -> dict[str, str]:
        suites = self.settings["evaluate"]["suites"]
        return {name: suite["kind"] for name, suite in suites.items()}

    def suite_sources(self) -> dict[str, str]:
        """Suite's title -> its data sets."""
        sources = {}
        for name, suite in self.settings["evaluate"]["suites"].items():
            for shots in suite["shots"]:
                sources[suite_title(name, shots)] = ", ".join(suite["prompts"]["data"])
            for attack in suite["attacks"]:
                sources[attack_title(name, attack)] = ", ".join(suite["prompts"]["data"])
        if adherence := self.settings["evaluate"].get("adherence"):
            sources[ADHERENCE] = ", ".join(adherence["data"])
        return sources

    def records(self, limit: int) -> tuple[dict[str, list[Row]], dict[str, int]]:
        """At most `limit` revisions, pairs and answers each, and how many there are."""
        output = self.context.output
        rounds = [read_rows(output(name) / "pairs.parquet") for name in self.of_kind("label")]
        # in turn, so that every round has its share
        pairs = [row for rows in zip_longest(*rounds) for row in rows if row is not None]
        revisions = read_rows(output("revise") / "revisions.parquet")
        answers = read_rows(output("evaluate") / "answers.parquet")
        return records(revisions, pairs, answers, limit)

    def curves(self) -> JsonObject:
        """Stage -> plots of its training history."""
        plots = {}
        for name in self.models:
            if name in self.context.inputs:
                file = self.context.output(name) / "history.json"
                if file.is_file():
                    plots[name] = curves(json.loads(file.read_text()))
        return plots

    def principle_texts(self) -> dict[str, str]:
        """Principle -> its critique request, where the file is still as the run has read it."""
        try:
            law = self.context.load_constitution()
        except CaiError:  # edited or moved while the run went on
            return {}
        now = law.revision_digests()["principles"]
        then = self.manifests["revise"].ingredients.get("constitution", {}).get("principles", {})
        return {
            principle.id: principle.critique
            for principle in law.principles
            if now[principle.id] == then.get(principle.id)
        }

    def model_names(self) -> dict[str, str]:
        """Digest, as the ledger has it -> name, of the models that this run has asked."""
        context = self.context
        names = {context.model_digest(name): name for name in self.models if context.owns(name)}
        other_models = []
        for section in MODEL_SECTIONS:
            settings: Any = self.settings
            for part in f"{section}.model".split("."):
                settings = settings.get(part) or {}
            if settings:
                other_models.append(from_json(ModelConfig, settings))
        evaluated = self.settings["evaluate"].get("models", [])
        other_models += [other_model(name) for name in evaluated if name not in self.models]
        for model in other_models:
            digest = replace(context, model=model).model_digest("base")
            names.setdefault(digest, model.name)
        return names


def configuration(file: Path, manifests: Mapping[str, Manifest]) -> JsonObject:
    """The run's configuration. Each stage's section is that of its manifest: what was run."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        settings = {}
    for manifest in manifests.values():
        section = manifest.ingredients.get(manifest.stage, {})
        if section:
            settings[manifest.stage] = settings.get(manifest.stage, {}) | section
    return settings


def _inputs(config: Config, round: int) -> list[str]:
    """Every stage of the run."""
    built = ["build"] if BUILT in [*config.sft.data, *helpful_data(config)] else []
    probed = ["probe"] if probes_are_read(config) else []
    preferences = [
        in_round(stage, number)
        for number in range(1, config.rounds + 1)
        for stage in ("label", "dpo")
    ]
    return [*built, *probed, "sft", "revise", "sl_cai", *preferences, "evaluate"]


STAGE = Stage(
    kind="report",
    version=8,
    run=run,
    summary=Summary,
    inputs=_inputs,
    asks_models=False,
)
