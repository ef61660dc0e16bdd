"""`cai principles`: check, show, and import of the two JSON layouts (with texts of our own)."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cai.cli import principles
from cai.cli.principles import import_principles
from cai.errors import UsageError
from cai.method.constitution import Constitution

RELEASE = {
    "Harmful 0": {
        "prompt": ["\n\nCritiqueRequest: Say what is harmful.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Take the harm out.\n\nRevision:",
    },
    "harmful1": {"prompt": "Say what is rude.", "edit_request": "Be polite."},
}
SWARM = {
    "constitutions": [{"critic": "Say what is harmful.", "revision": "Take the harm out."}],
    "system_chat": [
        [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Go away."},
            {"role": "user", "content": "Say what is harmful."},
            {"role": "assistant", "content": "It is rude."},
            {"role": "user", "content": "Take the harm out."},
            {"role": "assistant", "content": "Welcome."},
        ],
        [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Is it short?"},
            {"role": "assistant", "content": "Very."},
            {"role": "user", "content": "Say more."},
            {"role": "assistant", "content": "Hi there."},
        ],
    ],
}


def imported(folder: Path, content: object) -> Constitution:
    (folder / "in.json").write_text(json.dumps(content))
    (folder / "out.yaml").write_text(import_principles(folder / "in.json"))
    return Constitution.load(str(folder / "out.yaml"))


def test_the_papers_release_loses_its_labels(tmp_path: Path):
    found = imported(tmp_path, RELEASE)
    texts = [(p.id, p.critique, p.revision) for p in found.principles]
    assert texts == [
        ("harmful-0", "Say what is harmful.", "Take the harm out."),
        ("harmful1", "Say what is rude.", "Be polite."),
    ]


def test_llm_swarms_chats_become_exemplars(tmp_path: Path):
    found = imported(tmp_path, SWARM)
    assert [(p.id, p.weight) for p in found.principles] == [("principle-1", 1), ("exemplar-2", 0)]
    assert [(e.principle.id, e.critique, e.revision) for e in found.exemplars] == [
        ("principle-1", "It is rude.", "Welcome."),
        ("exemplar-2", "Very.", "Hi there."),
    ]
    assert [m.content for m in found.exemplars[0].dialogue] == ["Hello.", "Go away."]


@pytest.mark.parametrize(
    "content", [[], {}, {"a": 1}, {"a": {"prompt": "x"}}, {"constitutions": [{"critic": "x"}]}, "x"]
)
def test_another_layout_is_refused_in_one_line(tmp_path: Path, content: object):
    (tmp_path / "in.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="neither"):
        import_principles(tmp_path / "in.json")


def test_check_reports_every_problem_of_every_file(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("principles:\n  - id: A b\n    critique: ''\n")
    (tmp_path / "b.yaml").write_text("principals: []\n")
    with pytest.raises(UsageError) as caught:
        principles.main(["check", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    said = str(caught.value)
    assert "a.yaml:2:9: id 'A b'" in said and "a.yaml:3:15: 'critique' is empty" in said
    assert (
        "b.yaml:1:1: unknown key 'principals' in a principle file; did you mean 'principles'?"
        in said
    )


def test_show_prints_shares(capsys: pytest.CaptureFixture[str]):
    principles.main(["show", "company-example"])
    shown = capsys.readouterr().out
    assert "no-promises" in shown and "extremism" not in shown and "fernwood" in shown


@pytest.mark.parametrize("words", [["show"], ["show", "--texts"], ["check"]], ids=" ".join)
def test_a_principle_file_can_not_steer_the_terminal(
    tmp_path: Path, cai: Callable[..., CompletedProcess[str]], words: list[str]
):
    rule = (
        r'{id: a, critique: "\e[31m[/b]?", revision: "b\e[2J", comparison: "c", '
        r'tags: ["[/x]\e[2J"]}'
    )
    file = tmp_path / "a.yaml"
    file.write_text(
        f'name: "[/n]\\e[2J"\nprinciples: [{rule}]\n'
        + ('"\\e[2J": 1\n' if words == ["check"] else "")
    )
    done = cai("principles", *words[:1], str(file), *words[1:])
    assert done.returncode == (2 if words == ["check"] else 0), done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "�[2J" in done.stdout + done.stderr
