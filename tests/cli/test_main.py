"""The command line as a person meets it: verbs, clear errors, exit codes."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.cli.main import VERBS, main
from cai.config.compose import compose, saved
from cai.data.parquet import read_rows
from cai.errors import CaiError, UsageError
from cai.run.plan import plan_run
from cai.store.files import write_json
from cai.store.run_folder import Run
from tests.test_imports import HEAVY

Command = Callable[..., subprocess.CompletedProcess[str]]


def process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`cai WORDS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cai", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_shows_the_verbs(tmp_path: Path):
    done = process(tmp_path, "--help")
    assert done.returncode == 0
    assert all(
        re.search(rf"^ +cai {verb}\b", done.stdout, re.MULTILINE)
        for verb in ("run", "plan", "status", "show", "build-instructions")
    )


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "run"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith(f"usage: cai {verb}") and f"  cai {verb}" in text.split("example")[-1]


def test_the_help_of_verbs_loads_nothing_heavy(tmp_path: Path):
    code = f"""
import contextlib, sys
from cai.cli.main import VERBS, main
for verb in VERBS.keys() - {{"run"}}:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
print("loaded:", sorted({{*{HEAVY}}} & {{*sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr


def test_run_help_shows_hydras_groups(cai: Command):
    done = cai("run", "--help")
    assert done.returncode == 0
    assert all(
        f"{group}:" in done.stdout for group in ("experiment", "model", "engine", "launcher", "dpo")
    )


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["show", "-n", "-3"], "-n: '-3'"),
        (["show", "-n", "0"], "-n: '0'"),
        (["show", "--random", "1.5"], "--random: '1.5'"),
        (["try", "harmlessness", "--suite", "0"], "--suite: '0'"),
        (["try", "harmlessness", "--suite", "x"], "--suite: 'x'"),
        (["chat", "--max-new-tokens", "-1"], "--max-new-tokens: '-1'"),
        (["chat", "--temperature", "nan"], "--temperature: 'nan'"),
        (["plan", "--tflops", "inf"], "--tflops: 'inf'"),
    ],
)
def test_a_count_of_none_is_refused(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert f"error: argument {option}: must be a " in capsys.readouterr().err


def test_a_setting_that_is_set_twice_is_said(cai: Command):
    done = cai("plan", "experiment=smoke", "seed=1", "seed=2")
    assert done.returncode == 0
    assert done.stderr == "WARNING: seed is set twice: seed=2 holds, and seed=1 does not\n"


def test_a_plan_says_what_a_run_would_refuse_here(cai: Command, tiny_model: Path):
    model = ["model=path", f"model.path={tiny_model}"]
    done = cai("plan", "experiment=smoke", *model, "sft.peft.target_modules=[nope]")
    assert done.returncode == 0
    assert (
        "WARNING: a run would stop here: sft.peft.target_modules: the model's files have no "
        "module 'nope'" in done.stderr
    )


def test_a_launcher_of_jobs_wants_a_sweep_and_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from cai.cli import run

    words = ["experiment=smoke", "hydra/launcher=submitit_slurm"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UsageError, match="add -m"):
        run.main(words)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[slurm\]'"):
        run.main([*words, "-m"])
    assert not list(tmp_path.iterdir())


def test_check_with_a_template(cai: Command, tmp_path: Path, tiny_model: Path):
    words = ["experiment=smoke", "model=path", f"model.path={tiny_model}", "model.template=inst"]
    done = cai("plan", "--check", *words)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_plan_from_another_folder(cai: Command, tmp_path: Path):
    done = cai("plan", "experiment=smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["sft", "run", "not", "run", "yet"]
    assert not list(tmp_path.iterdir())  # a plan leaves nothing behind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plam"], "'plam' is no verb and no override; did you mean 'plan'?"),
        (["experiment=quikstart"], "did you mean 'quickstart'?"),
        (
            ["plan", "revise.round=3"],
            "unknown key 'revise.round' (override 'revise.round=3'); did you mean 'rounds'?",
        ),
        (
            ["revise.rounds=many"],
            "revise.rounds='many' (override 'revise.rounds=many'): must be a whole number",
        ),
        (["constitution=harmlesness"], "did you mean 'harmlessness'?"),
        (
            ["plan", "model.template=chatlm"],
            "neither chatml nor inst nor a .jinja file; did you mean 'chatml'?",
        ),
        (["plan", "model.template=no.jinja"], "model.template=no.jinja: can't be read"),
        (["model=path", "model.path=nowhere"], "model.path: nowhere holds no model"),
        (
            ["sft.data=[sead]"],
            "names the data set 'sead', which is not there; did you mean 'seed'?",
        ),
        (
            ["+sft.args.learning_rat=1"],
            "trl.SFTConfig has no such argument; did you mean 'learning_rate'?",
        ),
        (["status", "outputs/none"], "outputs/none is no run's folder"),
        (["show"], "no run in outputs/"),
        (
            ["hydra.callbacks.a._target_=os.abort"],
            "cai runs nothing that a configuration names (_target_)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_word_is_one_clear_line_and_exit_code_2(
    cai: Command, words: list[str], expected: str
):
    done = cai(*words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]], ids=" ".join
)
def test_a_folder_of_configurations_can_not_name_what_is_run(
    cai: Command, tmp_path: Path, words: list[str]
):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    target = "_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [ran]}"
    (folder / "theirs.yaml").write_text(
        f"# @package _global_\nhydra:\n  callbacks: {{a: {{{target}}}}}\n"
    )
    done = cai(*words, "experiment=theirs")
    assert done.returncode == 2 and "mine/experiment/theirs.yaml:3: cai runs nothing" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_written_is_closed_to_others(tmp_path: Path):
    (tmp_path / "release.json").write_text(
        '{"a": {"prompt": "Say what is rude.", "edit_request": "Be polite."}}'
    )
    command = [
        sys.executable,
        "-m",
        "cai",
        "principles",
        "import",
        "release.json",
        "--to",
        "mine.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, umask=0o022)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.yaml").stat().st_mode & 0o777 == 0o640


def test_debug_shows_the_traceback(tmp_path: Path):
    done = process(tmp_path, "--debug", "constitution=nothing")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_malformed_principle_file_is_named_with_line_and_column(cai: Command, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nprinciples:\n  - id: a\n    critique: ''\n    revison: Rewrite.\n"
    )
    done = cai("constitution=mine.yaml")
    assert done.returncode == 2
    assert "mine.yaml:4:15: 'critique' is empty" in done.stderr
    assert (
        "mine.yaml:5:5: unknown key 'revison' in a principle; did you mean 'revision'?"
        in done.stderr
    )


def test_build_instructions_runs_that_stage_alone(cai: Command, tmp_path: Path, tiny_model: Path):
    words = [
        "build-instructions",
        "experiment=smoke",
        "engine.kind=scripted",
        "model=path",
        f"model.path={tiny_model}",
    ]
    words += ["launcher=inline", "build.target=0", "build.prompts={data: [seed], limit: 5}"]
    done = cai(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[:2] == ["will run build", "build: not run yet"]
    assert "rows built" in done.stdout
    where = done.stdout.splitlines()[-1]
    file = Path(where.removeprefix("instructions: "))
    assert len(read_rows(tmp_path / file)) == 5
    assert sorted(path.name for path in (tmp_path / "outputs/smoke/latest").iterdir()) == ["build"]
    again = cai(*words)
    assert again.stderr == "" and again.stdout.splitlines() == ["up to date: build", where]
    file = tmp_path / file
    file.write_bytes(bytes(file.stat().st_size))  # of the same size
    damaged = cai(*words)
    assert damaged.returncode == 0 and "moved to" in damaged.stderr
    assert "up to date" not in damaged.stdout and len(read_rows(file)) == 5


def test_the_status_of_an_older_run_says_what_can_be_done(cai: Command, tmp_path: Path):
    (tmp_path / "run.json").write_text('{"schema": 1, "config": {"name": "old"}}')
    done = cai("status", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "run.json is of another version of cai" in done.stderr and "`cai show`" in done.stderr


@pytest.mark.parametrize(
    "text", ["[]", "3", '"x"', "{}", '{"config": []}', '{"config": {"a": {"b": [1]}}}', "[" * 5000]
)
def test_a_damaged_run_file_is_one_clear_line(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CaiError):
        saved(tmp_path)


def test_the_status_of_a_stage_at_work_says_what_is_slow(
    cai: Command, tmp_path: Path, tiny_model: Path
):
    words = ["experiment=smoke", "model=path", f"model.path={tiny_model}", f"outputs={tmp_path}"]
    config = compose(words)
    run = Run(tmp_path / "smoke")
    step = plan_run(config, run)[0]
    assert step.key is not None
    _, scratch = run.begin("sft", step.key)
    write_json(run.root / "run.json", {"schema": 1, "config": dataclasses.asdict(config)})
    figures = {
        "server_answers_total": [({"server": "http://quick"}, 10), ({"server": "http://slow"}, 10)],
        "server_seconds_total": [({"server": "http://quick"}, 5), ({"server": "http://slow"}, 50)],
        "server_retries_total": [
            ({"server": f"http://{name}", "cause": "away"}, 3) for name in ("slow", "gone")
        ],
    }
    counts = {"done": 3, "total": 40, "unit": "rows", "pace": "9 tok/s", "figures": figures}
    write_json(scratch / "progress.json", counts)
    done = cai("status", str(run.root))
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert (
        lines[0].split() == ["sft", "partial", "3/40", "rows"] and "9 tok/s, as of" in done.stdout
    )
    gone, slow, quick = (line for line in lines if line.startswith("server"))
    assert gone == "server http://gone: no answer, 3 tries failed"
    assert slow == "server http://slow: 10 answers, 5.00 s each, 3 tries failed"
    assert quick == "server http://quick: 10 answers, 0.50 s each"
