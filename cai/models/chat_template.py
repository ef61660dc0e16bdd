"""Chat templates: rendering, the loss mask, and setting a template that the model did not bring."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from cai.errors import UsageError, nearest
from cai.messages import Message, as_dicts, assistant, user
from cai.observe.log import say

if TYPE_CHECKING:  # transformers would load torch, and `cai plan` reads templates
    from transformers import PreTrainedTokenizerBase

CAI_PREFIX = "{# given by cai #}"  # begins a chat template that the model did not bring

MARKER = re.compile(r"<[^<>\s]+>")  # <|im_start|>, <end_of_turn>, </s>

ANSWER = "An answer."

SAMPLE = (user("A question?"), assistant(ANSWER))

# a template is a program of the model's authors: 1/0, a missing field, a file that it includes
TEMPLATES_RAISE = (
    TemplateError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

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


# Jinja as transformers extends it. It finds a template's errors before a model is opened.
GRAMMAR = Environment(extensions=[loopcontrols, GenerationTag])  # noqa: S701 - only parses


def template_text(name: str) -> str:
    """The chat template of this name, or of this .jinja file. Raises UsageError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".jinja"):
        hint = nearest(name, list(TEMPLATES))
        raise UsageError(
            f"model.template={name}: neither {' nor '.join(TEMPLATES)} nor a .jinja file{hint}"
        )
    try:
        text = Path(name).read_text(encoding="utf-8")
        GRAMMAR.parse(text)
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
    if text == CHATML and _adds_bos(tokenizer):
        text = "{{ bos_token }}" + text
    tokenizer.chat_template = CAI_PREFIX + text
    eos_token = cast(str, tokenizer.eos_token)
    ending = _render_tail(tokenizer, key)
    if eos_token in ending:
        return
    marker = MARKER.search(ending)
    if marker and marker[0] in tokenizer.get_vocab():
        eos_token = tokenizer.eos_token = marker[0]
    elif marker:
        tokenizer.chat_template = CAI_PREFIX + text.replace(marker[0], eos_token)
    if eos_token not in _render_tail(tokenizer, key):
        raise UsageError(
            f"{key}: the chat template writes no end of turn after an answer, "
            "e.g. {{ eos_token }}"
        )


def set_arguments(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, object]) -> None:
    """Gives the template's own arguments (`enable_thinking`) these values, wherever it is used."""
    lines = [f"{{% set {name} = {_as_jinja(value)} %}}" for name, value in values.items()]
    change_template(tokenizer, lambda text: "".join([*lines, text]))


def change_template(tokenizer: "PreTrainedTokenizerBase", change: Callable[[str], str]) -> None:
    """Changes the tokenizer's template, or each where it has several by name."""
    templates = cast(object, tokenizer.chat_template)
    if isinstance(templates, dict):
        templates = {name: change(text) for name, text in templates.items()}
    elif isinstance(templates, str):
        templates = change(templates)
    tokenizer.chat_template = cast(str, templates)


def _as_jinja(value: object) -> str:
    return "none" if value is None else json.dumps(value)


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the model has learnt to begin with a token of its own (Gemma is lost without)."""
    ids = cast(list[int], tokenizer("A")["input_ids"])
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends under a chat template."""

    tail: str  # what the template writes behind a dialogue's last answer
    text: str  # what is trained behind an answer: the token that ends the turn, and what precedes
    token_id: int  # the last token of `text`: what ends generation
    is_written: bool  # whether `tail` has it; else training puts it in place of the tail


def find_turn_end(tokenizer: "PreTrainedTokenizerBase", key: str = "") -> TurnEnd:
    """How this tokenizer's template ends an assistant's turn, found by rendering.

    The first run of special tokens behind the answer ends it. Where the template writes none, that
    is the special token which begins the next turn (GLM's), else the end of the sequence.
    Raises UsageError, about `key`, where the template does not write the answer.
    """
    return _find_turn_end(tokenizer, key, str(tokenizer.chat_template), str(tokenizer.eos_token))


