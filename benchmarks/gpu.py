"""What cai does on your GPU: a check in under 10 minutes, and a table to paste into an issue.

    make gpu-check
    .venv/bin/python -m benchmarks.gpu --device cpu --small    # tries every part without a GPU

Each part runs in a process of its own, on one GPU (the first, or that of CUDA_VISIBLE_DEVICES). A
part that fails or takes too long is a row with its error, and the others still run. Every row is
also a line of JSON in outputs/gpu-check.jsonl. Nothing is sent anywhere.

    machine     the GPU, its driver and the libraries' versions
    attention   a step of 64 rows with a shared prefix: cai's attention beside torch's, in
                milliseconds, and the error of each beside float64
    step        a LoRA step of a model of 7B's shape with random weights: tokens a second, the
                largest memory, and the memory that cai forecasts
    losses      the first steps of SFT and DPO: the largest difference from the CPU's losses
    quickstart  `cai experiment=quickstart`, seconds of each stage, and how much of each adapter's
                update the published weights hold (1.0: all of it)
    loop        answer, critique and revision of 256 prompts: cai's tokens a second, and those of
                plain `generate` with padded batches
    fsdp        SFT under FSDP2 on one card, then answers from what it published
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = ("machine", "attention", "step", "losses", "quickstart", "loop", "fsdp")
SECONDS = 600  # for all parts together
NO_CUDA = "torch sees no CUDA device"
ROOT = Path(__file__).parents[1]

Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, if none is named")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="as little as shows that it works")
    parser.add_argument("--model", help="a model's folder, in place of SmolLM2-135M")
    parser.add_argument("--json", type=Path, default=ROOT / "outputs" / "gpu-check.jsonl")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted({*options.parts} - {*PARTS}):
        parser.error(f"no part is named {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.child:
        run_part(options)
    else:
        check(options)


def check(options: argparse.Namespace) -> None:
    """Runs the parts one after the other, and prints the table."""
    rows: list[Row] = []
    deadline = time.monotonic() + SECONDS
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with options.json.open("w", encoding="utf-8") as file:
        for part in options.parts or PARTS:
            print(f"{part} ...", file=sys.stderr, flush=True)
            for row in run_child(part, options, deadline - time.monotonic()):
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
            if rows[-1].get("error", "").startswith(NO_CUDA):
                break
    print(table(rows))
    print(f"\nThe same as JSON lines: {options.json}", file=sys.stderr)
    if any("error" in row for row in rows):
        sys.exit(1)


def run_child(part: str, options: argparse.Namespace, seconds_left: float) -> list[Row]:
    """A part's rows; its last one says how long it took, or why it failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results, output = Path(folder) / "rows.jsonl", Path(folder) / "output.txt"
        words = [part, "--child", f"--json={results}", f"--device={options.device}"]
        words += ["--small"] if options.small else []
        words += [f"--model={Path(options.model).resolve()}"] if options.model else []
        # more than one visible GPU would need a launcher
        environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
        error = None
        with output.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu", *words],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                if child.wait(max(seconds_left, 1)):
                    error = last_line(output.read_text(errors="replace"))
            except subprocess.TimeoutExpired:
                error = f"not finished: {SECONDS} seconds are over"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # a run that the part began, too
                child.wait()
        rows: list[Row] = []
        if results.exists():
            rows = [json.loads(line) for line in results.read_text().splitlines()]
        rows = [{"part": part, **row} for row in rows]
        taken = round(time.monotonic() - started, 1)
        if error is not None:
            return [*rows, {"part": part, "error": error, "seconds": taken}]
        return [*rows, {"part": part, "seconds": taken}]


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:300] if lines else "it ended without a word"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: what was measured, and the figures by their names."""
    lines = ["| part | | figures |", "| --- | --- | --- |"]
    for row in rows:
        figures = ", ".join(
            f"{name} {value}"
            for name, value in row.items()
            if name not in ("part", "case") and value is not None
        )
        lines.append(f"| {row['part']} | {row.get('case', '')} | {figures} |".replace("\n", " "))
    return "\n".join(lines)


def run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process, and writes its rows as it finds them."""
    from cai.run.process import quiet

    quiet()
    from benchmarks import gpu_parts

    if options.device == "cuda":
        gpu_parts.require_cuda()
    model = []
    if options.model:
        model = ["model=path", f"model.path={options.model}", "model.name=checked"]
    with options.json.open("w", encoding="utf-8") as file:
        for row in gpu_parts.PARTS[options.parts[0]](options.device, options.small, model):
            print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()
