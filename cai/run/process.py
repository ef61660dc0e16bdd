"""A stage's process: what its libraries may say, its signals, and starting one or several."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cai.config.launcher import launch_of
from cai.config.schema import Config, MachinesConfig
from cai.digest import JsonObject
from cai.errors import CaiError, Interrupted, UsageError
from cai.stages.base import Stage

RUNNER = "CAI_RUNNER"  # the environment variable that tells a worker its runner's process id
PATIENCE = 4.0  # seconds from a signal to the end of a process that does not end by itself
GRACE = 2.0  # seconds that a worker has to end by itself; killing it loses nothing committed
SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
QUIET_LOGGERS = ("trl", "peft", "accelerate", "bitsandbytes", "torch", "httpx2", "httpcore2")


def quiet() -> None:
    """Silences libraries, but for --debug. To be called before they load."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if os.environ.get("CAI_DEBUG"):
        return
    warnings.filterwarnings("ignore")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def install_signals(last_words: str = "") -> None:
    """SIGINT and SIGTERM raise Interrupted where the process stands.

    They end it after PATIENCE where that does not: a step of training in C, or a library that
    swallows exceptions, may hold the main thread for minutes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def stop(signum: int, frame: FrameType | None) -> None:
        for handled in SIGNALS:
            signal.signal(handled, signal.SIG_DFL)  # a second signal ends the process at once
        raise Interrupted(signum)

    def end(exit_code: int) -> NoReturn:
        if last_words:
            print(last_words, file=sys.stderr, flush=True)
        os._exit(exit_code)

    def enforce() -> None:
        signum = os.read(reader, 1)[0]
        time.sleep(PATIENCE)
        end(128 + signum)

    def unraisable(unraised: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a finalizer or as it ends, and prints a traceback."""
        if isinstance(unraised.exc_value, Interrupted):
            end(unraised.exc_value.exit_code)
        sys.__unraisablehook__(unraised)

    sys.unraisablehook = unraisable
    for handled in SIGNALS:
        signal.signal(handled, stop)
    threading.Thread(target=enforce, daemon=True).start()


def run_in_process(stage: Stage, config: Config, scratch: Path, lock: int) -> JsonObject:
    """Runs scratch/job.json in a process of its own, whose memory is then free again.

    Training may take several processes. Returns the stage's summary; raises what the stage raised.
    """
    run_worker(stage, config, scratch, [lock])
    return json.loads((scratch / "summary.json").read_text())


def run_worker(
    stage: Stage, config: Config, scratch: Path, descriptors: Sequence[int] = ()
) -> None:
    """Runs scratch/job.json, or this machine's part of it. Raises what the stage raised.

    The worker inherits the open files `descriptors`.
    """
    command = [sys.executable, "-m", "cai.run.worker", str(scratch / "job.json")]
    if config.launcher.kind == "accelerate" and stage.trains:
        launch = ["-m", "accelerate.commands.launch", *launch_arguments(config)]
        command[1:1] = launch
    environment = {**os.environ, RUNNER: str(os.getpid())}
    worker = subprocess.Popen(command, pass_fds=descriptors, env=environment)
    try:
        code = worker.wait()
    except BaseException:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(GRACE)
        worker.kill()
        raise
    if code:
        raise _failure(stage, scratch, code)


def _failure(stage: Stage, scratch: Path, code: int) -> CaiError:
    try:
        failure = json.loads((scratch / "failure.json").read_text())
    except (OSError, ValueError):
        killed = " (killed; perhaps the machine ran out of memory)" if code == -9 else ""
        return CaiError(f"stage '{stage.name}' ended with exit code {code}{killed}")
    return (UsageError if failure["code"] == 2 else CaiError)(failure["message"])


def launch_arguments(config: Config) -> list[str]:
    """Arguments of `accelerate launch`.

    On a machine without an accelerator it starts one process, however many it is asked for. Its
    launcher for several GPUs starts them all there too; they then talk through gloo.
    """
    from cai.models.load import pick_device  # loads torch

    arguments = [*config.launcher.args, *_machine_arguments(config.launcher.machines)]
    launch = launch_of(config)
    on_cpu = pick_device(config.engine.device) == "cpu"
    if launch.processes > 1 and not launch.chosen and on_cpu:
        return [*arguments, "--multi_gpu"]
    return arguments


def _machine_arguments(machines: MachinesConfig) -> list[str]:
    if machines.count == 1:
        return []
    return [
        f"--num_machines={machines.count}",
        f"--machine_rank={machines.rank}",
        f"--main_process_ip={machines.address}",
        f"--main_process_port={machines.port}",
        "--same_network",
    ]
