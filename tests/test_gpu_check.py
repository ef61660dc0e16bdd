"""Each part of `make gpu-check`, tried without a GPU, so that it still runs where there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


def check(folder: Path, *words: str) -> tuple[int, list[gpu.Row], str]:
    """The exit status, the rows and the table of a check on a CPU."""
    results = folder / "check.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", f"--json={results}", *words]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return process.returncode, rows, process.stdout


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path: Path, tiny_model: Path):
    status, rows, table = check(tmp_path, "--device=cpu", f"--model={tiny_model}")
    assert status == 0, table
    by_case = {(row["part"], row.get("case")): row for row in rows}
    assert {part for part, _ in by_case} == {*gpu.PARTS}
    exact = by_case["attention", "4 rows, 28 heads, float32"]
    assert exact["cai error"] < 1e-5
    assert by_case["losses", "sft, float32"]["largest difference"] == 0
    assert by_case["losses", "dpo, float32"]["largest difference"] == 0
    for stage in ("sft", "sl_cai", "dpo"):
        assert by_case["quickstart", stage]["update kept"] == pytest.approx(1, abs=0.02)
    assert by_case["loop", "padded generate, float32"]["texts as the first"].startswith("12/")
    assert by_case["fsdp", "revise"]
    assert table.count("\n") == len(rows) + 2


@pytest.mark.slow
def test_a_part_that_fails_is_a_row_and_the_others_run(tmp_path: Path):
    status, rows, _ = check(tmp_path, "--device=cpu", "--model=/nowhere", "losses", "machine")
    assert status == 1
    assert [row["part"] for row in rows] == ["losses", "machine", "machine"]
    assert "/nowhere" in rows[0]["error"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_once(tmp_path: Path):
    status, rows, _ = check(tmp_path, "attention", "step")
    assert status == 1 and len(rows) == 1
    assert rows[0]["error"].startswith(gpu.NO_CUDA)


def test_the_table_is_markdown():
    rows = [{"part": "loop", "case": "cai", "tokens/s": 9, "peak GiB": None}]
    assert gpu.table(rows).splitlines()[2] == "| loop | cai | tokens/s 9 |"


def test_the_error_is_the_last_line():
    assert gpu.last_line("Traceback\nValueError: no\n") == "ValueError: no"
    assert gpu.last_line("") == "it ended without a word"
