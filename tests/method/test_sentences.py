"""Principles of one sentence, in YAML, Markdown and plain text, and what they become."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.errors import UsageError
from cai.language import language
from cai.method.constitution import Constitution
from cai.method.drafts import addition, drafts_path
from cai.method.sentences import OTHER, TEMPLATES, sentence_id

TEXTS = ("critique", "revision", "comparison", "positive", "negative")
DOSES = "Never give medical doses; say who to ask."
KIND = "Speak kindly."


def load(folder: Path, text: str, name: str) -> Constitution:
    (folder / name).write_text(text, encoding="utf-8")
    return Constitution.load(str(folder / name))


def sentences(found: Constitution) -> list[str]:
    return [principle.sentence for principle in found.principles]


def problems(folder: Path, text: str, name: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(folder, text, name)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", f"- {DOSES}\n- {KIND}\n"),
        ("b.yaml", f"principles:\n  - {DOSES}\n  - sentence: {KIND}\n"),
        ("c.md", f"# Our assistant\n\n<!-- not\n\nthis -->\n* {DOSES}\n* **Speak** [kindly](x).\n"),
        ("d.md", f"{DOSES}\n\n## Tone\n{KIND}\n"),
        ("e.txt", f"{DOSES}\n{KIND}\n"),
        ("f.txt", f"1. Never give medical doses;\n   say who to ask.\n2) {KIND}\n"),
        ("g.txt", f"   • {DOSES}\n   • {KIND}\n"),
        ("h.txt", f"Never give medical doses;\nsay who to ask.\n\n{KIND}\n"),
        ("i.md", f"\ufeff- {DOSES}\r\n- {KIND}\r\n"),
    ],
)
def test_every_form_gives_the_same_principles(tmp_path: Path, name: str, text: str):
    found = load(tmp_path, text, name)
    assert [p.id for p in found.principles] == [
        "never-give-medical-doses-say-who-to-ask",
        "speak-kindly",
    ]
    assert sentences(found) == [DOSES, KIND]
    for principle in found.principles:
        texts = [getattr(principle, name) for name in TEXTS]
        assert len(set(texts)) == 5 and all(principle.sentence in text for text in texts)


def test_headings_are_tags_and_a_lists_lead_stands_before_its_items(tmp_path: Path):
    text = "# Medicines\nThe assistant never:\n\n- gives doses\n- in a shop:\n  - names a brand\n"
    found = load(tmp_path, text + "# Tone\nBe kind.\n", "a.md")
    assert sentences(found) == [
        "The assistant never: gives doses",
        "The assistant never: in a shop: names a brand",
        "Be kind.",
    ]
    assert [p.tags for p in found.principles] == [("Medicines",), ("Medicines",), ("Tone",)]
    extending = load(tmp_path, "extends: a.md\nwithout: [Medicines]\n", "b.yaml")
    assert sentences(extending) == ["Be kind."]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.md", f"{KIND}\n\n```\ncode\n```\n", "a.md:3:1: a code block is no principle"),
        ("a.md", f"{KIND}\n\n| a |\n|---|\n| b |\n", "a.md:3:1: a table is no principle"),
        ("a.md", f"{KIND}\n\n<div>x</div>\n", "a.md:3:1: a block of HTML is no principle"),
        ("a.md", "# Only a title\n", "a.md:1:1: no principle is left"),
        ("a.txt", "", "a.txt:1:1: no principle is left"),
        ("a.txt", f"{KIND}\n\nSay {{name}}.\n", "a.txt:3:1: 'sentence' has the placeholder {name}"),
        ("a.txt", f"{KIND}\n\nAsk\x1b[2J.\n", "a.txt:3:1: character U+001B is not allowed"),
        ("a.txt", f"{KIND}\n\n{KIND}\n", "a.txt:3:1: this sentence stands twice"),
        ("a.yaml", f"- {KIND}\n- Never: do it\n", "a.yaml:2:3: a sentence with a colon needs quo"),
        ("a.yaml", f"- {KIND}\n- ''\n", "a.yaml:2:3: 'sentence' is empty"),
        ("a.yaml", f"- {KIND}\n- [a]\n", "a.yaml:2:3: a principle is a mapping"),
        ("a.yaml", "- sentence: a\n  weigth: 1\n", "a.yaml:2:3: unknown key 'weigth'"),
    ],
)
def test_a_problem_is_named_with_its_line(tmp_path: Path, name: str, text: str, expected: str):
    found = problems(tmp_path, text, name)
    assert len(found) == 1 and found[0].startswith(expected)


def test_own_texts_stay_and_a_sentence_replaces_no_principle(tmp_path: Path):
    text = "extends: harmlessness\nprinciples:\n  - Crime.\n"
    text += f"  - {{id: doses, sentence: '{DOSES}', critique: 'Is there a dose?', weight: 3}}\n"
    found = load(tmp_path, text, "a.yaml")
    ids = [principle.id for principle in found.principles]
    assert ids[-2:] == ["crime-2", "doses"] and "crime" in ids
    doses = found.principles[-1]
    assert (doses.critique, doses.weight) == ("Is there a dose?", 3)
    assert DOSES in doses.revision and DOSES in doses.comparison


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("de", ["Gib niemals Dosierungen an. Sag, wer helfen kann.", "Sei nett."]),
        ("fr", ["Ne donne jamais de doses; dis à qui demander.", "Sois gentil."]),
        (
            "es",
            [
                "Nunca des dosis de medicamentos; di a quién preguntar.",
                "No culpes a la persona y habla con amabilidad.",
            ],
        ),
        ("zh", ["不要给出药物剂量；请告诉用户该问谁。", "要友善。"]),
        ("pl", ["Nigdy nie podawaj dawek leków; powiedz, kogo zapytać.", "Bądź miły."]),
    ],
)
def test_requests_are_in_the_language_of_the_sentences(
    tmp_path: Path, code: str, written: list[str]
):
    found = load(tmp_path, "\n".join(written), "a.txt")
    assert sentences(found) == written
    template = TEMPLATES.get(code, OTHER)
    for principle in found.principles:
        assert principle.revision == template.revision.replace("{}", principle.sentence)
        assert language(principle.critique.replace(principle.sentence, "")) == (
            "en" if code == "pl" else code
        )
    assert "language of the conversation" in OTHER.revision


def test_every_template_holds_the_sentence_once():
    for template in (*TEMPLATES.values(), OTHER):
        assert [text.count("{}") for text in template] == [1] * len(TEXTS)


def test_ids_are_short_and_new():
    long = sentence_id("word " * 50, ())
    assert len(long) <= 40 and sentence_id("word " * 50, {long}) == f"{long}-2"
    assert sentence_id("x" * 99, ()) == "x" * 40
    assert sentence_id("Sag's nicht: für Ärzte", ()) == "sags-nicht-fur-arzte"
    assert sentence_id("要友善", ()) != sentence_id("要诚实", ())


def test_a_draft_stands_in_place_of_the_template(tmp_path: Path):
    source = tmp_path / "a.md"
    template = load(tmp_path, f"- {DOSES}\n- {KIND}\n", "a.md").principles[0]
    entry = {"sentence": DOSES, "critique": "Is there a dose?", "by": "me", "source": "sha256:0"}
    drafts_path(source).write_text(addition(source, [entry]))
    drafted = Constitution.load(str(source)).principles[0]
    assert (drafted.critique, drafted.revision) == ("Is there a dose?", template.revision)
    changed = load(tmp_path, f"- {DOSES} Always.\n- {KIND}\n", "a.md").principles[0]
    assert "Is there a dose?" not in changed.critique and "Always." in changed.critique


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b", "a.drafts.yaml:1:1: a file of drafts is a list"),
        ("- {sentence: a, critic: b}", "a.drafts.yaml:1:17: unknown key 'critic' in a draft; did"),
        ("- {critique: b}", "a.drafts.yaml:1:3: this draft has no 'sentence'"),
        ("- sentence: a\n  critique: '{x}'", "a.drafts.yaml:2:13: 'critique' has the placeholder"),
        (
            "- {sentence: a, critique: b}\n- {sentence: a, critique: c}",
            "a.drafts.yaml:2:27: this sentence has two drafts of 'critique'",
        ),
        ("- 'a", "a.drafts.yaml:1:5: found unexpected end"),
    ],
)
def test_a_problem_of_the_drafts_is_named(tmp_path: Path, text: str, expected: str):
    (tmp_path / "a.drafts.yaml").write_text(text)
    assert problems(tmp_path, f"- {KIND}\n", "a.md")[0].startswith(expected)


def test_nothing_is_added_where_it_would_not_be_read(tmp_path: Path):
    (tmp_path / "a.drafts.yaml").write_text("  - {sentence: a}\n")
    with pytest.raises(UsageError, match="nothing can be added behind its last line"):
        addition(tmp_path / "a.md", [{"sentence": "b"}])


PIECES = [
    "- ",
    "\n",
    "\n\n",
    "# ",
    "> ",
    "1. ",
    "```",
    "<",
    "-->",
    "<!--",
    "|",
    "---",
    ":",
    ".",
    "\t",
]
PROSE = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=25).map("".join)


@settings(max_examples=max(200, settings().max_examples))
@given(PROSE)
def test_any_prose_is_a_constitution_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
):
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.md").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert Constitution.load(str(folder / "any.md")).principles
    except UsageError as error:
        assert "any.md" in str(error)
