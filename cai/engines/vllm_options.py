"""The options of `vllm serve`: as flags, those that are cai's own, and all that its source has."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai.config.schema import EngineConfig
from cai.config.types import VLLM_SHARE
from cai.errors import UsageError

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
FIELD = re.compile(r"^    ([a-z_0-9]+): ", re.MULTILINE)


def check(config: EngineConfig, key: str) -> None:
    """Raises UsageError where the options hold one that cai sets itself."""
    for name in config.options:
        if "-" in name:
            raise UsageError(f"{key}.options.{name}: write it as {name.replace('-', '_')}")
        if reason := OWN_OPTIONS.get(name):
            raise UsageError(f"{key}.options.{name}: cai sets this option of vLLM's: {reason}")


def share_device(config: EngineConfig, servers: int) -> EngineConfig:
    """The same engine where so many vLLM servers run at once, on the same devices."""
    share = config.options.get("gpu_memory_utilization", VLLM_SHARE) / servers
    return replace(config, options=config.options | {"gpu_memory_utilization": share})


def flags(options: Mapping[str, Any]) -> list[str]:
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


def option_names(package: Path) -> list[str]:
    """The flags of `vllm serve`, out of the files that declare them; none where those are unknown.

    A few more names stand there, such as options of vLLM's commands other than `serve`.
    """
    files = [*package.glob("engine/arg_utils.py"), *package.glob("entrypoints/**/cli_args.py")]
    if len(files) < 2:
        return []
    texts = [file.read_text(encoding="utf-8") for file in files]
    flags = [flag.replace("-", "_") for text in texts for flag in FLAG.findall(text)]
    return flags + [name for text in texts for name in FIELD.findall(text)]
