"""The options of `vllm serve`: as flags, those that are cai's own, and all that its source has."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai.config.argument_kinds import written_in
from cai.config.kinds import choices_of, members
from cai.config.schema import EngineConfig
from cai.config.types import VLLM_SHARE
from cai.errors import UsageError, nearest

# vLLM's options that cai sets itself, and what a person sets in their place
OWN_OPTIONS = {
    "model": "the stage's model is served",
    "served_model_name": "the stage's model is served",
    "tokenizer": "the model's own is used",
    "skip_tokenizer_init": "the model's own tokenizer is used",
    "revision": "a model's revision is its own setting",
    "dtype": "set the engine's dtype",
    "enable_lora": "a model that is an adapter's folder is served as one",
    "lora_modules": "a model that is an adapter's folder is served as one",
    "host": "the server listens on a socket that only this user can open",
    "port": "the server listens on a socket that only this user can open",
    "uds": "the server listens on a socket that only this user can open",
    "api_key": "the server listens on a socket that only this user can open",
    "logprobs_mode": "a judge needs the model's own log-probabilities",
    "hf_token": "put it into the environment as HF_TOKEN",
}

# how vLLM's source declares an option
FLAG = re.compile(r"\"--([a-z0-9-]+)\"")
CLASSES = ("EngineArgs", "AsyncEngineArgs", "BaseFrontendArgs", "FrontendArgs")

# what vLLM reads as a whole number: 16k
WHOLE = re.compile(r"-?\d+|\d+(\.\d+)?[kKmMgGtT]i?|auto")

FIND = "import importlib.util as i; print(*i.find_spec('vllm').submodule_search_locations)"


def check(config: EngineConfig, key: str) -> None:
    """Raises UsageError where the options hold one that cai sets itself, or that vLLM refuses.

    `key` is the engine's place in the configuration.
    """
    for name in config.options:
        if "-" in name:
            raise UsageError(f"{key}.options.{name}: write it as {name.replace('-', '_')}")
        if reason := OWN_OPTIONS.get(name):
            raise UsageError(f"{key}.options.{name}: cai sets this option of vLLM's: {reason}")
    _check_values(config, key)


def share_device(config: EngineConfig, servers: int) -> EngineConfig:
    """The same engine where so many vLLM servers run at once, on the same devices."""
    share = config.options.get("gpu_memory_utilization", VLLM_SHARE) / servers
    return replace(config, options=config.options | {"gpu_memory_utilization": share})


def flags(options: Mapping[str, object]) -> list[str]:
    """vLLM's options as arguments: `--name=value`, `--name` or `--no-name`, `--name value value`.

    An option that is null is left out.
    """
    arguments: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            arguments.append(f"{flag}={json.dumps(dict(value))}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            arguments += [flag, *map(str, value)]
        elif value is not None:
            arguments.append(f"{flag}={value}")
    return arguments


def interpreter(config: EngineConfig) -> str:
    """The Python that runs the server. A link stays one: it tells Python its environment."""
    return os.path.abspath(config.python) if config.python else sys.executable  # noqa: PTH100


def environment(python: str) -> dict[str, str]:
    """The environment of the server's process."""
    variables = dict(os.environ)
    if python != sys.executable:  # these lead to our own libraries, which are other versions
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            variables.pop(name, None)
    # vLLM calls tools of its environment, such as ninja
    variables["PATH"] = os.pathsep.join([str(Path(python).parent), variables.get("PATH", "")])
    return variables | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def vllm_folder(python: str) -> Path | None:
    """Where vLLM is installed for an interpreter; None where it is not.

    It is not imported, which takes half a minute.
    """
    if not os.access(python, os.X_OK):
        return None
    done = subprocess.run(
        [python, "-c", FIND],
        env=environment(python),
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode else Path(done.stdout.strip())


def option_kinds(package: Path) -> Mapping[str, object]:
    """The options of `vllm serve` and their types, Any where these are not simple.

    Out of the files that declare them; none where those are unknown. A few more names stand there,
    such as options of vLLM's commands other than `serve`.
    """
    files = [*package.glob("engine/arg_utils.py"), *package.glob("entrypoints/**/cli_args.py")]
    if len(files) < 2:
        return {}
    texts = [file.read_text(encoding="utf-8") for file in files]
    kinds: dict[str, object] = {
        flag.replace("-", "_"): Any for text in texts for flag in FLAG.findall(text)
    }
    for text in texts:
        for name in CLASSES:
            kinds |= written_in(text, name)
    return kinds


def _check_values(config: EngineConfig, key: str) -> None:
    """Raises UsageError on an option that vLLM does not have, or whose value it would refuse.

    Nothing is known where vLLM is not installed.
    """
    folder = vllm_folder(interpreter(config)) if config.options else None
    kinds = option_kinds(folder) if folder else {}
    for name, value in config.options.items() if kinds else ():
        if name not in kinds:
            hint = nearest(name, list(kinds))
            raise UsageError(f"{key}.options.{name}: vLLM has no such option{hint}")
        if words := _refusal(kinds[name], value):
            raise UsageError(f"{key}.options.{name}={value}: vLLM takes {words} here")


def _refusal(kind: object, value: object) -> str | None:
    """What an option takes, in words, where vLLM's command line would refuse `value`.

    Anything can be a text there, so only numbers, switches and choices are known.
    """
    kinds, choices = (
        {member for member in members(kind) if member is not type(None)},
        choices_of(kind),
    )
    if value is None or (kinds - {int, float, bool} and not choices):
        return None
    if choices:
        is_one = str(value) in choices or len(kinds) > 1
        return None if is_one else f"one of {', '.join(choices)}"
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    if isinstance(value, bool):
        return "a number"
    is_number = isinstance(value, int) or (float in kinds and isinstance(value, float))
    is_text_number = isinstance(value, str) and WHOLE.fullmatch(value)
    if is_number or is_text_number:
        return None
    return "a number" if float in kinds else "a whole number"
