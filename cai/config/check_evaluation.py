"""What must hold between the settings of evaluate."""

from collections.abc import Sequence
from pathlib import Path

from cai.config.explain import at
from cai.config.names import ADHERENCE, evaluated_models, own_models
from cai.config.schema import Config
from cai.errors import UsageError, nearest


def check_shots(config: Config, overrides: Sequence[str]) -> None:
    for name, suite in config.evaluate.suites.items():
        shots = suite.shots
        setting = at(f"evaluate.suites.{name}.shots", overrides, shots)
        if suite.kind != "instructions" and shots != [0]:
            raise UsageError(
                f"{setting}: only a suite of kind: instructions is asked with examples"
            )
        different = shots and len(set(shots)) == len(shots)
        if not different or not all(0 <= count <= 64 for count in shots):
            raise UsageError(f"{setting}: must be different numbers between 0 and 64, e.g. [0,2]")
        if any(shots) and not suite.examples:
            raise UsageError(
                f"{setting}: examples of what? Name training data in "
                f"evaluate.suites.{name}.examples"
            )


def check_attacks(config: Config, overrides: Sequence[str]) -> None:
    for name, suite in config.evaluate.suites.items():
        setting = at(f"evaluate.suites.{name}.attacks", overrides, suite.attacks)
        if suite.attacks and suite.kind != "red_team":
            raise UsageError(f"{setting}: only a suite of kind: red_team is attacked")
        if len(set(suite.attacks)) < len(suite.attacks):
            raise UsageError(f"{setting}: name each attack once")


def check_models(config: Config, overrides: Sequence[str]) -> None:
    models, names = config.evaluate.models, own_models(config)
    setting = at("evaluate.models", overrides)
    if not models or len(set(models)) < len(models):
        raise UsageError(f"{setting}: name different models, at least one")
    for name in models:
        if name in names:
            continue
        if "/" not in name:
            raise UsageError(
                f"{setting}: '{name}' is no model{nearest(name, names)}; write "
                f"{', '.join(names)}, a folder (/path or ./path) or a hub id (owner/name)"
            )
        if config.engine.kind == "openai":
            raise UsageError(
                f"{setting}: '{name}': a server serves the run's models only; "
                "take engine=transformers"
            )


def check_wins(config: Config, overrides: Sequence[str]) -> None:
    models, wins = evaluated_models(config), config.evaluate.wins
    for pair in wins:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(models):
            first, *_, last = config.evaluate.models * 2
            raise UsageError(
                f"{at('evaluate.wins', overrides, wins)}: write pairs of different models out of "
                f"evaluate.models, e.g. [[{last},{first}]]"
            )


def check_measures(config: Config, overrides: Sequence[str]) -> None:
    evaluate = config.evaluate
    if evaluate.harm and all(suite.kind != "red_team" for suite in evaluate.suites.values()):
        raise UsageError(f"{at('evaluate.harm', overrides)}: no suite is of kind: red_team")
    if evaluate.adherence is not None and ADHERENCE in evaluate.suites:
        raise UsageError(
            f"evaluate.suites.{ADHERENCE}: this name stands for the prompts of evaluate.adherence; "
            "call the suite otherwise"
        )
    for task in evaluate.lm_eval:
        if Path(task).suffix in (".yaml", ".yml") and not Path(task).is_file():
            raise UsageError(f"{at('evaluate.lm_eval', overrides)}: there is no file {task}")
