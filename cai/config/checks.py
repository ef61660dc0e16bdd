"""What must hold between settings. What one setting may be stands in schema.py."""

from collections.abc import Callable, Sequence

from cai.config.check_data import (
    check_build,
    check_data_names,
    check_helpful,
    check_labelled,
    check_made_names,
    check_weights,
)
from cai.config.check_evaluation import (
    check_attacks,
    check_measures,
    check_models,
    check_shots,
    check_wins,
)
from cai.config.check_machines import check_machines, check_served_models, check_shares
from cai.config.check_training import check_adapter, check_benign, check_rounds, check_tuning
from cai.config.explain import at, must_be_one_of
from cai.config.kinds import is_number, kind_at
from cai.config.launcher import check_launcher
from cai.config.libraries import check_libraries
from cai.config.names import MODEL_SECTIONS, own_models
from cai.config.schema import Config, ModelConfig
from cai.config.templates import check_templates
from cai.config.types import lookup
from cai.errors import UsageError
from cai.redact import redact
from cai.text import well_formed


def check(config: Config, overrides: Sequence[str] = ()) -> None:
    """Raises UsageError at the first pair of settings that do not fit.

    An override (of the command line) or a line in conf/ is named as what set the value.
    """
    for check_settings in CHECKS:
        check_settings(config, overrides)


def check_values(value: object, overrides: Sequence[str], key: str = "") -> None:
    """Refuses secrets, halves of characters, numbers that are not finite, and `true` for a number.

    They may stand anywhere in plain containers.
    """
    children = value.items() if isinstance(value, dict) else ()
    for name, child in enumerate(value) if isinstance(value, list) else children:
        check_values(child, overrides, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and redact(value) != value:
        raise UsageError(
            f"{redact(key)} holds a secret, and a configuration is kept in files: put it into an "
            "environment variable (server.key takes the NAME of one; the hub's own is HF_TOKEN)"
        )
    for text in (value, key):
        if isinstance(text, str) and well_formed(text) != text:
            raise UsageError(
                f"{well_formed(str(at(key, overrides)))}: holds half a surrogate pair, or bytes "
                "that are not UTF-8; write the whole character"
            )
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise UsageError(f"{at(key, overrides, value)}: must be a finite number")
    # pydantic reads it as 1
    if isinstance(value, bool) and is_number(kind_at(key)):
        raise UsageError(f"{at(key, overrides, str(value).lower())}: must be a number")


def check_choices(config: Config, overrides: Sequence[str]) -> None:
    """The choices that are narrower than their type."""
    choices = {
        "sft.start": ["base"],
        "sft.revisions": ["none"],
        "sft.helpful": ["data"],
        "sl_cai.revisions": ["last", "all"],
        "evaluate.judge.name": own_models(config),
    }
    for key, allowed in choices.items():
        value = lookup(config, key)
        if value not in allowed:
            raise UsageError(f"{at(key, overrides, value)}: {must_be_one_of(value, allowed)}")


def check_licences(config: Config, overrides: Sequence[str]) -> None:
    for key in ("model", *(f"{section}.model" for section in MODEL_SECTIONS)):
        if (model := lookup(config, key)) is not None:
            check_licence(model, key)


def check_licence(model: ModelConfig, key: str) -> None:
    """Raises UsageError where the model has terms that nobody has accepted."""
    if model.terms is not None and not model.accept_license:
        raise UsageError(
            f"{key}: {model.name} is not free software. Its licence says what it and the "
            "models tuned from it may be used for and what goes with them when they are "
            f"passed on. Read {model.terms}; {key}.accept_license=true says that you accept it"
        )


CHECKS: list[Callable[[Config, Sequence[str]], None]] = [
    check_choices,
    check_libraries,
    check_data_names,
    check_templates,
    check_licences,
    check_weights,
    check_helpful,
    check_made_names,
    check_build,
    check_shots,
    check_attacks,
    check_models,
    check_measures,
    check_wins,
    check_adapter,
    check_tuning,
    check_rounds,
    check_benign,
    check_labelled,
    check_served_models,
    check_launcher,
    check_machines,
    check_shares,
]
