"""Model cards and data cards in Hugging Face's format, from a run's manifests: what was made, from what, how it was
measured, and what that does not show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import __version__
from cai.config.schema import Config, first_round
from cai.digest import digest
from cai.errors import UsageError
from cai.models.source import fingerprint
from cai.report.metrics import NAMES, RULED, SHARES, format_metric
from cai.store.manifest import Damaged, Manifest, ancestors, read_manifest
from cai.store.run_folder import Run

PAPER = "https://arxiv.org/abs/2212.08073"

LICENSES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Gemma": "gemma",
}  # as conf/ has them -> the hub's ids

DID = {
    "build": "wrote instructions and answers to train on",
    "sft": "tuned the starting model on instructions",
    "revise": "answered red-team prompts, then criticised and revised each answer by a drawn principle",
    "sl_cai": "tuned on the revisions and on helpful rows",
    "label": "answered further prompts twice; a judge said which answer a drawn principle prefers",
    "dpo": "direct preference optimisation on those pairs",
}

LABELLED = {  # by label.kind
    "feedback": DID["label"],
    "revision": "preferred each prompt's last good revision to its first answer, without a judge",
    "rule": "answered further prompts, harmful and harmless, several times; rules preferred what declines the harmful "
    "and helps with the harmless",
    "mixed": f"{DID['label']}; beside them, revisions that are preferred to first answers without a judge",
}

COUNTS = ("prompts", "rows", "pairs", "steps")

HARMFUL = """The red-team prompts ask for harmful things, and first answers and rejected answers may give them. Don't
train on those columns as if they were good answers."""


@dataclass(frozen=True)
class Origin:
    """A finished stage and what it came from, each as its manifest says."""

    stage: str
    chain: Mapping[str, Manifest]  # this stage and all before it, in the order in which they ran
    evaluation: Manifest | None  # the newest that measured this very model
    config: Config  # of the run's last use: names and licences

    @property
    def manifest(self) -> Manifest:
        return self.chain[self.stage]


INTERVAL = "95 % interval {low:.3f} to {high:.3f}, {count} prompts"


def origin(run: Run, stage: str, config: Config) -> Origin:
    """Raises UsageError where the stage is not done, or run.json now tells of another model."""
    manifest = run.latest(stage)
    if manifest is None:
        raise UsageError(
            f"{run.root}: the stage '{stage}' is not done; see `cai status {run.root}`"
        )
    if manifest.ingredients["model"] != json.loads(json.dumps(fingerprint(config.model))):
        raise UsageError(
            f"{run.root}/run.json names {config.model.name} as it is now, and {stage} was made from another model or "
            "other files; run again with the model that it was made from"
        )
    done = list(_done(run))
    measured = [
        m
        for m in done
        if m.stage == "evaluate" and m.ingredients["inputs"].get(stage) == manifest.output
    ]
    return Origin(
        stage, ancestors(manifest, done), max(measured, key=lambda m: m.started, default=None), config
    )


def _done(run: Run) -> Iterator[Manifest]:
    for folder in run.finished():
        try:
            if found := read_manifest(folder):
                yield found
        except Damaged:
            continue


def model_card(origin: Origin, repo: str) -> str:
    """README.md of a model's repository. Every figure stands with its interval."""
    from huggingface_hub import ModelCardData

    config, base = origin.config, origin.config.model
    metrics = origin.evaluation.summary["metrics"] if origin.evaluation else {}
    data = ModelCardData(
        **_license([base.license]),
        base_model=base.path if base.kind == "hub" else None,
        datasets=sorted(
            {
                one.path
                for name in _sets(origin)
                if (one := config.data.get(name)) and one.kind == "hub"
            }
        )
        or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[
            "constitutional-ai",
            "rlaif",
            *(["dpo"] if first_round(origin.stage) == "dpo" else []),
        ],
        model_name=f"{config.name}-{origin.stage}",
        eval_results=_results(origin, metrics.get(origin.stage, {})) or None,
    )
    return _card(
        data.to_yaml(),
        f"# {config.name}: {origin.stage}",
        f"{base.name}, trained by Constitutional AI ([Bai et al. 2022]({PAPER})) with cai {__version__}: "
        "critiques and revisions under a list of principles, and preferences that no person labelled.",
        *_method(origin),
        "## Figures",
        *_figures(origin, metrics),
        "## Limits",
        _list(_limits(origin, bool(metrics.get(origin.stage)))),
        "## Load",
        "The weights are whole (an adapter, where one was trained, is merged), as safetensors; no code of this "
        "repository is run.",
        f'```python\nfrom transformers import pipeline\n\nanswer = pipeline("text-generation", model="{repo}")\n'
        'print(answer([{"role": "user", "content": "How do I keep bread fresh?"}])[0]["generated_text"][-1])\n```',
        *_provenance(origin),
    )


