"""A chat template renders a dialogue alike in every stage of a run, on whatever day that runs."""

import re
from datetime import date
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError, nodes

from cai.errors import UsageError
from cai.models.chat_template import GRAMMAR, change_template

if TYPE_CHECKING:  # it would load torch
    from transformers import PreTrainedTokenizerBase

# The day that it is for every template: what Llama 3's own say where they know no date.
TODAY = date(2024, 7, 26)

DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")

MOVING = "strftime_now"  # transformers' function that gives today's date

RANDOM = ("random", "lipsum")  # a filter and a function of Jinja's that draw


def steady(tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
    """Puts one fixed date wherever the template writes today's (Llama 3.2, gpt-oss).

    A published folder gets the template as the model brought it (`as_brought`). Raises UsageError
    where the template draws at random, or a date in a format that it computes.
    """
    change_template(tokenizer, lambda text: _with_fixed_date(text, model))


def as_brought(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Undoes `steady`: who serves the model has the day of the answer."""
    change_template(tokenizer, lambda text: ORIGINALS.get(text, text))


ORIGINALS: dict[str, str] = {}  # a template with the fixed date -> the one that it was made of


def _with_fixed_date(text: str, model: str) -> str:
    fixed = DATE_CALL.sub(lambda call: f'"{TODAY.strftime(call["format"])}"', text)
    try:
        template = GRAMMAR.parse(fixed)
    except TemplateSyntaxError:
        return text  # rendering it says why
    calls = [call.node for call in template.find_all(nodes.Call)]
    names = [node.name for node in calls if isinstance(node, nodes.Name)]
    names += [node.name for node in template.find_all(nodes.Filter)]
    if moving := [name for name in names if name == MOVING or name in RANDOM]:
        raise UsageError(
            f"{model}: its chat template uses {moving[0]}, so that it would write the same "
            "dialogue otherwise in each stage; set model.template to one that does not"
        )
    if fixed != text:
        ORIGINALS[fixed] = text
    return fixed
