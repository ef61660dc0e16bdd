"""Which words of a text are new, and which are gone."""

from cai.report.terminal import marked_text
from cai.report.word_diff import MOST_WORDS, word_diff


def test_words_are_marked_in_reading_order_with_the_space_behind_them():
    marks = word_diff("Take the pick and press.", "Take your key and  press.\nSlowly.")
    assert marks == [
        ("same", "Take "),
        ("removed", "the pick "),
        ("added", "your key "),
        ("same", "and  press.\n"),
        ("added", "Slowly."),
    ]
    assert marks is not None and "".join(text for kind, text in marks if kind != "removed") == (
        "Take your key and  press.\nSlowly."
    )


def test_marks_that_would_not_help_are_left_out():
    assert word_diff("the same", "the same") is None
    assert word_diff("A, b, c.", "Another text altogether.") is None
    long = "word " * MOST_WORDS
    assert word_diff(long, long + "more") is None
    assert word_diff("word", "") is None


def test_marks_can_not_steer_the_terminal():
    text = marked_text("Hello \x1b[31m there", "Hello \x1b[2J there friend")
    assert "\x1b" not in text.plain and "\ufffd[2J" in text.plain
    assert [span.style for span in text.spans] == ["red strike", "green", "green"]
