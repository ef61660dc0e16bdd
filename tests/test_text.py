"""Words, runs of words and scripts, also of languages without spaces between words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.text import ngrams, repeats, script, word_count, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, it_is", ["don", "t", "stop", "it", "is"]),
        ("自転車 no ＡＢＣ。", ["自", "転", "車", "no", "abc"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("កម្ពុជា", ["ក", "ម្", "ពុ", "ជា"]),
        ("カレー", ["カ", "レ", "ー"]),
        ("한국어 문장", ["한국어", "문장"]),
    ],
)
def test_a_word_is_what_spaces_part_or_a_character_of_a_script_without_spaces(
    text: str, expected: list[str]
):
    assert words(text) == expected


@given(st.lists(st.sampled_from(["one", "zwei", "три", "ünf"])), st.integers(1, 9))
def test_a_run_of_words_has_its_length(text_words: list[str], length: int):
    runs = ngrams(text_words, length)
    assert runs == [
        tuple(text_words[start : start + length]) for start in range(len(text_words) - length + 1)
    ]


@pytest.mark.parametrize(("letter", "count"), [("字", 12), ("か", 16), ("ก", 24)])
def test_a_run_of_characters_holds_as_many_as_write_its_words(letter: str, count: int):
    assert ngrams([letter] * (count - 1), 8) == []
    assert ngrams([letter] * count, 8) == [(letter,) * count]


def test_a_run_of_mixed_text_is_found_wherever_it_stands():
    shared = words("用 Python 写一个程序，打开文件 and print it")
    (run, *_) = ngrams(shared, 8)
    assert run in ngrams([*words("Hello 你好"), *shared, *words("好")], 8)


def test_characters_are_counted_as_words_where_no_space_parts_them():
    assert [word_count(text) for text in ("It's two.", "我不能", "Say 你好")] == [2, 3, 3]
    assert repeats("我不会帮你做这件事。" * 5) and not repeats(
        "我不会帮你做这件事，因为它会伤害别人。"
    )


def test_kana_and_han_are_one_script():
    prompt, revision = "銀行強盗計画方法説明", "それはできません。だれかがきずつくからです。"
    assert script(prompt) == script(revision) == "cjk"
    assert (script("Привет"), script("12 + 3")) == ("cyrillic", "")
