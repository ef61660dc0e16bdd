"""A stage's process: its signals, its libraries' noise, and starting one or several."""

import argparse
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
from pathlib import Path
from typing import Any, NoReturn

from cai.config.schema import Config
from cai.errors import CaiError, Interrupted, UsageError
from cai.run.plan import Stage

PATIENCE = 4.0  # seconds


def quiet() -> None:
    """Libraries speak through the progress bar and the manifest, but for --debug. To be called before they load."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if os.environ.get("CAI_DEBUG"):
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    for name in ("trl", "peft", "accelerate", "bitsandbytes", "torch", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def install_signals(last_words: str = "") -> None:
    """SIGINT and SIGTERM raise Interrupted where the process stands, and end it where that doesn't in PATIENCE."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def stop(signum: int, _: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        raise Interrupted(signum)

    def end(exit_code: int) -> NoReturn:
        if last_words:
            print(last_words, file=sys.stderr, flush=True)
        os._exit(exit_code)

    def enforce() -> None:
        """A step of training in C, or a library that swallows exceptions, may hold the main thread for minutes."""
        signum = os.read(reader, 1)[0]
        time.sleep(PATIENCE)
        end(128 + signum)

    def unraisable(unraised: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a finalizer or as it ends, and prints a traceback in its place."""
        if isinstance(unraised.exc_value, Interrupted):
            end(unraised.exc_value.exit_code)
        sys.__unraisablehook__(unraised)

    sys.unraisablehook = unraisable
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    threading.Thread(target=enforce, daemon=True).start()


RUNNER = "CAI_CONDUCTOR"  # the environment variable that tells a worker its conductor's process id

GRACE = (
    2.0  # seconds that a worker has to end by itself: killing it loses nothing that was committed
)


def run_in_process(stage: Stage, config: Config, scratch: Path, lock: int) -> dict[str, Any]:
    """The stage in a process of its own, so that its memory is free again; training in several if configured."""
    command = [sys.executable, "-m", "cai.run.worker", str(scratch / "spec.json")]
    if config.launcher.kind == "accelerate" and stage.trains:
        arguments = launch_arguments(config)
        command[1:3] = ["-m", "accelerate.commands.launch", *arguments, "-m", "cai.run.worker"]
    worker = subprocess.Popen(
        command, pass_fds=[lock], env={**os.environ, RUNNER: str(os.getpid())}
    )
    try:
        code = worker.wait()
    except BaseException:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(GRACE)
        worker.kill()
        raise
    if code:
        try:
            failure = json.loads((scratch / "failure.json").read_text())
        except (OSError, ValueError):
            killed = " (killed; perhaps the machine ran out of memory)" if code == -9 else ""
            raise CaiError(f"stage '{stage.name}' ended with exit code {code}{killed}") from None
        raise (UsageError if failure["code"] == 2 else CaiError)(failure["message"])
    return json.loads((scratch / "summary.json").read_text())


def launch_arguments(config: Config) -> list[str]:
    """Arguments of `accelerate launch`, which starts one process on a machine without an accelerator, however many it
    is asked for, but with its launcher for several GPUs; the processes then talk through gloo."""
    from cai.models.load import pick_device

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", type=int, default=1)
    several = parser.parse_known_args(config.launcher.args)[0].num_processes > 1
    launched = {"--multi_gpu", "--use_fsdp", "--use_deepspeed"} & {*config.launcher.args}
    alone = several and pick_device(config.engine.device) == "cpu" and not launched
    return [*config.launcher.args, *(["--multi_gpu"] if alone else [])]
