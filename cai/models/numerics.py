"""The device and the number format that a run computes in, for stage keys and the ledger.

`auto` means another one on another machine, and texts then differ. Without a GPU in sight this is
told without torch, since `cai plan` answers at once.
"""

import sys
from functools import cache
from pathlib import Path

from cai.config.schema import EngineConfig


def numerics(engine: EngineConfig) -> dict[str, str]:
    """`device`: cpu, cuda or mps. `dtype`: of generation."""
    device = engine.device
    if device == "auto":
        device = _auto_device()
    return {
        "device": device,
        "dtype": _auto_dtype(device) if engine.dtype == "auto" else engine.dtype,
    }


@cache
def _auto_device() -> str:
    if not _has_accelerator():
        return "cpu"
    return _torch_choices().pick_device("auto").partition(":")[0]


def _auto_dtype(device: str) -> str:
    if device != "cuda":
        return "float32"
    return str(_torch_choices().pick_dtype("auto", device)).removeprefix("torch.")


def _torch_choices():
    """models/load.py, and torch with it, which alone knows what this machine can use."""
    from cai.models import load

    return load


def _has_accelerator() -> bool:
    """Whether there may be one: a device file of NVIDIA, AMD or WSL, or a Mac."""
    files = ("nvidia0", "nvidiactl", "kfd", "dxg")
    return sys.platform == "darwin" or any(Path("/dev", name).exists() for name in files)
