"""How fast this machine is: measured in a tenth of a second, and by what earlier stages took."""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cai.config.schema import Config
from cai.models.numerics import numerics
from cai.paths import cache
from cai.store.files import write_json

PEAK = 990.0  # TFLOP/s in bfloat16 of an H100; `cai plan --tflops` takes another

SIZE, TRIALS = 1024, 4  # of the matrices that are multiplied

LONG = 20.0  # seconds; a shorter stage says little about the speed

MOST = 10.0  # how far a stage may be from arithmetic, either way


@dataclass(frozen=True)
class Machine:
    """What a run computes with. `tflops`: the peak of one device."""

    device: str  # cpu, cuda or mps
    tflops: float
    devices: int = 1

    def describe(self) -> str:
        if self.device == "cpu":
            cores = os.cpu_count() or 1
            return f"this machine ({cores} cores, {1000 * self.tflops:.0f} GFLOP/s just now)"
        return f"{self.devices} GPU{'s' if self.devices > 1 else ''} of {self.tflops:.0f} TFLOP/s"


def this_machine(config: Config, devices: int) -> Machine:
    """The device that the run's own engine takes."""
    device = numerics(config.engine)["device"]
    return Machine(device, measure() if device == "cpu" else PEAK, devices)


def measure() -> float:
    """TFLOP/s of products of float32 matrices, at the best of a few."""
    matrix = np.ones((SIZE, SIZE), np.float32)
    product, seconds = np.empty_like(matrix), []
    for _ in range(TRIALS):
        started = time.perf_counter()
        np.matmul(matrix, matrix, out=product)
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds) / 1e12


def pace(kind: str, device: str) -> float | None:
    """Seconds of the stages of this kind that ran here, for each that arithmetic expects."""
    return _read().get(_key(kind, device))


def note_pace(kind: str, device: str, expected: float, seconds: float) -> None:
    """Remembers what a whole stage took, beside what arithmetic expected of it (in seconds)."""
    if min(expected, seconds) < LONG:
        return
    paces = _read()
    ratio = min(MOST, max(1 / MOST, seconds / expected))
    # the last run counts as much as all before it
    last = paces.get(_key(kind, device), ratio)
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_json(_file(), paces | {_key(kind, device): round((ratio * last) ** 0.5, 3)})


def _key(kind: str, device: str) -> str:
    return f"{socket.gethostname()} {device} {kind}"


def _file() -> Path:
    return cache() / "pace.json"


def _read() -> dict[str, float]:
    try:
        paces = json.loads(_file().read_text(encoding="utf-8"))
        return {key: float(ratio) for key, ratio in paces.items() if float(ratio) > 0}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
