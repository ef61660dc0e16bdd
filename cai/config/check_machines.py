"""What must hold between the settings of servers, machines and their memory."""

from collections.abc import Sequence

from cai.config.explain import at
from cai.config.names import (
    MODEL_SECTIONS,
)
from cai.config.schema import Config
from cai.config.types import VLLM_SHARE, lookup
from cai.errors import UsageError


def check_served_models(config: Config, overrides: Sequence[str]) -> None:
    """A model on a server has its name from the engine."""
    for name in MODEL_SECTIONS:
        section = lookup(config, name)
        if section.model and (section.engine or config.engine).kind == "openai":
            raise UsageError(
                f"{name}.model: a server's model is named by {name}.engine.model, not by this"
            )


def check_machines(config: Config, overrides: Sequence[str]) -> None:
    machines = config.launcher.machines
    if machines.count == 1:
        return
    if config.launcher.kind != "accelerate":
        raise UsageError(
            f"{at('launcher.machines.count', overrides, machines.count)}: only a launcher of "
            "several processes trains on several machines; take launcher=accelerate, fsdp or "
            "deepspeed"
        )
    if machines.address is None:
        raise UsageError(
            f"{at('launcher.machines.address', overrides)}: name machine 0 as the others reach it"
        )
    if machines.rank >= machines.count:
        raise UsageError(
            f"{at('launcher.machines.rank', overrides, machines.rank)}: must be below "
            f"launcher.machines.count, which is {machines.count}; the first machine is 0"
        )


def check_shares(config: Config, overrides: Sequence[str]) -> None:
    """Two vLLM servers that run at once share a device's memory, or have devices of their own.

    In `revise` the helpful model and a critic answer in turn; all other stages close one model
    before they open another.
    """
    if config.revise.model is None and config.revise.engine is None:
        return
    engines = {"engine": config.engine, "revise.engine": config.revise.engine or config.engine}
    options = [engine.options for engine in engines.values()]
    devices = [set(str(arguments.get("device_ids", "")).split(",")) - {""} for arguments in options]
    apart = all(devices) and not devices[0] & devices[1]
    if apart or any(engine.kind != "vllm" for engine in engines.values()):
        return
    if any("kv_cache_memory_bytes" in arguments for arguments in options):
        return  # vLLM then takes no share
    shares = [arguments.get("gpu_memory_utilization", VLLM_SHARE) for arguments in options]
    for key, share in zip(engines, shares, strict=True):
        if isinstance(share, bool) or not isinstance(share, int | float):
            name = at(f"{key}.options.gpu_memory_utilization", overrides, share)
            raise UsageError(f"{name}: a share of the memory is a number from 0 to 1")
    if sum(shares) > 1:
        keys = ", ".join(
            f"{at(f'{key}.options.gpu_memory_utilization', overrides, share)}"
            for key, share in zip(engines, shares, strict=True)
        )
        raise UsageError(
            "revise: the critic is another model, so two vLLM servers run at once, and together "
            f"they ask for {sum(shares):.0%} of a device's memory ({keys}); take shares that add "
            "up to at most 1, or a device for each (options.device_ids). For settings of its own "
            "the critic needs +engine@revise.engine=vllm"
        )
