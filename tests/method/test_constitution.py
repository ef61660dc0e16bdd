"""Principle files: the shipped ones load, and every problem is named with file, line and column."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cai.errors import UsageError
from cai.method.constitution import Constitution
from cai.method.yaml_file import MAX_BYTES
from cai.paths import shipped

PRINCIPLE = "  - {id: ID, critique: Look., revision: Mend it., comparison: Which one}\n"
PRINCIPLES = "principles:\n" + PRINCIPLE.replace("ID", "a") + PRINCIPLE.replace("ID", "b")
TURNS = "[{role: user, content: Hi}, {role: assistant, content: Go away}]"
EXEMPLAR = (
    f"exemplars:\n  - {{principle: a, dialogue: {TURNS}, critique: Rude., revision: Hello!}}\n"
)


def load(folder: Path, text: str | bytes, name: str = "mine.yaml") -> Constitution:
    (folder / name).write_bytes(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    )
    return Constitution.load(str(folder / name))


def problems(folder: Path, text: str | bytes) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def ids(found: Constitution) -> list[str]:
    return [principle.id for principle in found.principles]


@pytest.mark.parametrize(
    "file", sorted(shipped("principles").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_file_loads(file: Path):
    found = Constitution.load(file.stem)
    assert found.principles and len(set(ids(found))) == len(found.principles)


def test_harmlessness_is_large_enough_and_repeats_nothing():
    found = Constitution.load("harmlessness")
    assert len(found.principles) >= 16 and len(found.exemplars) >= 8
    texts = [text for p in found.principles for text in (p.critique, p.revision, p.comparison)]
    texts += [
        text for e in found.exemplars for text in (e.dialogue[0].content, e.critique, e.revision)
    ]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_an_empty_principle_is_named(tmp_path: Path):
    found = problems(tmp_path, f"{PRINCIPLES}\n  - {{}}\n")
    assert any("this principle has no 'critique'" in problem for problem in found), found


def test_a_file_with_everything(tmp_path: Path):
    found = load(
        tmp_path,
        "\ufeffname: ours\n"
        + PRINCIPLES.replace("id: b", "id: b, weight: 3, tags: [x, y]")
        + EXEMPLAR,
    )
    assert found.name == "ours" and ids(found) == ["a", "b"]
    assert (found.principles[1].weight, found.principles[1].tags) == (3, ("x", "y"))
    (shown,) = found.exemplars
    assert shown.principle is found.principles[0]
    assert [(m.role, m.content) for m in shown.dialogue] == [
        ("user", "Hi"),
        ("assistant", "Go away"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "1:1: a principle file is a mapping"),
        (
            "principals: []",
            "1:1: unknown key 'principals' in a principle file; did you mean 'principles'?",
        ),
        ("principles: a", "1:13: 'principles' is a list"),
        ("principles: []", "1:1: no principle is left"),
        ("principles: [{id: a}]", "1:14: this principle has no 'critique'"),
        (PRINCIPLES + "name: a\nname: b", "5:1: the key 'name' stands twice"),
        (PRINCIPLES.replace("id: b", "id: a"), "3:10: the id 'a' stands twice"),
        (PRINCIPLES.replace("id: b", "id: B"), "3:10: id 'B': use lower case letters"),
        (
            PRINCIPLES.replace("id: b", "id: b, weight: -1"),
            "3:21: 'weight' is a number from 0 to 1000000",
        ),
        (
            PRINCIPLES.replace("id: b", "id: b, weight: .nan"),
            "3:21: 'weight' is a number from 0 to 1000000",
        ),
        (PRINCIPLES.replace("id: ", "weight: 0, id: "), "1:1: every weight is 0"),
        (
            PRINCIPLES.replace("Mend it.", "'Mend {answer}.'", 1),
            "2:40: 'revision' has the placeholder {answer}",
        ),
        (
            PRINCIPLES + EXEMPLAR.replace("principle: a", "principle: c"),
            "5:17: exemplar of an unknown principle 'c'",
        ),
        (PRINCIPLES + EXEMPLAR.replace("Rude.", "''"), "5:106: 'critique' is empty"),
        (
            PRINCIPLES + EXEMPLAR.replace("role: user", "role: human"),
            "5:30: a message needs a role of system, user",
        ),
        (
            PRINCIPLES + EXEMPLAR.replace("role: user", "role: assistant"),
            "5:30: a dialogue alternates user and assistant",
        ),
        (PRINCIPLES + "only: [c]", "4:8: 'only' names 'c', which is no id and no tag"),
        (PRINCIPLES + "without: [a, b]", "1:1: no principle is left"),
        (PRINCIPLES + "extends: harmlesness", "4:10: extends: no file 'harmlesness' here"),
        (PRINCIPLES + "extends: mine.yaml", "4:10: 'mine.yaml' extends itself"),
        ("name: &n a\n", "1:7: anchors and aliases (& and *) are not allowed"),
        (
            "principles:\n\t- a",
            "2:1: found character '\\t' that cannot start any token; indent with spaces, not tabs",
        ),
        (PRINCIPLES.replace("Look.", "!!binary aGk=", 1), "2:23: tags (!!binary) are not allowed"),
        (PRINCIPLES.replace("Look.", "!mine Look", 1), "2:23: tags (!mine) are not allowed"),
        (PRINCIPLES.replace("Look.", "[a, b]", 1), "2:23: 'critique' is a list; write one text"),
        (PRINCIPLES.replace("Look.", "{a: b}", 1), "2:23: 'critique' is a mapping; write one"),
        (PRINCIPLES.replace("Look.", '"\\ud800"', 1), "'critique' holds half a surrogate pair"),
        (PRINCIPLES + EXEMPLAR.replace("Hi", '"\\udc80"'), "'content' holds half a surrogate"),
        ('extends: "\\ud800"', "1:10: 'extends' holds half a surrogate pair"),
        ("? [a]\n: b", "1:3: a key of a principle file is a text, not a list"),
        (
            PRINCIPLES
            + EXEMPLAR.replace("[{role: user", "[{role: system, content: X}, {role: user"),
            "5:30: an exemplar's dialogue has no system turn",
        ),
        ("name: 'open", "1:12: found unexpected end of stream"),
        ("name: \x07", "1: character U+0007 is not allowed"),
        ("- " * 3000, " nested too deeply"),
        (b"name: \xff", " not UTF-8 at byte 6"),
        ("#" * (MAX_BYTES + 1), " larger than 1 MiB"),
    ],
)
def test_a_problem_is_named_with_its_place(tmp_path: Path, text: str | bytes, expected: str):
    assert any(
        line.startswith("mine.yaml:") and expected in line for line in problems(tmp_path, text)
    )


def test_every_problem_is_reported_at_once(tmp_path: Path):
    text = "principals: []\nprinciples:\n"
    text += "  - {id: A, critique: '', revision: x, comparison: z}\n  - {id: b, weight: x}\n"
    places = [line.split(": ")[0] for line in problems(tmp_path, text)]
    assert places[:3] == ["mine.yaml:1:1", "mine.yaml:3:23", "mine.yaml:3:10"] and len(places) == 7


def test_extends_adds_replaces_and_selects(tmp_path: Path):
    load(tmp_path, PRINCIPLES.replace("id: b", "id: b, tags: [t]") + EXEMPLAR, "base.yaml")
    own = (
        "extends: base.yaml\nprinciples:\n"
        + PRINCIPLE.replace("ID", "c")
        + PRINCIPLE.replace("ID", "b").replace("Mend", "Fix")
    )
    found = load(tmp_path, own)
    assert ids(found) == ["a", "b", "c"] and found.principles[1].revision == "Fix it."
    assert len(found.exemplars) == 1
    assert ids(load(tmp_path, own + "only: [a, c]")) == ["a", "c"]
    without = load(tmp_path, own + "without: [a]")
    assert ids(without) == ["b", "c"] and without.exemplars == ()
    assert ids(load(tmp_path, "extends: base.yaml\nonly: [t]")) == ["b"]


def test_a_circle_of_files_is_named(tmp_path: Path):
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\n" + PRINCIPLES)
    assert problems(tmp_path, "extends: other.yaml\n" + PRINCIPLES) == [
        "other.yaml:1:10: 'mine.yaml' extends itself"
    ]


def test_draws_follow_the_weights_and_the_seed(tmp_path: Path):
    text = PRINCIPLES.replace("id: b", "id: b, weight: 3") + PRINCIPLE.replace(
        "ID", "never"
    ).replace("id:", "weight: 0, id:")
    found = load(tmp_path, text)
    drawn = [found.draw(rng).id for rng in [random.Random(5)] for _ in range(4000)]
    counts = Counter(drawn)
    assert (
        counts["never"] == 0 and 2850 < counts["b"] < 3150
    )  # 3000 expected; 150 is over five standard deviations
    rng = random.Random(5)
    assert drawn[:50] == [found.draw(rng).id for _ in range(50)]


def test_sampled_exemplars_differ():
    found = Constitution.load("harmlessness")
    shown = found.sample_exemplars(random.Random(0), 3)
    assert len(set(shown)) == 3 and shown == found.sample_exemplars(random.Random(0), 3)
    assert shown != found.sample_exemplars(random.Random(1), 3)
    assert len(found.sample_exemplars(random.Random(0), 999)) == len(found.exemplars)


PIECES = [
    "principles:",
    "exemplars:",
    "extends:",
    "only:",
    "name:",
    "id:",
    "weight:",
    "tags:",
    "critique:",
    "role:",
]
PIECES += [
    "\n",
    "\n  ",
    "\n    ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    ", ",
    "'",
    '"',
    "|\n",
    ">-",
    "---\n",
    "? ",
    "!t ",
    "#",
]
YAMLISH = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=25).map("".join)


@settings(max_examples=max(300, settings().max_examples))
@given(st.binary(max_size=60) | YAMLISH | YAMLISH.map(lambda text: PRINCIPLES + text))
@example("extends: harmlessness\n")
def test_anything_else_is_a_constitution_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
):
    folder = tmp_path_factory.getbasetemp()
    try:
        assert isinstance(load(folder, text, "any.yaml"), Constitution)
    except UsageError as error:
        assert "any.yaml" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment\n",
        "extends: .\n",
        "extends: /\n",
        f"extends: {'a' * 300}\n",
        'name: "\\UFFFFFFFF"\n',
    ],
    ids=lambda text: text[:20],
)
def test_a_principle_file_gives_principles_or_a_usage_error(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        Constitution.load(str(tmp_path / "mine.yaml"))


def test_weights_whose_sum_is_infinite_are_refused(tmp_path: Path):
    rule = "{critique: a, revision: b, comparison: c, weight: 1e308, id: "
    (tmp_path / "mine.yaml").write_text(f"principles: [{rule}a}}, {rule}b}}]")
    with pytest.raises(UsageError):
        Constitution.load(str(tmp_path / "mine.yaml")).draw(random.Random(0))


def test_an_exemplar_shows_the_replaced_principle(tmp_path: Path):
    rule = "principles: [{id: a, critique: OLD, revision: r, comparison: c}]\n"
    turns = "[{role: user, content: q}, {role: assistant, content: r}]"
    shown = f"exemplars: [{{principle: a, dialogue: {turns}, critique: c, revision: d}}]\n"
    (tmp_path / "base.yaml").write_text(rule + shown)
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n" + rule.replace("OLD", "NEW"))
    assert Constitution.load(str(tmp_path / "mine.yaml")).exemplars[0].principle.critique == "NEW"
