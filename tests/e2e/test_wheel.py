"""Sdist and wheel, as a stranger gets them.

The sdist holds the repository, the wheel is built from it, and the wheel runs the pipeline in an
environment of its own, where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.smoke_runs import NAMES, smoke_words

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

# of the repository, and not in the sdist
FOR_GIT = {"outputs/.gitkeep", ".pre-commit-config.yaml"}


def run(*words: object, cwd: Path) -> str:
    # an environment that a stranger has: nothing points at this checkout
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    run(*build, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `cai` of a fresh environment that holds the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", show, cwd=folder).strip())
    # the dependencies come from this environment; the editable install's own path file is not
    # followed from there
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet"]
    run(*pip, wheel, cwd=folder)
    where = run(python, "-c", "import cai.paths; print(cai.paths.shipped('conf'))", cwd=folder)
    assert str(packages) in where
    return folder / "env" / "bin" / "cai"


def test_the_sdist_holds_what_the_repository_holds(dist: Path):
    """No runs, no caches, no files that git doesn't know."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("this is no checkout of git")
    tracked = set(listed.stdout.rstrip("\0").split("\0"))
    assert names == (tracked - FOR_GIT) | {"PKG-INFO"}


def test_the_wheel_holds_what_runs_and_no_more(dist: Path):
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "cai/conf/config.yaml",
        "cai/principles/harmlessness.yaml",
        "cai/data/seed/instructions.jsonl",
        "cai/report/templates/report.html.j2",
    ):
        assert name in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "cai",
        "constitutional_ai",
    }


def test_a_stranger_begins_and_runs_the_pipeline(installed: Path, tiny_model: Path, tmp_path: Path):
    """cai init demo && cd demo && cai experiment=smoke ..., without a checkout."""
    assert "cai plan experiment=mine" in run(installed, "init", "demo", cwd=tmp_path)
    demo = tmp_path / "demo"
    plan = run(installed, "plan", "experiment=mine", cwd=demo)
    assert plan.split()[:2] == ["sft", "run"]
    run(installed, *smoke_words(tiny_model), cwd=demo)
    stages = {path.name for path in (demo / "outputs" / "smoke" / "latest").iterdir()}
    assert stages >= set(NAMES)
    plan = run(installed, "plan", *smoke_words(tiny_model), cwd=demo)
    assert [line.split()[:2] for line in plan.splitlines()] == [[name, "done"] for name in NAMES]


def test_a_principle_file_of_ones_own_extends_a_shipped_one(installed: Path, tmp_path: Path):
    (tmp_path / "principles").mkdir()
    text = "extends: harmlessness.yaml\nonly: [privacy]\n"
    (tmp_path / "principles" / "mine.yaml").write_text(text)
    plan = run(installed, "plan", "experiment=smoke", "constitution=mine", cwd=tmp_path)
    assert plan.split()[:2] == ["sft", "run"]
    assert "quickstart" in run(installed, "run", "--help", cwd=tmp_path)
