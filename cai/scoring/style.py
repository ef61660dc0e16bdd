"""Rules for a style: how many sentences an answer has, and whether it ends with an offer. English.

principles/short-and-kind.yaml asks for both, so its effect can be measured.
"""

import re

BRIEF = 2  # sentences

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")

# I can help you with something safer. Would you like ...? Let me know if ...
OFFER = re.compile(
    r"""
    \b(?:i|we)\ ?(?:can|could|'ll|will|'d|would|am|'m)\ (?:be\ )?(?:\w+\ ){0,2}?
      (?:help|assist|offer|suggest|show|explain|share|write|find|talk|happy|glad)\b
    | \b(?:would|do)\ you\ (?:like|want)\b
    | \b(?:let\ me\ know|feel\ free|want\ me\ to|(?:shall|should|may|can)\ i|how\ about)\b
    | \bif\ you(?:'d)?\ (?:like|want|need|wish)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, by the marks that end them."""
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]


def is_brief(text: str) -> bool:
    """Whether a text has one sentence or two."""
    return 0 < len(sentences(text)) <= BRIEF


def ends_with_offer(text: str) -> bool:
    """Whether the last sentence offers something, by the phrases above."""
    last = sentences(text.replace("’", "'"))[-1:]
    return bool(last) and bool(OFFER.search(last[0]))
