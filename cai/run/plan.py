"""The stages in order, and the plan: what would run, and why. `cai/conductor.py` runs it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cai.config.build import ASKING
from cai.config.schema import (
    BUILT,
    Config,
    Prompts,
    builds,
    evaluated_models,
    first_round,
    helpful_data,
    in_round,
    lookup,
    other_model,
    own_models,
    policy_of,
    unbuilt,
    without_runtime,
)
from cai.data import sources
from cai.digest import digest, file_digest, plain
from cai.method.constitution import Constitution
from cai.store.manifest import Manifest
from cai.store.run_folder import Run


@dataclass(frozen=True)
class Stage:
    """A row of the pipeline. Its code is `cai.stages.<module>.run`; its config is `section`."""

    name: str
    version: int  # raise by hand when the code would write other bytes
    module: str
    inputs: Callable[[Config], Sequence[str]]  # the stages that it reads
    data: Callable[[Config], Sequence[str]] = lambda c: ()  # the data sets that it reads
    apart: bool = False  # whether it leaves out what the evaluation suites hold
    rules: Callable[[Constitution], Any] | None = None  # what it reads of the constitution
    trains: bool = False
    round: int = 1  # of label and dpo

    @property
    def section(self) -> str:
        """Of the config: that of its name; of a later round, the first one's."""
        return first_round(self.name)


def _starts(section: str) -> Callable[[Config], list[str]]:
    return lambda c: [name for name in [lookup(c, section).start] if name != "base"]


def _optimised_from(config: Config, number: int = 1) -> list[str]:
    below = (
        _starts("sl_cai")(config) if config.dpo.adapter == "continued" else []
    )  # what the adapter belongs to
    first = [policy_of(1)] if number > 1 and config.dpo.reference == "first" else []
    return [*below, *first, policy_of(number), in_round("label", number)]


def suite_data(config: Config) -> list[str]:
    return sorted(
        {name for suite in config.evaluate.suites.values() for name in suite.prompts.data}
    )


def _evaluate_data(config: Config) -> list[str]:
    examples = {
        name
        for suite in config.evaluate.suites.values()
        if any(suite.shots)
        for name in suite.examples
    }
    return sorted({*suite_data(config), *examples})


def _evaluated(config: Config) -> list[str]:
    judge = config.evaluate.judge
    asked = (
        {judge.name}
        if (config.evaluate.wins or config.evaluate.harm) and not judge.model
        else set()
    )
    return [
        n for n in own_models(config) if n != "base" and n in {*evaluated_models(config), *asked}
    ]


def _revise_data(config: Config) -> list[str]:
    helpful = config.revise.helpful
    return [*config.revise.prompts.data, *(helpful.prompts.data if helpful else ())]


def _build_data(config: Config) -> list[str]:
    return [*config.build.data, *(config.build.prompts.data if config.build.prompts else ())]


def _built(names: Sequence[str]) -> list[str]:
    return ["build"] if BUILT in names else []


def _label_data(config: Config, number: int = 1) -> list[str]:
    label = config.label
    labelled = (
        label.benign,
        label.calibrate,
        label.human if number == 1 else None,
        label.demonstrations,
    )
    return [*label.prompts.data, *(name for rows in labelled if rows for name in rows.data)]


JUDGED = ("feedback", "mixed")  # the kinds of label that ask a judge, under principles


def _labelled_from(config: Config, number: int = 1) -> list[str]:
    label = config.label
    names = {"revise"} if label.kind in ("revision", "mixed") else set()
    if label.kind in JUDGED:
        names |= {policy_of(number), policy_of(number) if label.model else label.judge}
    if label.kind == "rule" or label.demonstrations:
        names |= {policy_of(number)}
    return sorted(names - {"base"})


