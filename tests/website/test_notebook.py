"""The notebook runs from its first cell to its last, and what it shows is what it printed."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.smoke_runs import run_fork
from website.notebook import as_page
from website.prose import ROOT

FILE = ROOT / "docs" / "quickstart.ipynb"


def read() -> Any:
    return nbformat.read(FILE, as_version=4)


@pytest.mark.slow
def test_it_runs_on_the_tiny_model(tiny_model: Path, tmp_path: Path):
    """In a real kernel, whose event loop runs already; on a run of the smoke experiment."""
    done = run_fork(tmp_path, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = read()
    place = [cell.metadata.get("tags") for cell in notebook.cells].index(["parameters"])
    words = f"MODEL, RUN = {str(tiny_model)!r}, {str(tmp_path / 'outputs/smoke')!r}"
    # behind the parameters, as papermill does it
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(words))
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(tmp_path))
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stages = ["sft", "revise", "sl_cai", "label", "dpo", "evaluate"]
    assert any(
        str(stages)[1:-1] in output.get("data", {}).get("text/plain", "") for output in shown
    )
    assert not [output for output in shown if output.get("name") == "stderr"]


def test_it_shows_a_real_run_and_nothing_of_the_machine():
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    silent = re.compile(r"^(MODEL|import|engine)\b.*", re.DOTALL)
    assert [
        cell.source for cell in code if not cell.outputs and not silent.match(cell.source)
    ] == []
    text = FILE.read_text(encoding="utf-8")
    assert len(text) < 60_000 and '"output_type": "error"' not in text
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


def test_the_page_has_its_texts_code_and_outputs():
    page = as_page(FILE)
    title, _, download, *_ = page.split("\n\n")
    assert title.startswith("# ") and "[quickstart.ipynb](quickstart.ipynb)" in download
    assert "```python\nrun = Run(RUN)\nrun.stages()\n```\n\n```{ .text .output }\n[" in page
    # a table stays in one block, which Markdown leaves alone
    tables = re.findall(r'<div class="output">\n(.*?)\n</div>', page, re.DOTALL)
    assert len(tables) >= 4 and all("\n\n" not in table for table in tables)