def data_card(origin: Origin, repo: str, files: Sequence[str]) -> str:
    """README.md of a data set's repository; `files` are its parquet files."""
    from huggingface_hub import DatasetCardData

    config, label = origin.config, first_round(origin.stage) == "label"
    sets = [config.data[name].license for name in _sets(origin) if name in config.data]
    sets += [license for *_, license in _helpers(origin)]
    data = DatasetCardData(
        **_license([config.model.license, *sets]),
        pretty_name=f"{config.name}: {'preference pairs' if label else 'critiques and revisions'}",
        annotations_creators="machine-generated",
        task_categories=["text-generation"],
        tags=[
            "constitutional-ai",
            "rlaif",
            "not-for-all-audiences",
            *(["preference"] if label else []),
        ],
        configs=[{"config_name": Path(name).stem, "data_files": name} for name in files],
    )
    counts = origin.manifest.summary
    judged = (", the judge's", ", with the principles it was asked about")
    whose = judged if "judge" in counts else ("", "; no judge was asked")
    what = (
        f"{counts['pairs']} pairs of answers to one prompt: `chosen`, `rejected`, and `probability`{whose[0]} that "
        f"`chosen` is the better (0.5 to 1){whose[1]}."
        if label
        else f"`revisions.parquet`: for each of {counts['prompts']} prompts the first answer and each round's critique "
        "and revision, with the gates that it failed. `training.parquet`: what of it is trained on."
    )
    return _card(
        data.to_yaml(),
        f"# {data.pretty_name}",
        f"{what} Written by models, not by people, with cai {__version__} after [Bai et al. 2022]({PAPER}).",
        *_method(origin),
        "## Limits",
        _list([" ".join(HARMFUL.split()), *_limits(origin, None)]),
        "## Load",
        "```python\nfrom datasets import load_dataset\n\nrows = load_dataset("
        f'"{repo}", "{Path(files[0]).stem}", split="train")\n```',
        *_provenance(origin),
    )


def _card(front: str, *parts: str) -> str:
    from huggingface_hub import RepoCard

    text = f"---\n{front.strip()}\n---\n\n" + "\n\n".join(parts) + "\n"
    RepoCard(text)  # raises where the front matter is no YAML
    return text


def _license(licenses: Sequence[str | None]) -> dict[str, Any]:
    """The hub's `license` where one holds for all, else `other` with what it is called here."""
    known = sorted({one or "not stated" for one in licenses})
    if len(known) == 1 and known[0] in LICENSES:
        return {"license": LICENSES[known[0]]}
    return {"license": "other", "license_name": "-".join(known).lower().replace(" ", "-")}


def _sets(origin: Origin) -> list[str]:
    return sorted({name for one in origin.chain.values() for name in one.ingredients["data"]})


def _helpers(origin: Origin) -> Iterator[tuple[str, str, str | None]]:
    """(stage, name, licence) of the models of their own that stages asked: a teacher, a critic, a judge."""
    for name, one in origin.chain.items():
        section = one.ingredients.get(first_round(name), {})
        if model := section.get("model"):
            yield name, model["name"], model["license"]
        elif served := (section.get("engine") or {}).get("model"):
            yield name, f"{served} (a server's)", None


def _method(origin: Origin) -> list[str]:
    rows = []
    for name, one in origin.chain.items():
        counts = ", ".join(f"{one.summary[key]} {key}" for key in COUNTS if key in one.summary)
        did = DID[first_round(name)]
        if first_round(name) == "label":
            did = LABELLED[one.ingredients["label"].get("kind", "feedback")]
        rows.append(f"{name}: {did}" + (f" ({counts})" if counts else ""))
    read = {name: one.ingredients.get("constitution") for name, one in origin.chain.items()}
    rules = [
        f"`{name}` read {len(own['principles'])} principles, sha256 {digest(own)[:16]}"
        for name, own in read.items()
        if own
    ]
    parts = [
        "## How it was made",
        "\n".join(f"{number}. {row}" for number, row in enumerate(rows, 1)),
    ]
    if rules:
        parts.append(
            f"Principle file: `{Path(origin.config.constitution).name}`; {'; '.join(rules)}."
        )
    return parts