STAGES = (
    Stage("build", 1, "build", lambda c: [], _build_data, apart=True),
    Stage(
        "sft",
        4,
        "sft",
        lambda c: _built(c.sft.data),
        lambda c: unbuilt(c.sft.data),
        apart=True,
        trains=True,
    ),
    Stage("revise", 4, "revise", lambda c: ["sft"], _revise_data, True, Constitution.revising),
    Stage(
        "sl_cai",
        4,
        "sft",
        lambda c: [*_starts("sl_cai")(c), "revise", *_built(helpful_data(c))],
        lambda c: unbuilt(helpful_data(c)),
        True,
        trains=True,
    ),
    Stage(
        "label",
        2,
        "label",
        _labelled_from,
        _label_data,
        True,
        Constitution.comparing,
    ),
    Stage("dpo", 5, "dpo", _optimised_from, trains=True),
    Stage("evaluate", 5, "evaluate", _evaluated, _evaluate_data),
    Stage(
        "report",
        6,
        "report",
        lambda c: [
            *_built([*c.sft.data, *helpful_data(c)]),
            *(stage.name for stage in stages(c) if stage.name not in ("build", "report")),
        ],
    ),
)

ROLES = dict(
    zip(ASKING, ("teacher", "critic", "judge", "judge"), strict=True)
)  # of the sections' own models


@dataclass(frozen=True)
class Step:
    """One stage's place in the plan."""

    stage: Stage
    state: str  # done | partial | run | blocked
    why: str
    key: str | None  # None while an input has not run
    ingredients: dict[str, Any]
    manifest: Manifest | None


def ingredients(stage: Stage, config: Config, constitution: Constitution) -> dict[str, Any]:
    """Everything that decides what a stage writes, but for its inputs' outputs. JSON types only."""
    from cai.models.source import fingerprint

    own = without_runtime(settings(stage, config))
    if stage.section == "dpo" and stage.round == 1:
        del own["reference"]  # the policy is the first model
    parts: dict[str, Any] = {"version": stage.version, "seed": config.seed, stage.section: own}
    parts["data"] = {
        name: sources.fingerprint(name, config.data[name]) for name in stage.data(config)
    }
    if stage.apart:
        parts["held_out"] = {
            name: sources.fingerprint(name, config.data[name]) for name in suite_data(config)
        }
    if stage.rules is not None and (stage.section != "label" or config.label.kind in JUDGED):
        parts["constitution"] = stage.rules(constitution)
    for name, role in ROLES.items():
        if stage.section == name.split(".")[0] and (other := lookup(config, name).model):
            parts[role] = fingerprint(other)
    if stage.name == "evaluate":
        others = [name for name in evaluated_models(config) if name not in own_models(config)]
        parts["others"] = {name: fingerprint(other_model(name)) for name in others}
        if files := [task for task in config.evaluate.lm_eval if Path(task).is_file()]:
            parts["tasks"] = {task: file_digest(Path(task)) for task in files}
        if config.evaluate.wins:
            parts["constitution"] = Constitution.comparing(constitution)
    if stage.name != "report":
        parts["model"] = fingerprint(config.model)
        parts["engine"] = without_runtime(config.engine)
    return plain(parts)


def stages(config: Config) -> list[Stage]:
    """The run's stages: `build` only where it is asked for, and after dpo the further rounds: label2, dpo2, ..."""
    found = []
    for stage in STAGES:
        if stage.name != "build" or builds(config):
            found.append(stage)
        if stage.name == "dpo":
            found += [later for number in range(2, config.rounds + 1) for later in _round(number)]
    return found


def _round(number: int) -> list[Stage]:
    label, dpo = (stage for stage in STAGES if stage.name in ("label", "dpo"))
    label = replace(
        label,
        inputs=partial(_labelled_from, number=number),
        data=partial(_label_data, number=number),
    )
    dpo = replace(dpo, inputs=partial(_optimised_from, number=number))
    return [replace(one, name=in_round(one.name, number), round=number) for one in (label, dpo)]


def settings(stage: Stage, config: Config) -> Any:
    """The stage's section of the config. A later round labels the next prompts, and trains on no pairs of people's."""
    own = lookup(config, stage.section)
    if stage.section == "evaluate":
        return replace(own, models=evaluated_models(config))
    if stage.section == "label" and stage.round > 1:
        return replace(
            own,
            human=None,
            prompts=_next(own.prompts, stage),
            benign=own.benign and _next(own.benign, stage),
        )
    return own


