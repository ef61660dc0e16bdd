"""Chat templates: rendering, the loss mask, and a template for a model that has none or is to have another."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from cai.errors import UsageError, nearest
from cai.messages import Message, as_dicts

GIVEN = "{# given by cai #}"  # begins a chat template that the model did not bring

MARKER = re.compile(r"<[^<>\s]+>")  # <|im_start|>, <end_of_turn>, </s>

ANSWER = "An answer."

SAMPLE = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": ANSWER}]


def template_text(name: str) -> str:
    """A chat template by name, or out of a .jinja file. Raises UsageError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".jinja"):
        hint = nearest(name, list(TEMPLATES))
        raise UsageError(
            f"model.template={name}: neither {' nor '.join(TEMPLATES)} nor a .jinja file{hint}"
        )
    try:
        text = Path(name).read_text(encoding="utf-8")
        _grammar().parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"model.template={name}: can't be read: {error}") from None
    except TemplateSyntaxError as error:
        raise UsageError(f"{name}:{error.lineno}: not a Jinja template: {error.message}") from None
    return text


def _grammar() -> Environment:
    """Jinja as transformers extends it, to find a template's errors before a model is opened."""

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(extensions=[loopcontrols, Generation])  # noqa: S701 - nothing is rendered


def give_template(tokenizer: Any, text: str, key: str) -> None:
    """Sets a chat template that the model did not bring. Answers end with the template's end-of-turn marker where the
    vocabulary has it, and else with the tokenizer's own end of sequence, which the model knows to end with.

    Raises UsageError where the template can't be rendered or writes no end of turn; `key` says whose it is.
    """
    tokenizer.chat_template = GIVEN + text
    after = _after_answer(tokenizer, key)
    if tokenizer.eos_token in after:
        return
    end = MARKER.search(after)
    if end and end[0] in tokenizer.get_vocab():
        tokenizer.eos_token = end[0]
    elif end:
        tokenizer.chat_template = GIVEN + text.replace(end[0], tokenizer.eos_token)
    if tokenizer.eos_token not in _after_answer(tokenizer, key):
        raise UsageError(
            f"{key}: the chat template writes no end of turn after an answer, e.g. {{{{ eos_token }}}}"
        )


def _after_answer(tokenizer: Any, key: str) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(SAMPLE, tokenize=False).partition(ANSWER)[2]
    except TemplateError as error:
        raise UsageError(f"{key}: the chat template can't be rendered: {error}") from None


CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

INST = (  # Mistral's; a system message stands before the human's text
    "{{ bos_token }}{% set before = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.text = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + before.text + message['content'] + ' [/INST]' }}"
    "{% set before.text = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

TEMPLATES = {"chatml": CHATML, "inst": INST}


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text that the model continues: after the generation prompt, or inside a last assistant turn."""
    last = messages[-1].role == "assistant"
    return tokenizer.apply_chat_template(
        as_dicts(messages),
        tokenize=False,
        add_generation_prompt=not last,
        continue_final_message=last,
    )


def training_tokens(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a whole dialogue and its labels: -100 outside the assistant's turns.

    Each assistant turn's text and its end-of-turn token are trained, nothing else: not what the template writes after
    the end-of-turn token (a line break), and no turn that is marked as not to be trained. Two lists of equal length.
    Raises ValueError where the template renders a turn differently once more turns follow, since no mask could then be
    right.
    """
    full = rendered(tokenizer, messages, False)
    spans = []  # characters of the assistant's turns
    for index, message in enumerate(messages):
        if message.role != "assistant" or not message.trained:
            continue
        before, upto = (
            rendered(tokenizer, messages[:index], True),
            rendered(tokenizer, messages[: index + 1], False),
        )
        if not (full.startswith(upto) and upto.startswith(before)):
            raise ValueError(
                "the chat template renders earlier turns differently when later turns follow"
            )
        ends = upto.rfind(tokenizer.eos_token, len(before))
        # a template may end turns with another token, e.g. Gemma's; what follows it is white space
        spans.append(
            (len(before), len(upto.rstrip()) if ends < 0 else ends + len(tokenizer.eos_token))
        )
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    # a token that begins before the answer (a line break that merged with the template's) is not the answer's
    inside = [any(low <= start < end <= high for low, high in spans) for start, end in places]
    return ids, [token if trained else -100 for token, trained in zip(ids, inside, strict=True)]


def rendered(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(
        as_dicts(messages), tokenize=False, add_generation_prompt=generation_prompt
    )
