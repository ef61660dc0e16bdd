"""Which tokens of a dialogue are trained: the assistant's texts, each with its end of turn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from cai.messages import Message
from cai.models.chat_template import TurnEnd, apply_template, find_turn_end

TokenRow = tuple[list[int], list[int]]  # token ids and labels, equally long


class EarlierTurnsDiffer(ValueError):
    """The chat template renders a turn otherwise once more turns follow."""

    def __init__(self):
        super().__init__(
            "the chat template renders earlier turns differently when later turns follow"
        )


def token_rows(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[TokenRow]:
    """The dialogue as one row, where one mask is right for all of its answers.

    Templates of many models that think (Qwen3, gpt-oss) render an answer otherwise once another
    turn follows. Then each answer is a row of its own, behind the turns before it as the model will
    see them when it answers.

    Raises ValueError, with the template's words, where it refuses the dialogue.
    """
    try:
        return [training_tokens(tokenizer, messages)]
    except EarlierTurnsDiffer:
        trained = [place for place, message in enumerate(messages) if is_trained(message)]
    rows: list[TokenRow] = []
    for place in trained:
        earlier = [replace(message, trained=False) for message in messages[:place]]
        rows.append(training_tokens(tokenizer, (*earlier, messages[place])))
    return rows


def is_trained(message: Message) -> bool:
    return message.role == "assistant" and message.trained


def training_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> TokenRow:
    """Token ids of a whole dialogue, and its labels, -100 where nothing is trained; equally long.

    Trained are the assistant's texts, each with its end-of-turn token. What the template writes
    after that token (a line break) is not, nor is a turn that is marked as not trained.

    Raises EarlierTurnsDiffer where no mask could be right, and TemplateRefusal.
    """
    end = find_turn_end(tokenizer)
    text = apply_template(tokenizer, messages)
    if messages[-1].role == "assistant" and not end.is_written:
        text = text.removesuffix(end.tail) + end.text
    spans: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if is_trained(message):
            spans.append(_find_answer(tokenizer, messages[: place + 1], text, end))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = cast(list[int], encoded["input_ids"])
    offsets = cast(list[tuple[int, int]], encoded["offset_mapping"])
    labels: list[int] = []
    for token_id, (start, stop) in zip(ids, offsets, strict=True):
        # A token that begins before the answer is not trained. It may hold a line break of the
        # answer's that was merged with the template's.
        inside = any(first <= start < stop <= last for first, last in spans)
        labels.append(token_id if inside else -100)
    return ids, labels


def _find_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, end: TurnEnd
) -> tuple[int, int]:
    """Where the last answer of `messages` begins and ends in `text`, in characters."""
    before = apply_template(tokenizer, messages[:-1])
    prompt = apply_template(tokenizer, messages[:-1], add_generation_prompt=True)
    through = apply_template(tokenizer, messages)
    # Some generation prompts begin a thought that no answer has. Then the answer begins earlier.
    start = _common_length(prompt, through)
    if through.endswith(end.tail):
        through = through.removesuffix(end.tail) + end.text
    else:
        through = through[: through.rfind(end.text, start) + len(end.text)]
    if start < _common_length(prompt, before) or not text.startswith(through):
        raise EarlierTurnsDiffer
    return start, len(through)


def _common_length(first: str, second: str) -> int:
    """How many characters both texts begin with."""
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)