def _next(chosen: Prompts, stage: Stage) -> Prompts:
    """The prompts of the stage's round."""
    taken = (stage.round - 1) * (chosen.limit or 0)  # with several rounds it is set: see rules.py
    return replace(chosen, offset=chosen.offset + taken)


def plan_run(config: Config, run: Run) -> list[Step]:
    """Every stage with its state and why. Reads manifests and small files; loads no model."""
    constitution = Constitution.load(config.constitution)
    outputs: dict[str, str | None] = {}
    steps: list[Step] = []
    for stage in stages(config):
        step = step_of(stage, config, run, constitution, outputs)
        outputs[stage.name] = step.manifest.output if step.manifest else None
        steps.append(step)
    return steps


def step_of(
    stage: Stage,
    config: Config,
    run: Run,
    constitution: Constitution,
    outputs: dict[str, str | None],
) -> Step:
    own = ingredients(stage, config, constitution)
    inputs = {name: outputs[name] for name in stage.inputs(config)}
    waiting = [name for name, output in inputs.items() if output is None]
    last = run.latest(stage.name)
    if waiting:
        why = _changes(last.ingredients, own) if last else []
        text = (
            f"stale: {'; '.join(why)}"
            if why
            else f"{'again ' if last else ''}after {', '.join(waiting)}"
        )
        return Step(stage, "run", text, None, own, None)
    everything = own | {"inputs": inputs}
    key = digest(everything)
    if manifest := run.manifest(stage.name, key):
        return Step(stage, "done", _took(manifest.seconds), key, everything, manifest)
    if partial := _partial(run.folder(stage.name, key)):
        return Step(stage, "partial", partial, key, everything, None)
    if last is None:
        return Step(stage, "run", "not run yet", key, everything, None)
    why = _changes(last.ingredients, everything) or [
        "another version of cai has other settings for it"
    ]  # null ones
    return Step(stage, "run", f"stale: {'; '.join(why)}", key, everything, None)


def trained(config: Config, run: Run) -> dict[str, Manifest]:
    """The run's models that are done, in the order of training."""
    found = {name: run.latest(name) for name in own_models(config)[1:]}
    return {name: manifest for name, manifest in found.items() if manifest}


def _partial(folder: Path) -> str | None:
    if not (folder / "work").is_dir():
        return None
    try:
        progress = json.loads((folder / "scratch" / "progress.json").read_text())
        return f"{progress['done']}/{progress['total']} {progress['unit']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "started"


def _took(seconds: float) -> str:
    return f"took {seconds / 60:.1f} min" if seconds >= 60 else f"took {seconds:.1f} s"


def _changes(before: Any, after: Any) -> list[str]:
    """What differs between two sets of ingredients, in a person's words. At most four, then a count."""
    found = [
        _sentence(path, old, new) for path, old, new in _differences(plain(before), plain(after))
    ]
    return found if len(found) <= 4 else [*found[:3], f"and {len(found) - 3} more"]


def _differences(
    before: Any, after: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            if path or key != "inputs" or "inputs" in after:
                yield from _differences(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path, before, after


def _sentence(path: tuple[str, ...], before: Any, after: Any) -> str:
    name = ".".join(path)
    if path[:2] == ("constitution", "principles"):
        verb = "is new" if before is None else "was removed" if after is None else "changed"
        return f"principle {path[2]} {verb}"
    if path == ("constitution",):
        return f"it {'reads' if before is None else 'no longer reads'} the constitution"
    if path[0] == "constitution":
        return f"the constitution's {path[1]} changed"
    if path[0] == "inputs" and None in (before, after):
        return f"it {'reads' if before is None else 'no longer reads'} {path[1]}"
    if path[0] == "inputs":
        return f"{path[1]} gave other output"
    if path[0] in ("data", "held_out", "model"):
        return f"{path[0]} {path[1] if len(path) > 1 else ''} changed".replace("  ", " ")
    if path == ("version",):
        return f"cai's code for it changed (version {before} -> {after})"
    return f"{name} {json.dumps(before)} -> {json.dumps(after)}"
