"""Known vulnerabilities of pinned versions, from a copy of the advisories on this machine.

    python .ci/advisories.py COPY constraints.txt ...

COPY is a folder or a zip with advisories in OSV's format, YAML or JSON: a clone of
https://github.com/pypa/advisory-database, or OSV's own zip for PyPI. pip-audit asks a server.
"""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

Pins = dict[str, Version]
Advisory = dict[str, Any]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick where it was built


def read_pins(file: Path) -> Pins:
    """`name==version` lines of a constraint file or a lock."""
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            pin = Requirement(line.partition("#")[0].removesuffix("\\").strip())
        except InvalidRequirement:  # an option, a hash, an empty line
            continue
        if (version := str(pin.specifier)).startswith("=="):
            pins[canonicalize_name(pin.name)] = Version(version.removeprefix("=="))
    return pins


def read_advisories(copy: Path) -> Iterator[Advisory]:
    """Every advisory of a folder or a zip."""
    if copy.is_dir():
        for path in sorted(copy.rglob("*")):
            if path.is_file():
                yield from _parse(path.name, path.read_bytes())
    else:
        with zipfile.ZipFile(copy) as archive:
            for name in sorted(archive.namelist()):
                yield from _parse(name, archive.read(name))


def _parse(name: str, content: bytes) -> Iterator[Advisory]:
    if name.endswith(".json"):
        advisory = json.loads(content)
    elif name.endswith((".yaml", ".yml")):
        advisory = yaml.load(content, LOADER)  # noqa: S506 - a safe loader
    else:
        return
    if isinstance(advisory, dict) and "affected" in advisory and not advisory.get("withdrawn"):
        yield advisory


def is_affected(version: Version, affected: dict[str, Any]) -> bool:
    """Whether OSV's `affected` of one package holds the version: in its list, or in a range."""
    if any(_version(text) == version for text in affected.get("versions", [])):
        return True
    ranges = (entry for entry in affected.get("ranges", []) if entry["type"] == "ECOSYSTEM")
    return any(_in_range(version, entry["events"]) for entry in ranges)


def _in_range(version: Version, events: list[dict[str, str]]) -> bool:
    """OSV's own rule: the last event that the version has passed decides."""
    bounds = [(_version(text), kind) for event in events for kind, text in event.items()]
    inside = False
    for bound, kind in sorted(bounds, key=lambda pair: pair[0] or Version("0.dev0")):
        if kind == "introduced":
            inside = inside or bound is None or version >= bound
        elif bound is not None and (version > bound or (kind == "fixed" and version == bound)):
            inside = False
    return inside


def _version(text: str) -> Version | None:
    """None for what is no version, and for OSV's 0, which is before all."""
    try:
        return Version(text) if text != "0" else None
    except InvalidVersion:
        return None


def _summary(advisory: Advisory) -> str:
    lines = (advisory.get("summary") or advisory.get("details") or "").splitlines()
    return lines[0][:100] if lines else ""


def main(copy: Path, files: list[Path]) -> int:
    """Prints a line for each vulnerability; 1 where there is one, 2 where the copy is empty."""
    pins = {name: version for file in files for name, version in read_pins(file).items()}
    read, found = 0, set()
    for advisory in read_advisories(copy):
        read += 1
        for affected in advisory["affected"]:
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            is_pinned = package.get("ecosystem") == "PyPI" and name in pins
            if is_pinned and is_affected(pins[name], affected):
                found.add((name, advisory["id"], _summary(advisory)))
    if not read:
        print(f"{copy} holds no advisories in OSV's format", file=sys.stderr)
        return 2
    for name, identifier, summary in sorted(found):
        print(f"{name} {pins[name]}: {identifier} {summary}".rstrip())
    print(f"{len(pins)} versions, {read} advisories, {len(found)} vulnerabilities", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]]))
