"""One page for several evaluations, of a sweep or of several runs."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.errors import UsageError
from cai.report import page as report
from cai.report.pictures import picture
from cai.store.manifest import Manifest, ancestors, read_manifest
from cai.store.run_folder import Run

APART = ("version", "inputs", "seed")  # of a stage's ingredients: no settings


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation, and the stages that its models came from."""

    name: str
    stages: dict[str, Manifest]
    metrics: dict[str, Any]  # model -> suite -> figure -> estimate

    @property
    def seed(self) -> int:
        return self.stages["evaluate"].ingredients["seed"]

    @property
    def kinds(self) -> dict[str, str]:
        return {
            name: suite["kind"]
            for name, suite in self.stages["evaluate"].ingredients["evaluate"]["suites"].items()
        }

    @property
    def last(self) -> str:
        """The last of the run's own models, e.g. dpo."""
        return next(
            (name for name in reversed(self.metrics) if name in self.stages), list(self.metrics)[-1]
        )

    def settings(self, stages: Collection[str]) -> dict[str, str]:
        """Everything but the seed that decided what these stages made: `dpo.args.beta` -> its value as JSON."""
        return {
            ".".join(path): json.dumps(value, sort_keys=True)
            for name in stages
            for path, value in _leaves(
                {k: v for k, v in self.stages[name].ingredients.items() if k not in APART}
            )
        }


def evaluations(root: Path, name: str) -> list[Evaluated]:
    """Every finished evaluation in a run's folder, oldest first: a sweep leaves several, and they are numbered."""
    done = [
        manifest
        for folder in Run(root).finished()
        if (manifest := read_manifest(folder)) is not None
    ]
    ends = sorted((m for m in done if m.stage == "evaluate"), key=lambda m: m.started)
    if not ends:
        raise UsageError(f"{root}: the stage 'evaluate' has not finished; see `cai status {root}`")
    return [
        Evaluated(
            name if len(ends) == 1 else f"{name} {number}", ancestors(end, done), _metrics(root, end)
        )
        for number, end in enumerate(ends, 1)
    ]


def comparison_page(found: Sequence[Evaluated]) -> bytes:
    """The HTML page that compares them."""
    points = {one.name: one.metrics[one.last] for one in found}
    first = next(iter(found[0].metrics))
    kinds = {suite: kind for one in found for suite, kind in one.kinds.items()}
    suites = dict.fromkeys(s for one in found for figures in one.metrics.values() for s in figures)
    return report.render(
        "comparison.html.j2",
        found=found,
        differing=differing(found),
        picture=picture({first: found[0].metrics[first]} | points, kinds, arrows=False),
        tables={suite: dict(_tables(suite, found)) for suite in suites},
        seeds=[group for group in same_but_seed(found) if len(group) > 1],
        spread=spread,
    )


def differing(found: Sequence[Evaluated]) -> dict[str, list[str]]:
    """Setting -> its value in each evaluation ("" where it has none), for settings that are not the same in all.

    Of a stage that stands behind some evaluations only, just that is said.
    """
    stages = dict.fromkeys(name for one in found for name in one.stages)
    shared = [name for name in stages if all(name in one.stages for one in found)]
    settings = [one.settings(shared) for one in found]
    rows = {"seed": [str(one.seed) for one in found]}
    rows |= {
        f"stage {name}": ["yes" if name in one.stages else "" for one in found] for name in stages
    }
    rows |= {
        key: [one.get(key, "") for one in settings]
        for key in dict.fromkeys(key for one in settings for key in one)
    }
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def same_but_seed(found: Sequence[Evaluated]) -> list[list[Evaluated]]:
    groups: dict[str, list[Evaluated]] = {}
    for one in found:
        groups.setdefault(json.dumps(one.settings(one.stages), sort_keys=True), []).append(one)
    return list(groups.values())


def spread(
    group: Sequence[Evaluated], model: str, suite: str, figure: str
) -> dict[str, float] | None:
    """Mean, lowest and highest of a figure over training runs that differ in the seed alone."""
    rows = [one.metrics.get(model, {}).get(suite, {}) for one in group]
    values = [row[figure]["value"] for row in rows if figure in row]
    return (
        {"value": sum(values) / len(values), "low": min(values), "high": max(values)}
        if values
        else None
    )


def _tables(suite: str, found: Sequence[Evaluated]) -> Iterator[tuple[str, list[str]]]:
    """Figure -> the models that have it on this suite."""
    figures = dict.fromkeys(
        f for one in found for model in one.metrics.values() for f in model.get(suite, {})
    )
    for figure in figures:
        having = (
            name
            for one in found
            for name, rows in one.metrics.items()
            if figure in rows.get(suite, {})
        )
        yield figure, list(dict.fromkeys(having))


def _metrics(root: Path, end: Manifest) -> dict[str, Any]:
    """As the stage wrote them, in the order of `evaluate.models`."""
    file = Run(root).folder("evaluate", end.key) / "out" / "metrics.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    order = [*end.ingredients["evaluate"]["models"], *found]
    return {name: found[name] for name in sorted(found, key=order.index)}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value
