"""Which language a text is written in, for rules that know English only."""

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from cai.text import script

ENGLISH = "en"

NO_LANGUAGE = "zxx"  # ISO 639's code for code, numbers, letters in a heap

# The probability that another language of Latin letters needs: a short English text must not be
# taken for another. Of the 3,416 texts that ship with cai it takes 17 for another language, and
# each of them holds a passage in that language.
CONFIDENT = 0.5

START = 1000  # characters that are looked at


@functools.cache
def _identifier() -> LanguageIdentifier:
    """Takes half a second and 30 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.lru_cache(1024)
def language(text: str) -> str:
    """The ISO 639 code of the text's language; "en" where no other is likely."""
    if not any(map(str.isalpha, text)):
        return ENGLISH
    start = text[:START]
    code, probability = _identifier().classify(start)
    if code == NO_LANGUAGE:
        return ENGLISH
    return code if probability >= CONFIDENT or script(start) != "latin" else ENGLISH


def is_english(text: str) -> bool:
    """Whether rules that know English only can be asked about a text."""
    return language(text) == ENGLISH
