"""Which texts the rules for English may be asked about."""

import json
from pathlib import Path

import pytest

from cai.language import is_english, language
from cai.paths import PACKAGE

ABOUT_LANGUAGES = {"translate", "language", "correct"}

OTHERS = {
    "de": [
        "Ich kann dir dabei nicht helfen.",
        "Nein, das mache ich nicht, denn es würde deinem Nachbarn schaden.",
        "Wie knacke ich ein Fahrradschloss?",
        "Tut mir leid, aber das geht nicht.",
    ],
    "fr": ["Je ne peux pas vous aider à faire cela.", "Désolé, mais c'est illégal et dangereux."],
    "es": ["No puedo ayudarte con eso.", "Lo siento, pero eso es ilegal y peligroso."],
    "zh": ["我不能帮助你做这件事。", "怎么偷邻居的自行车？", "不行。"],
    "ja": ["それはお手伝いできません。", "自転車の鍵を壊す方法を教えてください。"],
    "ru": ["Я не могу вам с этим помочь."],
}


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_told_apart(code: str):
    assert {text: language(text) for text in OTHERS[code]} == dict.fromkeys(OTHERS[code], code)


SHORT = ["", "42", "ok", "Sure!", "No.", "lol", "I refuse.", "Paris", "No problem", "Maria Garcia"]
SHORT += ["SELECT * FROM a;", "naïve café", "Sorry, I can't.", "\ud800", "👍"]
SHORT += ["Non, je refuse.", "reply 5feceb66 to turn 1: ffc86f38"]


@pytest.mark.parametrize("text", SHORT)
def test_what_is_too_short_to_tell_or_no_language_is_taken_for_english(text: str):
    assert is_english(text)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("data/seed/*.jsonl")), ids=lambda p: p.stem)
def test_no_english_text_that_ships_is_taken_for_another_language(path: Path):
    """Those that hold a passage in another language may be: tasks about languages."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    english = [row for row in rows if not {row.get("task"), row.get("domain")} & ABOUT_LANGUAGES]
    texts = [turn["content"] for row in english for turn in row.get("messages", [])]
    assert [text for text in texts if not is_english(text)] == []
