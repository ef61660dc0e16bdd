"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): new instructions from a few. Pure: no disk, no torch."""

import random
import re
from collections.abc import Iterable, Sequence

from cai.messages import Dialogue, user
from cai.text import repeats, words, words_rouge_l

FEWEST, MOST = 4, 150  # words of an instruction (section 2.2 and the authors' code)

WANTED = 8  # new instructions that one request asks for

BEYOND_TEXT = frozenset(  # a model of text can't do what these speak of
    """
    attached attachment audio chart charts diagram diagrams flowchart graph graphs image images photo photos photograph
    picture pictures screenshot video videos
    """.split()  # noqa: SIM905 - a list of 19 strings reads worse
)

ITEM = re.compile(
    r"^[ \t]*[*#]*[ \t]*(?:task[ \t]+)?(\d{1,3})[.):][*]*[ \t]+(?=\S)", re.MULTILINE | re.IGNORECASE
)


def draw(
    seeds: Sequence[str], built: Sequence[str], shown: int, shown_built: int, rng: random.Random
) -> list[str]:
    """The instructions that a request shows, in random order: `shown` seeds and `shown_built` built ones.

    Seeds stand in for built ones that are not there yet (section 2.2).
    """
    own = rng.sample(built, min(shown_built, len(built)))
    drawn = rng.sample(seeds, min(shown + shown_built - len(own), len(seeds))) + own
    rng.shuffle(drawn)
    return drawn


def list_request(shown: Sequence[str]) -> Dialogue:
    """Asks for WANTED more instructions, numbered on from those that are shown."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(shown, 1))
    return (
        user(
            f"Here is a list of tasks that people have given to an assistant.\n\n{listed}\n\n"
            f"Continue the list with {WANTED} more tasks, numbered from {len(shown) + 1}. Let them differ in kind and "
            "in subject from these and from each other. Each must make sense on its own, contain the text that it is "
            "about, and be answered in writing. Write the tasks alone, without answers."
        ),
    )


def read_list(text: str) -> list[str]:
    """The items of a numbered list, whatever its first number and whatever stands before it.

    Only the next number begins the next item, so that a numbered list within an item stays there.
    """
    starts: list[re.Match[str]] = []
    for match in ITEM.finditer(text):
        if not starts or int(match[1]) == int(starts[-1][1]) + 1:
            starts.append(match)
    bounds = [*(match.start() for match in starts), len(text)]
    return [text[match.end() : bounds[n]].strip(" \t\r\n*") for n, match in enumerate(starts, 1)]


def instruction_fault(text: str) -> str | None:
    """Why an instruction is no use, whatever else there is: short, long, or not_text. Else None."""
    found = words(text)
    if not FEWEST <= len(found) <= MOST:
        return "short" if len(found) < FEWEST else "long"
    return "not_text" if BEYOND_TEXT & set(found) else None


def answer_fault(text: str, finish_reason: str) -> str | None:
    """Why an answer may not be trained on: too_long (its prompt), empty, cut_off or repetitive. Else None."""
    if finish_reason == "too_long" or not text.strip():
        return "too_long" if finish_reason == "too_long" else "empty"
    return "cut_off" if finish_reason != "stop" else "repetitive" if repeats(text) else None


class Known:
    """The instructions that there are, to tell whether another one is new.

    Their first lines count too: a weak model copies those, and leaves out the text that they are about.
    """

    def __init__(self, texts: Iterable[str], most: float):
        self._texts: list[list[str]] = []
        self._most = most  # ROUGE-L from which on two instructions are alike
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        self._texts += [words(part) for part in dict.fromkeys((text, text.split("\n", 1)[0]))]

    def __contains__(self, text: str) -> bool:
        found = words(text)
        # texts of very different lengths can't be alike, and need no comparison
        near = (
            one
            for one in self._texts
            if 2 * min(len(one), len(found)) >= self._most * (len(one) + len(found))
        )
        return any(words_rouge_l(found, one) >= self._most for one in near)
