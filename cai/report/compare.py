"""One page for several evaluations, of a sweep or of several runs."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.errors import UsageError
from cai.report.metrics import Metrics
from cai.report.page import render
from cai.report.pictures import picture
from cai.scoring.statistics import Interval
from cai.store.manifest import Manifest, ancestors, read_manifest
from cai.store.run_folder import Run

NO_SETTINGS = ("version", "inputs", "seed")  # of a stage's ingredients

FILES = "files and models"
FILE_PARTS = ("data", "held_out", "constitution", "model", "judge", "critic", "others", "numerics")
DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b")
LONGEST = 200  # characters of a value

HEADLINES = ("bits_per_byte", "refusal")  # what the first table shows of a suite
COLUMNS = 5


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, and the stages that its models came from."""

    name: str
    stages: dict[str, Manifest]
    metrics: Metrics
    answers: Path  # answers.parquet

    @property
    def seed(self) -> int:
        return self.stages["evaluate"].ingredients["seed"]

    @property
    def kinds(self) -> dict[str, str]:
        """Suite -> its kind."""
        suites = self.stages["evaluate"].ingredients["evaluate"]["suites"]
        return {name: suite["kind"] for name, suite in suites.items()}

    @property
    def last_model(self) -> str:
        """The last of the run's own models, e.g. dpo."""
        models = list(self.metrics)
        return next((name for name in reversed(models) if name in self.stages), models[-1])

    def settings(self, stages: Collection[str]) -> dict[str, str]:
        """Everything but the seed that decided what these stages made.

        `dpo.args.beta` -> its value as JSON.
        """
        values = {}
        for stage in stages:
            for name, part in self.stages[stage].ingredients.items():
                if name not in NO_SETTINGS:
                    values |= dict(_leaves(part, name))
        return values


def load_evaluations(root: Path, name: str) -> list[Evaluation]:
    """Every finished evaluation in a run's folder, oldest first.

    A sweep leaves several; they are numbered. Raises UsageError where there is none.
    """
    manifests = [
        manifest
        for folder in Run(root).finished()
        if (manifest := read_manifest(folder)) is not None
    ]
    ends = sorted((m for m in manifests if m.stage == "evaluate"), key=lambda m: m.started)
    if not ends:
        raise UsageError(f"{root}: the stage 'evaluate' has not finished; see `cai status {root}`")
    return [
        Evaluation(
            name if len(ends) == 1 else f"{name} {number}",
            ancestors(end, manifests),
            _metrics(root, end),
            Run(root).folder("evaluate", end.key) / "out" / "answers.parquet",
        )
        for number, end in enumerate(ends, 1)
    ]


def comparison_page(evaluations: Sequence[Evaluation]) -> bytes:
    """The HTML page that compares them."""
    from cai.report.paired import compare_answers  # loads scipy, which `--help` must not wait for

    first = evaluations[0]
    first_model = next(iter(first.metrics))
    last_models = {run.name: run.metrics[run.last_model] for run in evaluations}
    points = {first_model: first.metrics[first_model]} | last_models
    differing = differing_settings(evaluations)
    kinds, suites = {}, {}
    for run in evaluations:
        kinds |= run.kinds
        for measured in run.metrics.values():
            suites |= dict.fromkeys(measured)
    return render(
        "comparison.html.j2",
        evaluations=evaluations,
        differing=differing,
        groups=group_settings(differing),
        columns=summary_columns(evaluations),
        summary=[
            (f"{first.name}, {first_model}", first.metrics[first_model]),
            *last_models.items(),
        ],
        paired=compare_answers({run.name: (run.answers, run.last_model) for run in evaluations}),
        picture=picture(points, kinds, arrows=False),
        tables={suite: _models_by_metric(suite, evaluations) for suite in suites},
        seeds=[group for group in group_by_settings(evaluations) if len(group) > 1],
        seed_range=seed_range,
    )


def differing_settings(evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Setting -> its value in each evaluation, for settings that are not the same in all.

    "" where one has none. Of a stage that stands behind some evaluations only, just that is said.
    """
    stages = dict.fromkeys(name for run in evaluations for name in run.stages)
    shared = [name for name in stages if all(name in run.stages for run in evaluations)]
    settings = [run.settings(shared) for run in evaluations]
    rows = {"seed": [str(run.seed) for run in evaluations]}
    for name in stages:
        rows[f"stage {name}"] = ["yes" if name in run.stages else "" for run in evaluations]
    for key in dict.fromkeys(key for values in settings for key in values):
        rows[key] = [values.get(key, "") for values in settings]
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def group_settings(differing: Mapping[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Differing settings by what they belong to; what follows from files comes last.

    A digest is shortened, since nobody reads more of it.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for key, values in differing.items():
        part = key.partition(".")[0].partition(" ")[0]
        title = FILES if part in FILE_PARTS else part
        shortened = [DIGEST.sub(r"\1...", value)[:LONGEST] for value in values]
        groups.setdefault(title, {})[key] = shortened
    return dict(sorted(groups.items(), key=lambda group: group[0] == FILES))


def summary_columns(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(suite, metric) pairs of the first table: one of each suite, at most COLUMNS."""
    columns = {}
    for run in evaluations:
        for suite, measured in run.metrics[run.last_model].items():
            names = [name for name in HEADLINES if name in measured]
            if names:
                columns.setdefault(suite, names[0])
    return list(columns.items())[:COLUMNS]


def group_by_settings(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations that differ in the seed at most stand in one group."""
    groups: dict[str, list[Evaluation]] = {}
    for run in evaluations:
        settings = json.dumps(run.settings(run.stages), sort_keys=True)
        groups.setdefault(settings, []).append(run)
    return list(groups.values())


def seed_range(group: Sequence[Evaluation], model: str, suite: str, metric: str) -> Interval | None:
    """Mean, lowest and highest of a metric over training runs that differ in the seed alone."""
    rows = [run.metrics.get(model, {}).get(suite, {}) for run in group]
    values = [row[metric]["value"] for row in rows if metric in row]
    if not values:
        return None
    return {"value": sum(values) / len(values), "low": min(values), "high": max(values)}


def _models_by_metric(suite: str, evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Metric -> the models that have it on this suite."""
    models: dict[str, dict[str, None]] = {}
    for run in evaluations:
        for model, suites in run.metrics.items():
            for metric in suites.get(suite, {}):
                models.setdefault(metric, {})[model] = None
    return {metric: list(names) for metric, names in models.items()}


def _metrics(root: Path, evaluate: Manifest) -> Metrics:
    """As the stage wrote them, in the order of `evaluate.models`."""
    file = Run(root).folder("evaluate", evaluate.key) / "out" / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    order = [*evaluate.ingredients["evaluate"]["models"], *metrics]
    return {model: metrics[model] for model in sorted(metrics, key=order.index)}


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, JSON) of everything in nested mappings."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, json.dumps(value, sort_keys=True)
