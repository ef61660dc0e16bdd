"""Runs a command and ends it, children and all, once the process that wanted it is gone.

A script of its own, `python guardian.py PARENT FOLDER COMMAND...`: it sees whatever ends the
parent, SIGKILL too. It leads the process group that the command and its children belong to.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

POLL = 0.2  # seconds between two looks at the parent

GRACE = 3.0  # seconds that the command has to end by itself


def main() -> None:
    parent, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    told_to_end: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: told_to_end.append(number))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    # the parent's number is only its own while it lives, and then it is this process's parent
    while process.poll() is None and not told_to_end and os.getppid() == parent:
        time.sleep(POLL)
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    else:
        print(f"ended by itself, with exit code {process.returncode}", flush=True)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)  # nobody else is left to do it
    os.killpg(0, signal.SIGKILL)  # what is left of the group, and this process


if __name__ == "__main__":
    main()
