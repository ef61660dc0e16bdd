"""The stages in order, and the plan: what would run, and why. `cai/run/runner.py` runs it.

A stage's key is the sha256 of its ingredients: everything that decides what it writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cai.config.names import own_engines, own_models, suite_data, unprobed
from cai.config.schema import Config
from cai.config.types import without_runtime
from cai.data import sources
from cai.digest import JsonObject, digest, plain
from cai.engines.base import check_engine
from cai.errors import UsageError, nearest
from cai.method.constitution import Constitution
from cai.models.numerics import numerics
from cai.models.source import fingerprint
from cai.report.stage_view import StageView
from cai.run.objective import check_objective
from cai.stages import build, dpo, evaluate, label, probe, report, revise, sft
from cai.stages.base import Input, Stage
from cai.store.manifest import Manifest
from cai.store.run_folder import Run

STAGES = (
    build.STAGE,
    probe.STAGE,
    sft.SFT,
    revise.STAGE,
    sft.SL_CAI,
    label.STAGE,
    dpo.STAGE,
    evaluate.STAGE,
    report.STAGE,
)

LONGEST = 80  # characters of a value that has changed

NEW = "not run yet"


@dataclass(frozen=True)
class Step:
    """One stage's place in the plan."""

    stage: Stage
    state: str  # done | partial | run
    why: str
    key: str | None  # None while an input has not run
    ingredients: JsonObject
    manifest: Manifest | None


def stages(config: Config) -> list[Stage]:
    """The run's stages in order. Those that repeat stand once a round: label, dpo, label2, dpo2."""
    included = [stage for stage in STAGES if stage.included(config)]
    repeating = [stage for stage in included if stage.repeats]
    rounds = range(2, config.rounds + 1)
    later = [replace(stage, round=round) for round in rounds for stage in repeating]
    end = included.index(repeating[-1]) + 1
    return [*included[:end], *later, *included[end:]]


def inputs_of(stage: Stage, config: Config) -> list[str]:
    """The names of the stages that it reads."""
    return list(stage.inputs(config, stage.round))


def ingredients(stage: Stage, config: Config, law: Constitution) -> JsonObject:
    """Everything that decides what a stage writes, but for its inputs' outputs. JSON types only."""
    names = stage.data(config, stage.round)
    parts: JsonObject = {
        "version": stage.version,
        "kind": stage.kind,
        "seed": config.seed,
        stage.kind: without_runtime(stage.section(config)),
        "data": {name: sources.fingerprint(name, config.data[name]) for name in names},
    }
    if stage.decontaminates:
        parts["held_out"] = {
            name: sources.fingerprint(name, config.data[name])
            for name in unprobed(suite_data(config))
        }
    if stage.asks_models:
        parts["model"] = fingerprint(config.model)
        parts["engine"] = without_runtime(config.engine)
        parts["numerics"] = {
            key: numerics(engine)
            for key, engine in own_engines(config).items()
            if key == "engine" or key.startswith(f"{stage.kind}.")
        }
    return plain(parts | stage.key_parts(config, law))


def plan_run(config: Config, run: Run) -> list[Step]:
    """Every stage with its state and why. Reads manifests and small files; loads no model."""
    check_settings(config)
    law = Constitution.load(config.constitution)
    outputs: dict[str, str | None] = {}
    steps: list[Step] = []
    for stage in stages(config):
        step = step_of(stage, config, run, law, outputs)
        outputs[stage.name] = step.manifest.output if step.manifest else None
        steps.append(step)
    return steps


def step_of(
    stage: Stage, config: Config, run: Run, law: Constitution, outputs: Mapping[str, str | None]
) -> Step:
    """`outputs`: earlier stage -> digest of its output, or None where it has to run."""
    parts = ingredients(stage, config, law)
    inputs = {name: outputs[name] for name in inputs_of(stage, config)}
    missing = [name for name, output in inputs.items() if output is None]
    last = run.latest(stage.name)
    if missing:
        changes = _changes(last.ingredients, parts) if last else []
        why = f"{'again ' if last else ''}after {', '.join(missing)}"
        why = f"stale: {'; '.join(changes)}" if changes else why
        return Step(stage, "run", why, None, parts, None)
    complete = parts | {"inputs": inputs}
    key = digest(complete)
    if manifest := run.manifest(stage.name, key):
        return Step(stage, "done", _took(manifest.seconds), key, complete, manifest)
    if progress := _progress(run.folder(stage.name, key)):
        return Step(stage, "partial", progress, key, complete, None)
    if last is None:
        return Step(stage, "run", NEW, key, complete, None)
    # null settings may differ between versions without a visible change
    changes = _changes(last.ingredients, complete)
    changes = changes or ["another version of cai has other settings for it"]
    return Step(stage, "run", f"stale: {'; '.join(changes)}", key, complete, None)


