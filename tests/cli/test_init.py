"""`cai init`: a folder that plans at once, and nothing is overwritten."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

Command = Callable[..., CompletedProcess[str]]


def test_a_new_folder_plans_at_once(cai: Command, tmp_path: Path):
    made = cai("init", "demo")
    assert made.returncode == 0 and "cai plan experiment=mine" in made.stdout
    demo = tmp_path / "demo"
    assert "outputs/" in (demo / ".gitignore").read_text()
    checked = cai("principles", "check", "mine", folder=demo)
    assert checked.stdout.startswith("mine: 5 principles"), checked.stderr
    planned = cai("plan", "experiment=mine", folder=demo)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.split()[:2] == ["sft", "run"]
    probed = cai("plan", "experiment=probed", folder=demo)
    assert probed.returncode == 0, probed.stderr
    assert [line.split()[0] for line in probed.stdout.splitlines()[:3]] == [
        "probe",
        "sft",
        "revise",
    ]
    # a setting of the folder's own experiment reaches the run
    (demo / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart]\nlabel: {kind: nonsense}\n"
    )
    for words in (["plan"], []):
        refused = cai(*words, "experiment=mine", folder=demo)
        assert refused.returncode == 2 and "label.kind" in refused.stderr


def test_the_folders_own_settings_can_not_name_what_is_run(cai: Command, tmp_path: Path):
    cai("init", "demo")
    theirs = tmp_path / "demo/conf/experiment/theirs.yaml"
    theirs.write_text("# @package _global_\nhydra: {callbacks: {a: {_target_: os.getcwd}}}\n")
    refused = cai("experiment=theirs", folder=tmp_path / "demo")
    assert refused.returncode == 2
    assert "theirs.yaml:2: cai runs nothing that a configuration names" in refused.stderr


def test_nothing_is_overwritten(cai: Command, tmp_path: Path):
    (tmp_path / "principles").mkdir()
    (tmp_path / "principles/mine.md").write_text("- Mine.\n")
    done = cai("init")
    assert done.returncode == 2
    assert "principles/mine.md is already there; nothing was written" in done.stderr
    assert (tmp_path / "principles/mine.md").read_text() == "- Mine.\n"
    assert not (tmp_path / "conf").exists()
    assert cai("init", "principles/mine.md").returncode == 1  # a file is no folder
