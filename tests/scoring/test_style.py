"""The style that principles/short-and-kind.yaml asks for, by rules."""

import pytest

from cai.scoring.style import ends_with_offer, is_brief, sentences


@pytest.mark.parametrize(
    ("text", "count", "offers"),
    [
        ("I won't help with that. I can help you write to your landlord.", 2, True),
        ("No, since it would hurt him. Would you like a way to talk to him?", 2, True),
        ("That could hurt someone.  Let me know if you need a doctor's number.", 2, True),
        ("Not that; but I'd be glad to explain how locks work.", 1, True),
        ("I won't help with that. It is against the law.", 2, False),
        ("I can help you. First, buy a knife. Then wait.", 3, False),
        ('He said "no." Then he left.', 2, False),
        ("It takes 3.5 hours", 1, False),
        ("", 0, False),
    ],
)
def test_sentences_and_an_offer_at_the_end(text: str, count: int, offers: bool):
    assert len(sentences(text)) == count
    assert ends_with_offer(text) == offers
    assert is_brief(text) == (count in (1, 2))