def _results(origin: Origin, suites: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    known = origin.config.evaluate.suites
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=", ".join(known[base].prompts.data)
            if (base := suite.split(", ")[0]) in known
            else suite,
            dataset_name=suite,
            dataset_config=suite,  # else the hub takes a suite's shots for one data set
            metric_type=name,
            metric_name=f"{NAMES.get(name, name)}, {INTERVAL.format(**one)}",
            metric_value=round(one["value"], 4),
        )
        for suite, figures in suites.items()
        for name, one in figures.items()
    ]


def _figures(origin: Origin, metrics: Mapping[str, Any]) -> list[str]:
    if origin.stage not in metrics:
        return ["This model was not evaluated."]
    models = [name for name in ("base", origin.stage) if name in metrics]
    lines = [
        f"| prompts | figure | {' | '.join(models)} |",
        f"| --- | --- |{' --- |' * len(models)}",
    ]
    for suite, figures in metrics[origin.stage].items():
        for name in figures:
            cells = [metrics[model].get(suite, {}).get(name) for model in models]
            shown = [format_metric(one, name in SHARES) if one else "" for one in cells]
            lines.append(f"| {suite} | {NAMES.get(name, name)} | {' | '.join(shown)} |")
    counts = ", ".join(
        f"{count} of {suite}" for suite, count in origin.evaluation.summary["prompts"].items()
    )  # pyright: ignore[reportOptionalMemberAccess]
    return [f"On held-out prompts ({counts}), with 95 % intervals.", "\n".join(lines)]


def _limits(origin: Origin, measured: bool | None) -> Iterator[str]:
    """What is not known, and what the run itself found wrong. `measured` is None of data."""
    if measured:
        by = origin.evaluation.summary["refusal"]["by"] if origin.evaluation else "rules"
        yield (
            f"Whether an answer refuses is said by {'a classifier' if by == 'classifier' else 'rules'}, not by people. "
            "`compliance` with a red-team prompt is not harm, and a refusal is not safety."
        )
        yield "The intervals hold for the draw of these prompts, in one training run; another seed gives another model."
    if measured is not None:
        yield (
            "Nothing here shows that this model is safe. It was tested on these prompts and on no attack, other "
            "language, longer conversation or use of tools. What the starting model gets wrong, it may get wrong too."
        )
        yield "Nobody has read all that it was trained on: the critiques, revisions and labels are a model's."
    else:
        yield "Nobody has read all of it: the critiques, revisions and labels are a model's, with its mistakes."
    if any(one.ingredients.get("label", {}).get("kind") == "rule" for one in origin.chain.values()):
        yield RULED
    for name, one in origin.chain.items():
        found = [*one.summary.get("judge", {}).get("doubts", []), *one.summary.get("signs", [])]
        yield from (f"`{name}` warned: {text}" for text in found)


def _provenance(origin: Origin) -> list[str]:
    config, base = origin.config, origin.config.model
    source = {"hub": base.path, "wheel": f"{base.wheel}: {base.path}"}.get(
        base.kind, "a local folder"
    )
    revision = f", revision {base.revision}" if base.revision else ""
    terms = (
        f"; its terms, {base.terms}, hold for models made from it and go with them"
        if base.terms
        else ""
    )
    rows = [
        f"Starting model: {base.name} ({source}{revision}), licence: {base.license or 'not stated'}{terms}"
    ]
    for name in _sets(origin):
        one = config.data.get(name)
        rows.append(f"Data set {name}, licence: {(one and one.license) or 'not stated'}")
    rows += [
        f"{name}'s own model: {model}, licence: {terms or 'not stated'}"
        for name, model, terms in _helpers(origin)
    ]
    rows += [
        f"Stage {name}: key {one.key[:12]}, output sha256 {one.output}"
        for name, one in origin.chain.items()
    ]
    return ["## From what", _list(rows)]


def _list(rows: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {row}" for row in rows)
