"""A chat template for a model that has none or is to have another: its end of turn, its markers, their embeddings."""

import contextlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from cai.dialogue import TEMPLATES
from cai.errors import UsageError, nearest

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
        raise UsageError(f"model.template={name}: neither {' nor '.join(TEMPLATES)} nor a .jinja file{hint}")
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
        raise UsageError(f"{key}: the chat template writes no end of turn after an answer, e.g. {{{{ eos_token }}}}")


def _after_answer(tokenizer: Any, key: str) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(SAMPLE, tokenize=False).partition(ANSWER)[2]
    except TemplateError as error:
        raise UsageError(f"{key}: the chat template can't be rendered: {error}") from None


def adopt_markers(tokenizer: Any) -> list[int]:
    """Adds the markers that a given template writes and the vocabulary lacks, as special tokens, and returns their ids.

    A template that the model brought is left as it is: where its markers are plain text, the model has learnt them so.
    """
    from jinja2 import TemplateError

    if GIVEN not in tokenizer.chat_template:
        return []
    texts = [tokenizer.apply_chat_template(SAMPLE, tokenize=False, add_generation_prompt=True)]
    with contextlib.suppress(TemplateError):  # some know no system message
        system = {"role": "system", "content": "Be brief."}
        texts.append(tokenizer.apply_chat_template([system, *SAMPLE], tokenize=False))
    written = dict.fromkeys(marker for text in texts for marker in MARKER.findall(text))
    missing = [marker for marker in written if marker not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(missing)


def embed_markers(model: Any, added: list[int]) -> None:
    """Gives adopted markers the mean of all other embeddings (Hewitt 2021), where need be in a larger vocabulary."""
    import torch

    if not added:
        return
    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[added] = layer.weight[: min(added)].mean(0)


def training_markers(model: Any, added: list[int], peft: dict[str, Any]) -> dict[str, Any]:
    """peft.LoraConfig's arguments, which train adopted markers too: an adapter leaves embeddings as they are.

    Rows of an untied output layer stay: the markers stand before turns, where nothing is learnt.
    """
    name = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    name = name.rpartition(".")[2]
    trained = [*(peft.get("modules_to_save") or ()), *(peft.get("target_modules") or ())]
    return peft if not added or name in trained else {"trainable_token_indices": {name: added}} | peft


def pass_bias_on(model: Any) -> None:
    """trl reads the bias of the output layer, which peft's wrapper around one that is tied to markers lacks."""
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = head.original_module.bias
