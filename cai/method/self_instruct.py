"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): new instructions from a few."""

import random
import re
from collections.abc import Iterable, Sequence

from cai.messages import Dialogue, user
from cai.text import repeats, words, words_rouge_l

MIN_WORDS, MAX_WORDS = 4, 150  # of an instruction (section 2.2 and the authors' code)

REQUESTED = 8  # new instructions in one request

# a model of text can't do what these speak of
BEYOND_TEXT = frozenset(
    """
    attached attachment audio chart charts diagram diagrams flowchart graph graphs image images
    photo photos photograph picture pictures screenshot video videos
    """.split()  # noqa: SIM905 - a list of 19 strings reads worse
)

# "9. ", "9) ", "**9.** ", "Task 9: " at the beginning of a line
NUMBER = re.compile(
    r"^[ \t]*[*#]*[ \t]*(?:task[ \t]+)?(\d{1,3})[.):][*]*[ \t]+(?=\S)", re.MULTILINE | re.IGNORECASE
)


def draw_examples(
    seeds: Sequence[str],
    written: Sequence[str],
    seed_count: int,
    written_count: int,
    rng: random.Random,
) -> list[str]:
    """The instructions that a request shows, in random order: seeds, and some written before.

    Seeds stand in for instructions that are not written yet (section 2.2).
    """
    from_written = rng.sample(written, min(written_count, len(written)))
    seed_count += written_count - len(from_written)
    examples = rng.sample(seeds, min(seed_count, len(seeds))) + from_written
    rng.shuffle(examples)
    return examples


def list_request(examples: Sequence[str]) -> Dialogue:
    """Asks for more instructions, numbered on from the examples."""
    return (
        user(
            "Here is a list of tasks that people have given to an assistant.\n\n"
            f"{numbered(examples)}\n\n"
            f"Continue the list with {REQUESTED} more tasks, numbered from {len(examples) + 1}. "
            "Let them differ in kind and in subject from these and from each other. Each must make "
            "sense on its own, contain the text that it is about, and be answered in writing. "
            "Write the tasks alone, without answers."
        ),
    )


def numbered(texts: Sequence[str]) -> str:
    """A list as read_list reads it."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def read_list(text: str) -> list[str]:
    """The entries of a numbered list, whatever its first number and whatever stands before it.

    Only the next number begins the next entry, so a numbered list within an entry stays there.
    """
    numbers: list[re.Match[str]] = []
    for match in NUMBER.finditer(text):
        if not numbers or int(match[1]) == int(numbers[-1][1]) + 1:
            numbers.append(match)
    ends = [*(match.start() for match in numbers[1:]), len(text)]
    bounds = zip(numbers, ends, strict=False)  # without numbers there is an end all the same
    return [text[match.end() : end].strip(" \t\r\n*") for match, end in bounds]


def instruction_fault(text: str) -> str | None:
    """Why an instruction is no use, whatever else there is: short, long, not_text. Else None."""
    instruction_words = words(text)
    if len(instruction_words) < MIN_WORDS:
        return "short"
    if len(instruction_words) > MAX_WORDS:
        return "long"
    return None if BEYOND_TEXT.isdisjoint(instruction_words) else "not_text"


def answer_fault(text: str, finish_reason: str) -> str | None:
    """Why an answer may not be trained on, else None.

    too_long (its prompt, for the model), empty, cut_off or repetitive.
    """
    if finish_reason == "too_long":
        return "too_long"
    if not text.strip():
        return "empty"
    if finish_reason != "stop":
        return "cut_off"
    return "repetitive" if repeats(text) else None


class SeenInstructions:
    """The instructions so far. `text in seen` says whether one of them is like `text`.

    Their first lines count too: a weak model copies those without the text that they are about.
    """

    def __init__(self, texts: Iterable[str], max_similarity: float):
        self._seen: list[list[str]] = []  # the words of each
        self._max_similarity = max_similarity  # ROUGE-L from which on two are alike
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        first_line = text.split("\n", 1)[0]
        self._seen += [words(part) for part in dict.fromkeys((text, first_line))]

    def __contains__(self, text: str) -> bool:
        text_words = words(text)
        return any(self._alike(text_words, seen_words) for seen_words in self._seen)

    def _alike(self, first: list[str], second: list[str]) -> bool:
        # texts of very different lengths can't be alike, and need no comparison
        highest = 2 * min(len(first), len(second))
        if highest < self._max_similarity * (len(first) + len(second)):
            return False
        return words_rouge_l(first, second) >= self._max_similarity
