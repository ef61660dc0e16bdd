"""What launcher.args ask `accelerate launch` for, as far as cai needs to know."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from cai.config.explain import at
from cai.config.schema import Config
from cai.errors import UsageError


class Launch(NamedTuple):
    """Of the training stages. Machines' processes are counted together."""

    processes: int
    sharded: bool
    deepspeed: bool
    chosen: bool  # whether a launcher of several processes is named


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def launch_of(config: Config) -> Launch:
    """By the arguments alone: a --config_file is not read. Raises UsageError."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int, default=1)
    parser.add_argument("--zero_stage", "--zero-stage", type=int, default=3)
    for name in ("use_fsdp", "use_deepspeed", "multi_gpu"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", action="store_true")
    if config.launcher.kind != "accelerate":
        return Launch(1, False, False, False)
    try:
        arguments = parser.parse_known_args(config.launcher.args)[0]
    except ValueError as error:
        raise UsageError(f"launcher.args: {error}") from None
    sharded = arguments.use_fsdp or (arguments.use_deepspeed and arguments.zero_stage == 3)
    chosen = arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed
    return Launch(arguments.num_processes, sharded, arguments.use_deepspeed, chosen)


def check_launcher(config: Config, overrides: Sequence[str]) -> None:
    """Raises UsageError where cai can't read the arguments, or they start no process."""
    if (number := launch_of(config).processes) < 1:
        setting = at("launcher.args", overrides)
        raise UsageError(f"{setting}: --num_processes={number}: must be at least 1")
