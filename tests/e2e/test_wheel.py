"""The wheel carries conf/ and principles/.

It plans from another folder in an environment of its own."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_plans_from_another_folder(tmp_path: Path):
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path / "dist",
        ROOT,
        cwd=tmp_path,
    )
    wheel = next((tmp_path / "dist").glob("constitutional_ai-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "cai/conf/config.yaml",
        "cai/principles/harmlessness.yaml",
        "cai/data/seed/instructions.jsonl",
    ):
        assert name in names
    assert "cai/report/templates/report.html.j2" in names and not any(
        name.startswith("tests/") for name in names
    )

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    # the dependencies come from this environment; the editable install's own path file is not
    # followed from there
    own = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--quiet",
        wheel,
        cwd=tmp_path,
    )

    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "principles").mkdir(parents=True)
    (elsewhere / "principles" / "mine.yaml").write_text(
        "extends: harmlessness.yaml\nonly: [privacy]\n"
    )
    where = run(python, "-c", "import cai.paths; print(cai.paths.shipped('conf'))", cwd=elsewhere)
    assert str(own) in where
    plan = run(python, "-m", "cai", "plan", "experiment=smoke", "constitution=mine", cwd=elsewhere)
    assert plan.split()[:2] == ["sft", "run"]
    assert "quickstart" in run(python, "-m", "cai", "run", "--help", cwd=elsewhere)

    assert "cai plan experiment=mine" in run(python, "-m", "cai", "init", "demo", cwd=elsewhere)
    plan = run(python, "-m", "cai", "plan", "experiment=mine", cwd=elsewhere / "demo")
    assert plan.split()[:2] == ["sft", "run"]
