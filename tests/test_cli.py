"""The command line as a person meets it: verbs, clear errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cai.stages.base import read_rows


def cai(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cai", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_help_shows_the_verbs(tmp_path: Path):
    done = cai(tmp_path, "--help")
    assert done.returncode == 0
    assert all(f"cai {verb}" in done.stdout for verb in ("run", "plan", "status", "show", "build-instructions"))


def test_run_help_shows_hydras_groups(tmp_path: Path):
    done = cai(tmp_path, "run", "--help")
    assert done.returncode == 0
    assert all(f"{group}:" in done.stdout for group in ("experiment", "model", "engine", "launcher", "dpo"))


def test_check_with_a_template(tmp_path: Path, tiny_model: Path):
    words = ["experiment=smoke", "model=path", f"model.path={tiny_model}", "model.template=inst"]
    done = cai(tmp_path, "plan", "--check", *words)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_plan_from_another_folder(tmp_path: Path):
    done = cai(tmp_path, "plan", "experiment=smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["sft", "run", "not", "run", "yet"]
    assert not list(tmp_path.iterdir())  # a plan leaves nothing behind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plam"], "'plam' is no verb and no override; did you mean 'plan'?"),
        (["experiment=quikstart"], "did you mean 'quickstart'?"),
        (["plan", "revise.round=3"], "unknown key 'revise.round' (override 'revise.round=3'); did you mean 'rounds'?"),
        (
            ["revise.rounds=many"],
            "revise.rounds='many' (override 'revise.rounds=many'): input should be a valid integer",
        ),
        (["constitution=harmlesness"], "did you mean 'harmlessness'?"),
        (["plan", "model.template=chatlm"], "neither chatml nor inst nor a .jinja file; did you mean 'chatml'?"),
        (["plan", "model.template=no.jinja"], "model.template=no.jinja: can't be read"),
        (["model=path", "model.path=nowhere"], "model.path: nowhere holds no model"),
        (["sft.data=[sead]"], "names the data set 'sead', which is not there; did you mean 'seed'?"),
        (["+sft.args.learning_rat=1"], "trl.SFTConfig has no such argument; did you mean 'learning_rate'?"),
        (["status", "outputs/none"], "outputs/none is no run's folder"),
        (["show"], "no run in outputs/"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_word_is_one_clear_line_and_exit_code_2(tmp_path: Path, words: list[str], expected: str):
    done = cai(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path):
    done = cai(tmp_path, "--debug", "constitution=nothing")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_malformed_principle_file_is_named_with_line_and_column(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("name: mine\nprinciples:\n  - id: a\n    critique: ''\n    revison: Rewrite.\n")
    done = cai(tmp_path, "constitution=mine.yaml")
    assert done.returncode == 2
    assert "mine.yaml:4:15: 'critique' is empty" in done.stderr
    assert "mine.yaml:5:5: unknown key 'revison' in a principle; did you mean 'revision'?" in done.stderr


def test_build_instructions_runs_that_stage_alone(tmp_path: Path, tiny_model: Path):
    words = ["build-instructions", "experiment=smoke", "engine.kind=scripted", "model=path", f"model.path={tiny_model}"]
    words += ["build.target=0", "build.prompts={data: [seed], limit: 5}"]
    done = cai(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "build: not run yet" and "kept" in done.stdout
    file = Path(done.stdout.splitlines()[-1].removeprefix("instructions: "))
    assert len(read_rows(tmp_path / file)) == 5
    assert sorted(path.name for path in (tmp_path / "outputs/smoke/latest").iterdir()) == ["build"]
    again = cai(tmp_path, *words)
    assert again.stderr.splitlines() == ["build: up to date"] and again.stdout == done.stdout.splitlines()[-1] + "\n"