@lru_cache(maxsize=8)
def _find_turn_end(tokenizer: "PreTrainedTokenizerBase", key: str, *changeable: str) -> TurnEnd:
    """`changeable`: what the answer depends on beside the tokenizer's vocabulary."""
    tail = _render_tail(tokenizer, key)
    special_ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    end = 0
    token_id = None
    for place in cast(list[int], tokenizer(tail, add_special_tokens=False)["input_ids"]):
        token = cast(str, tokenizer.convert_ids_to_tokens(place))
        begins_run = token_id is None
        if place in special_ids and (begins_run or tail.startswith(token, end)):
            token_id, end = place, tail.index(token, end) + len(token)
        elif not begins_run:
            break
    if token_id is not None:
        return TurnEnd(tail, tail[:end], token_id, is_written=True)
    token_id = _next_turn_id(tokenizer, special_ids)
    if token_id is None:
        token_id = cast(int, tokenizer.eos_token_id)
    text = cast(str, tokenizer.convert_ids_to_tokens(token_id))
    return TurnEnd(tail, text, token_id, is_written=False)


def _next_turn_id(tokenizer: "PreTrainedTokenizerBase", special_ids: set[int]) -> int | None:
    """The special token that stands between an answer and the human's next turn, if one does."""
    try:
        text = apply_template(tokenizer, (*SAMPLE, user("Another one?")))
    except TemplateRefusal:
        return None
    following = text.rpartition(ANSWER)[2].lstrip()
    first_id = cast(list[int], tokenizer(following, add_special_tokens=False)["input_ids"])[:1]
    return next((token_id for token_id in first_id if token_id in special_ids), None)


def turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that end an assistant's turn: what training puts last is what stops generation."""
    end_id = cast(int, tokenizer.eos_token_id)
    if tokenizer.chat_template is None:
        return [end_id]
    return list(dict.fromkeys([find_turn_end(tokenizer).token_id, end_id]))


def stop_ids(tokenizer: "PreTrainedTokenizerBase", configured: int | list[int] | None) -> list[int]:
    """Tokens that end a reply: those that the model's generation_config has, and the turn's end."""
    ids = configured if isinstance(configured, list) else [configured]
    stopping = [token_id for token_id in ids if token_id is not None]
    return list(dict.fromkeys([*stopping, *turn_end_ids(tokenizer)]))


def adopt_turn_end(tokenizer: "PreTrainedTokenizerBase", key: str) -> None:
    """Makes the token that ends an assistant's turn the tokenizer's end of sequence.

    Base models have another one there (Qwen's <|endoftext|>, Llama 3's <|end_of_text|>). Where the
    template itself writes `eos_token`, another token there would change what it writes, so it
    stays. Raises UsageError where the template does not write an answer.
    """
    end = find_turn_end(tokenizer, key)
    if end.is_written and "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = cast(str, tokenizer.convert_ids_to_tokens(end.token_id))


def _render_tail(tokenizer: "PreTrainedTokenizerBase", key: str) -> str:
    """What the template writes after an answer."""
    name = key or tokenizer.name_or_path
    try:
        text = apply_template(tokenizer, SAMPLE)
    except TemplateRefusal as error:
        raise UsageError(f"{name}: the chat template can't be rendered: {error.words}") from None
    if ANSWER not in text:
        raise UsageError(f"{name}: the chat template leaves out texts (is it of a vision model?)")
    return text.rpartition(ANSWER)[2]


class TemplateRefusal(ValueError):
    """The chat template refuses a dialogue, in these words."""

    def __init__(self, words: str):
        super().__init__(f"the chat template refuses it: {words}")
        self.words = words


def apply_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], **arguments: Any
) -> str:
    """The rendered text. Raises TemplateRefusal.

    Where the template knows no system message, its text begins the first human turn.
    """
    turns = as_dicts(messages)
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **arguments)
    except TEMPLATES_RAISE as error:
        if [message.role for message in messages[:2]] != ["system", "user"]:
            is_worded = isinstance(error, TemplateError | ValueError)
            kind = "" if is_worded else f"{type(error).__name__}: "
            raise TemplateRefusal(f"{kind}{error}") from None
        system, first, *later = messages
        joined = replace(first, content=f"{system.content}\n\n{first.content}")
        text = apply_template(tokenizer, (joined, *later), **arguments)
        _say_joined(tokenizer.name_or_path)
    return cast(str, text)


@cache
def _say_joined(name: str) -> None:
    say(
        f"{name}: its chat template knows no system message; the system text begins the first "
        "human turn",
        logging.WARNING,
    )


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The text that the model continues: a generation prompt, or a last assistant turn.

    Raises TemplateRefusal.
    """
    ends_in_answer = messages[-1].role == "assistant"
    return apply_template(
        tokenizer,
        messages,
        add_generation_prompt=not ends_in_answer,
        continue_final_message=ends_in_answer,
    )
