"""One run on several machines: machine 0 runs the pipeline, the others join its training.

Every machine is given the same command but for its number, and sees the same run's folder. Machine
0 says in machines.json there which stage it trains; it writes the file anew every second, so that
the others see that it lives.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cai.config.schema import Config, MachinesConfig
from cai.errors import CaiError
from cai.run.plan import stages
from cai.run.process import run_worker
from cai.store.files import write_json

FILE = "machines.json"
BEAT = 1.0  # seconds
FAREWELL = 5 * BEAT  # machine 0 goes on beating at its end, for machines that have just begun
SILENCE = 600.0  # seconds without a beat after which machine 0 is given up


@dataclass(frozen=True)
class Order:
    """What machine 0 says."""

    beat: int
    launch: int = 0  # another number for each training; 0 before the first
    stage: str = ""
    job: str = ""  # the job's file, below the run's folder
    code: int | None = None  # machine 0 has ended, with this exit code


class Conductor:
    """Machine 0's voice. Without other machines it says nothing."""

    def __init__(self, root: Path, machines: MachinesConfig):
        self.root, self.silent = root, machines.count == 1
        # another number than in any earlier run, of which the file may still be there
        self._order = Order(beat=time.time_ns())
        self._lock, self._ended = threading.Lock(), threading.Event()

    def call(self, stage: str, job: Path) -> None:
        """Has the other machines join the training of a stage."""
        place = job.relative_to(self.root).as_posix()
        self._say(launch=time.time_ns(), stage=stage, job=place)

    @contextlib.contextmanager
    def open(self) -> Iterator["Conductor"]:
        """Beats until the end, and then says how machine 0 has ended."""
        if self.silent:
            yield self
            return
        self._say()
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield self
            self._say(code=0)
            time.sleep(FAREWELL)
        except BaseException as error:
            self._say(code=getattr(error, "exit_code", 1))
            raise
        finally:
            self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._say()

    def _say(self, **changes: object) -> None:
        if self.silent:
            return
        with self._lock:
            self._order = replace(self._order, beat=self._order.beat + 1, **changes)
            write_json(self.root / FILE, asdict(self._order))


def follow(config: Config, tell: Callable[[str], None]) -> None:
    """Joins each training of machine 0 until that ends. Raises CaiError where it fails."""
    root, rank = Path(config.outputs) / config.name, config.launcher.machines.rank
    tell(f"machine {rank}: waits for machine 0, which runs the stages, in {root}")
    joined = 0
    for order in _orders(root / FILE):
        if order.code:
            raise CaiError(f"machine 0 has ended with exit code {order.code}: see what it says")
        if order.code == 0:
            return
        if order.launch not in (0, joined):
            joined = order.launch
            tell(f"machine {rank}: joins {order.stage}")
            _join(order, config, root)


def _orders(file: Path) -> Iterator[Order]:
    """What machine 0 says, from the first beat that is seen on. Raises CaiError at silence."""
    first = last = _read(file)
    last_beat = time.monotonic()
    while True:
        order = _read(file)
        if order is not None and order != last:
            last_beat = time.monotonic()
        last = order
        # what stood there at first may be of an earlier run
        if order is not None and (first is None or order.beat != first.beat):
            yield order
        if time.monotonic() - last_beat > SILENCE:
            raise CaiError(
                f"machine 0 has written nothing to {file} for {SILENCE:.0f} seconds: it has not "
                "started with the same name and outputs, was killed, or the folder isn't shared"
            )
        time.sleep(BEAT / 2)


def _read(file: Path) -> Order | None:
    try:
        return Order(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _join(order: Order, config: Config, root: Path) -> None:
    stage = next(stage for stage in stages(config) if stage.name == order.stage)
    run_worker(stage, config, (root / order.job).parent)