def trained(config: Config, run: Run) -> dict[str, Manifest]:
    """The run's models that are done, in the order of training."""
    manifests = {name: run.latest(name) for name in own_models(config)[1:]}
    return {name: manifest for name, manifest in manifests.items() if manifest}


def job_inputs(run: Run, manifests: Mapping[str, Manifest]) -> dict[str, Input]:
    """Finished stages, as what another stage or a verb reads."""
    return {
        name: Input(str(run.folder(name, manifest.key) / "out"), manifest.output)
        for name, manifest in manifests.items()
    }


def trained_inputs(config: Config, root: Path) -> dict[str, Input]:
    """The stages that have trained a model, as what a verb reads."""
    run = Run(root)
    return job_inputs(run, trained(config, run))


def view_of(manifest: Manifest) -> StageView:
    """What a finished stage did, in words. Raises CaiError where another version of cai made it."""
    stage = next(stage for stage in STAGES if stage.kind == manifest.kind)
    return stage.summary.load(manifest).view(manifest.stage)


def check_settings(config: Config) -> None:
    """Raises UsageError where settings can't work that other rooms than config/ know about."""
    for key, engine in own_engines(config).items():
        check_engine(engine, key)
    selected_stages(config)
    check_objective(config)


def selected_stages(config: Config) -> list[str]:
    """The stages to run. Raises UsageError where `stages` names none, or one that there isn't."""
    names = [stage.name for stage in stages(config)]
    if config.stages == []:
        raise UsageError("stages=[] names no stage, so nothing would run; null runs all of them")
    for name in config.stages or ():
        if name not in names:
            raise UsageError(
                f"stages names '{name}', which is no stage{nearest(name, names)} "
                f"(stages: {', '.join(names)})"
            )
    return config.stages or names


def _progress(folder: Path) -> str | None:
    """How far an unfinished stage is; None where it has not begun."""
    if not (folder / "work").is_dir():
        return None
    try:
        progress = json.loads((folder / "scratch" / "progress.json").read_text())
        return f"{progress['done']}/{progress['total']} {progress['unit']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "started"


def _took(seconds: float) -> str:
    return f"took {seconds / 60:.1f} min" if seconds >= 60 else f"took {seconds:.1f} s"


def _changes(before: object, after: object) -> list[str]:
    """What differs between two sets of ingredients, in words. At most four, then a count."""
    changes = [_change(*difference) for difference in _differences(plain(before), plain(after))]
    return changes if len(changes) <= 4 else [*changes[:3], f"and {len(changes) - 3} more"]


def _differences(
    before: object, after: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object, object]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if path or key != "inputs" or "inputs" in after:
                yield from _differences(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path, before, after


def _change(path: tuple[str, ...], before: object, after: object) -> str:
    part, *rest = path
    reads = "reads" if before is None else "no longer reads"
    if part == "constitution" and not rest:
        return f"it {reads} the constitution"
    if part == "constitution" and rest[0] == "principles":
        verb = "is new" if before is None else "was removed" if after is None else "changed"
        return f"principle {rest[1]} {verb}"
    if part == "constitution":
        return f"the constitution's {rest[0]} changed"
    if part == "inputs":
        return (
            f"it {reads} {rest[0]}" if None in (before, after) else f"{rest[0]} gave other output"
        )
    if part in ("data", "held_out", "model"):
        return f"{part} {rest[0]} changed" if rest else f"{part} changed"
    if part == "version":
        return f"cai's code for it changed (version {before} -> {after})"
    return f"{'.'.join(path)} {_in_brief(before)} -> {_in_brief(after)}"


def _in_brief(value: object) -> str:
    """A model by its name; of what is long, the beginning."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        value = value["name"]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
