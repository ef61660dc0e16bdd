"""Refuses what trl's, peft's and transformers' classes would refuse, once they are loaded."""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Union

from pydantic import TypeAdapter, ValidationError

from cai.config.argument_kinds import argument_kinds, source_text
from cai.config.explain import as_written, at
from cai.config.kinds import child, choices_of, members
from cai.config.schema import Config
from cai.config.types import Arguments, OfLibrary, marks
from cai.errors import UsageError, nearest

WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
}

# lists of which one element may be written alone
ONE_OR_MORE = ("loss_type",)


# transformers' optimizers that project the gradients of named modules
PROJECTS = re.compile("galore|apollo")


class Limit(NamedTuple):
    """What an argument may be beyond its type. null is always within."""

    words: str
    holds: Callable[[Any], bool]


def _are_trackers(value: str | list[str]) -> bool:
    source = source_text("transformers/integrations/integration_utils.py")
    names = {"all", "none", *re.findall(r'^    "(\w+)": \w+Callback,$', source, re.MULTILINE)}
    return value in names if isinstance(value, str) else set(value) <= names


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _all_patterns(value: object) -> bool:
    """Of a text, and of the names of a mapping. A list has names of modules, no patterns."""
    patterns = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
    return all(map(_is_pattern, patterns))


def _are_tokens(value: object) -> bool:
    """Of a list, and of a mapping from modules to lists."""
    lists = value.values() if isinstance(value, dict) else [value]
    return all(
        isinstance(tokens, list) and all(type(n) is int and n >= 0 for n in tokens)
        for tokens in lists
    )


def _by_module(kind: type | tuple[type, ...], least: float) -> Callable[[Arguments], bool]:
    return lambda value: (
        _all_patterns(value)
        and all(
            isinstance(number, kind) and not isinstance(number, bool) and number >= least
            for number in value.values()
        )
    )


def _one_of(*choices: str) -> Limit:
    return Limit(f"one of {', '.join(choices)}", lambda value: value in choices)


def _number(words: str, holds: Callable[[float], bool]) -> Limit:
    """Of numbers: an argument may take a word too, such as "auto"."""
    return Limit(words, lambda value: isinstance(value, str) or holds(value))


ABOVE_0 = _number("a number above 0", lambda value: value > 0)
FROM_0 = _number("a number of at least 0", lambda value: value >= 0)
FROM_1 = _number("a whole number of at least 1", lambda value: value >= 1)
BELOW_1 = _number("a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)
PATTERN = Limit("a regular expression that can be read", _all_patterns)

# By the argument's name, which means the same in every class. Where it is not said here, the
# library would train nothing, without a word, or end in a traceback after hours.
LIMITS = {
    **dict.fromkeys(
        (
            "num_train_epochs",
            "learning_rate",
            "adam_epsilon",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "beta",
            "lora_alpha",
        ),
        ABOVE_0,
    ),
    **dict.fromkeys(
        (
            "weight_decay",
            "max_grad_norm",
            "warmup_steps",
            "eval_delay",
            "neftune_noise_alpha",
            "dataloader_num_workers",
            "data_seed",
        ),
        FROM_0,
    ),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_total_limit",
            "max_length",
            "pad_to_multiple_of",
            "dataset_num_proc",
            "precompute_ref_batch_size",
            "ref_model_sync_steps",
            "r",
        ),
        FROM_1,
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "lora_dropout", "label_smoothing_factor"), BELOW_1
    ),
    **dict.fromkeys(("target_modules", "exclude_modules"), PATTERN),
    "bnb_4bit_quant_type": _one_of("fp4", "nf4"),
    "bnb_4bit_compute_dtype": _one_of("float32", "bfloat16", "float16"),
    "report_to": Limit("all, none, or names of transformers' integrations", _are_trackers),
    "max_steps": Limit("a whole number of at least 1", lambda value: value >= 1 or value == -1),
    "rank_pattern": Limit("whole numbers of at least 1 by module", _by_module(int, 1)),
    "alpha_pattern": Limit("numbers of at least 0 by module", _by_module((int, float), 0)),
    "trainable_token_indices": Limit(
        "a list of tokens' numbers, or a mapping from modules to such lists", _are_tokens
    ),
}


def check_libraries(config: object, overrides: Sequence[str], above: str = "") -> None:
    """Raises UsageError on an argument that its library's class does not have, or does not take.

    `config` is a config class's instance, or a dict of such.
    """
    for key, class_name, arguments in library_sections(config, above):
        kinds = argument_kinds(class_name)
        for name, value in arguments.items() if kinds else ():
            setting = f"{key}.{name}"
            if name not in kinds:
                hint = nearest(str(name), list(kinds))
                raise UsageError(
                    f"{at(setting, overrides)}: {class_name} has no such argument{hint}"
                )
            if words := _refusal(name, kinds[name], value):
                raise UsageError(
                    f"{at(setting, overrides, as_written(value))}: {class_name} takes {words}"
                )
        optimizer = str(arguments.get("optim"))
        if PROJECTS.match(optimizer) and not arguments.get("optim_target_modules"):
            raise UsageError(
                f"{at(f'{key}.optim', overrides, optimizer)}: it works on the modules that "
                f"{key}.optim_target_modules names; set it, e.g. to all-linear"
            )


def _refusal(name: str, kind: object, value: object) -> str | None:
    """What an argument takes, in words, where it does not take `value`."""
    is_alone = name in ONE_OR_MORE and isinstance(value, str)
    if not _fits(kind, value) and not (is_alone and _fits(kind, [value])):
        return f"{_in_words(kind)} here{nearest(str(value), choices_of(kind))}"
    limit = LIMITS.get(name)
    if limit is None or value is None or limit.holds(value):
        return None
    return f"{limit.words} here"


def whole_numbers(values: Any, kind: object = Config) -> Any:
    """`values` with 1e3 as 1000 where a setting takes whole numbers alone. Plain containers."""
    if isinstance(values, dict):
        return {
            name: whole_numbers(entry, child(kind, str(name))) for name, entry in values.items()
        }
    if isinstance(values, list):
        return [whole_numbers(element, child(kind)) for element in values]
    takes_whole_alone = int in members(kind) and float not in members(kind)
    is_whole = isinstance(values, float) and values.is_integer()
    return int(values) if takes_whole_alone and is_whole else values


def library_sections(value: object, above: str = "") -> Iterator[tuple[str, str, Arguments]]:
    """Every dict of a library's arguments, with its key and the name of the library's class."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from library_sections(child, f"{above}{name}.")
    elif dataclasses.is_dataclass(value):
        for setting in dataclasses.fields(value):
            key, child = f"{above}{setting.name}", getattr(value, setting.name)
            for mark in marks(setting.type, OfLibrary) if child else ():
                yield key, mark.name, child
            yield from library_sections(child, f"{key}.")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[object]:
    return TypeAdapter(kind)


def _fits(kind: object, value: object) -> bool:
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _in_words(kind: object) -> str:
    """A type in a message: `a number`, `a list of text or null`."""
    outer, parts = typing.get_origin(kind), typing.get_args(kind)
    if outer is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if outer in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts))
    if outer is list and parts[0] is not Any:
        return f"a list of {_in_words(parts[0])}"
    return WORDS.get(outer or kind, "an object of its own")
