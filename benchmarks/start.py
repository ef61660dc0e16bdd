"""How soon `cai` answers: `--help`, a plan, and a run whose stages are all up to date.

    .venv/bin/python benchmarks/start.py --model FOLDER

FOLDER holds a small model, e.g. the tiny random one of tests/conftest.py. The smoke experiment runs
on it once, in a folder that is removed afterwards. The commands take turns; the table gives medians
of the clock and of the processor.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = {"cai --help": 0.5, "cai plan": 1.5, "up-to-date run": 2.0}  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    words = ["experiment=smoke", "model=path", f"model.path={Path(options.model).resolve()}"]
    commands = {"cai --help": ["--help"], "cai plan": ["plan", *words], "up-to-date run": words}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        seconds(words, folder)
        for _ in range(options.times):
            for name, command in commands.items():
                taken[name].append(seconds(command, folder))
    table = {}
    print("| command | seconds | of the processor | target |\n| --- | --- | --- | --- |")
    for name, pairs in taken.items():
        wall, busy = (statistics.median(column) for column in zip(*pairs, strict=True))
        table[name] = {"seconds": pairs, "medians": [wall, busy], "target": TARGETS[name]}
        print(f"| {name} | {wall:.2f} | {busy:.2f} | {TARGETS[name]} |")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


def seconds(words: list[str], folder: str) -> tuple[float, float]:
    """Of the clock, and of the processor in the command and its children."""
    started, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "cai", *words], cwd=folder, check=True, capture_output=True
    )
    wall, after = time.perf_counter() - started, os.times()
    own = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return wall, own


if __name__ == "__main__":
    main()
