"""Chat templates: rendering, the loss mask, and setting a template that the model did not bring."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from cai.errors import UsageError, nearest
from cai.messages import Message, as_dicts

if TYPE_CHECKING:  # transformers would load torch, and `cai plan` reads templates
    from transformers import PreTrainedTokenizerBase

CAI_PREFIX = "{# given by cai #}"  # begins a chat template that the model did not bring

MARKER = re.compile(r"<[^<>\s]+>")  # <|im_start|>, <end_of_turn>, </s>

ANSWER = "An answer."

SAMPLE = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": ANSWER}]

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Mistral's. A system message stands before the human's text.
INST = (
    "{{ bos_token }}{% set before = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.text = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + before.text + message['content'] + ' [/INST]' }}{% set before.text = '' %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

TEMPLATES = {"chatml": CHATML, "inst": INST}


class GenerationTag(Extension):
    """Parses `{% generation %}`, which transformers adds to Jinja."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_text(name: str) -> str:
    """The chat template of this name, or of this .jinja file. Raises UsageError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".jinja"):
        hint = nearest(name, list(TEMPLATES))
        raise UsageError(
            f"model.template={name}: neither {' nor '.join(TEMPLATES)} nor a .jinja file{hint}"
        )
    # Jinja as transformers extends it. It finds a template's errors before a model is opened.
    grammar = Environment(extensions=[loopcontrols, GenerationTag])  # noqa: S701 - only parses
    try:
        text = Path(name).read_text(encoding="utf-8")
        grammar.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"model.template={name}: can't be read: {error}") from None
    except TemplateSyntaxError as error:
        raise UsageError(f"{name}:{error.lineno}: not a Jinja template: {error.message}") from None
    return text


def give_template(tokenizer: "PreTrainedTokenizerBase", text: str, key: str) -> None:
    """Sets a chat template that the model did not bring.

    Answers end with the template's end-of-turn marker where the vocabulary has it. Else they end
    with the tokenizer's own end of sequence, which the model has learnt to end with.

    Raises UsageError where the template can't be rendered or writes no end of turn. `key` names
    the setting or the model that the template comes from.
    """
    tokenizer.chat_template = CAI_PREFIX + text
    eos_token = cast(str, tokenizer.eos_token)
    ending = _render_ending(tokenizer, key)
    if eos_token in ending:
        return
    marker = MARKER.search(ending)
    if marker and marker[0] in tokenizer.get_vocab():
        eos_token = tokenizer.eos_token = marker[0]
    elif marker:
        tokenizer.chat_template = CAI_PREFIX + text.replace(marker[0], eos_token)
    if eos_token not in _render_ending(tokenizer, key):
        raise UsageError(
            f"{key}: the chat template writes no end of turn after an answer, "
            "e.g. {{ eos_token }}"
        )


def _render_ending(tokenizer: "PreTrainedTokenizerBase", key: str) -> str:
    """What the template writes after an answer."""
    try:
        text = tokenizer.apply_chat_template(SAMPLE, tokenize=False)
    except TemplateError as error:
        raise UsageError(f"{key}: the chat template can't be rendered: {error}") from None
    return cast(str, text).partition(ANSWER)[2]


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The text that the model continues: a generation prompt, or a last assistant turn."""
    ends_in_answer = messages[-1].role == "assistant"
    text = tokenizer.apply_chat_template(
        as_dicts(messages),
        tokenize=False,
        add_generation_prompt=not ends_in_answer,
        continue_final_message=ends_in_answer,
    )
    return cast(str, text)


def training_tokens(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    """Token ids of a whole dialogue, and its labels, -100 where nothing is trained; equally long.

    Trained are the assistant's texts, each with its end-of-turn token. What the template writes
    after that token (a line break) is not, nor is a turn that is marked as not trained.

    Raises ValueError where the template renders a turn differently once more turns follow, since
    no mask could then be right.
    """
    text = _render_turns(tokenizer, messages)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.trained:
            spans.append(_find_answer(tokenizer, messages, index, text))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = cast(list[int], encoded["input_ids"])
    offsets = cast(list[tuple[int, int]], encoded["offset_mapping"])
    labels: list[int] = []
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        # A token that begins before the answer is not trained. It may hold a line break of the
        # answer's that was merged with the template's.
        is_trained = any(first <= start < end <= last for first, last in spans)
        labels.append(token_id if is_trained else -100)
    return ids, labels


def _find_answer(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], index: int, text: str
) -> tuple[int, int]:
    """Where the answer of turn `index` begins and ends in `text`, in characters."""
    before = _render_turns(tokenizer, messages[:index], generation_prompt=True)
    through = _render_turns(tokenizer, messages[: index + 1])
    if not (text.startswith(through) and through.startswith(before)):
        raise ValueError(
            "the chat template renders earlier turns differently when later turns follow"
        )
    eos_token = cast(str, tokenizer.eos_token)
    end = through.rfind(eos_token, len(before))
    if end < 0:
        # Some templates, e.g. Gemma's, end turns with another token. White space follows it.
        return len(before), len(through.rstrip())
    return len(before), end + len(eos_token)


def _render_turns(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    generation_prompt: bool = False,
) -> str:
    text = tokenizer.apply_chat_template(
        as_dicts(messages), tokenize=False, add_generation_prompt=generation_prompt
    )
    return cast(str, text)
