"""A signal ends a process soon and with its exit code, wherever the process stands."""

import subprocess
import sys

import pytest

IN_A_BATCH = """
import asyncio, os, signal
from cai.config.schema import Sampling
from cai.engines.base import Request
from cai.engines.batcher import Batcher
from cai.engines.rows import gather_rows
from cai.errors import Interrupted
from cai.messages import user
from cai.run.process import install_signals
install_signals()
batcher = Batcher(lambda waiting: [0], lambda batch: os.kill(os.getpid(), signal.SIGTERM))
try:
    asyncio.run(gather_rows([batcher.complete(Request((user("a"),), Sampling()))]))
except Interrupted as error:
    raise SystemExit(error.exit_code)
"""

IN_C = """
import hashlib, os, signal, threading
from cai.run.process import install_signals
install_signals("the same command continues")
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # minutes in C, where no handler runs
"""

WHERE_EXCEPTIONS_ARE_DROPPED = """
import atexit, os, signal, weakref
from cai.run.process import install_signals
install_signals("kept")
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False
    )


def test_a_signal_during_a_batch_ends_the_process():
    assert run_python(IN_A_BATCH).returncode == 143


def test_a_signal_ends_a_process_that_is_deep_in_c():
    process = run_python(IN_C)
    assert process.returncode == 143 and "the same command continues" in process.stderr


@pytest.mark.parametrize(
    "line",
    [
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)",
        "weakref.finalize(set(), os.kill, os.getpid(), signal.SIGTERM)",
    ],
    ids=["as it ends", "in a finalizer"],
)
def test_a_signal_ends_a_process_where_python_drops_exceptions(line: str):
    process = run_python(WHERE_EXCEPTIONS_ARE_DROPPED + line)
    assert process.returncode == 143 and process.stderr.split() == ["kept"]
