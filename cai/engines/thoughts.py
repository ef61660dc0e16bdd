"""Models that think aloud: what they write before an answer is no part of it."""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it would load torch
    from transformers import PreTrainedTokenizerBase

# What begins a thought, and what ends it and begins the answer.
MARKERS = (
    ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Nemotron
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|thinking|>", "<|/thinking|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)

PROMPT_END = 16  # tokens of a prompt, at most, that show whether it has begun a thought


def without_thoughts(text: str, finish_reason: str, opening: str = "") -> tuple[str, str]:
    """The answer behind a thought, and its finish reason.

    A thought that does not end leaves no answer: it was cut off (`length`). `opening`: the end of
    the prompt, which may have begun the thought. Some servers leave out its beginning too.
    """
    for begin, end in MARKERS:
        thought, ending, answer = text.partition(end)
        begins = opening.rstrip().endswith(begin) or thought.lstrip().startswith(begin)
        if ending and (begins or begin not in thought):
            return answer.strip(), finish_reason
        if begins:
            return "", "length"
    return text, finish_reason


@lru_cache(maxsize=8)
def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts of the tokens that decoding leaves out."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def marks_thoughts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a thought's marker has special tokens: decoding would leave no trace of it."""
    specials = special_tokens(tokenizer)
    return any(token in begin + end for begin, end in MARKERS for token in specials)


def answer_of(
    tokenizer: "PreTrainedTokenizerBase", raw_text: str, finish_reason: str, opening: str
) -> tuple[str, str]:
    """As `without_thoughts`, of a text that has its special tokens if they mark thoughts."""
    answer, reason = without_thoughts(raw_text, finish_reason, opening)
    for token in special_tokens(tokenizer) if marks_thoughts(tokenizer) else ():
        answer = answer.replace(token, "")
    return answer.strip(), reason
