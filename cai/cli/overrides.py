"""What every verb that takes overrides does with them first."""

import logging
from collections.abc import Sequence

from cai.config.as_typed import repeated
from cai.config.compose import words_are_overrides
from cai.observe.log import say


def check_overrides(words: Sequence[str], verbs: Sequence[str] = ()) -> None:
    """Says where one override undoes another. Raises UsageError on a word that is none."""
    words_are_overrides(words, verbs)
    for sentence in repeated(words):
        say(f"WARNING: {sentence}", logging.WARNING)
