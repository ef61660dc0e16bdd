"""A notebook as a page: its texts, its code, and what the code has printed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def as_page(file: Path) -> str:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    blocks = [block for cell in cells for block in _cell(cell)]
    # below the title and its paragraph
    blocks.insert(2, f"This page is a notebook: [{file.name}]({file.name}){{ download }}.")
    return "\n\n".join(blocks) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        # the title may be followed by text
        yield from text.split("\n\n", 1)
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "text/html" in data:
        # without blank lines, at which Markdown would go on
        lines = "".join(data["text/html"]).splitlines()
        html = "\n".join(line for line in lines if line.strip())
        # a table without a class looks like the site's others
        html = html.replace('<table border="1" class="dataframe">', "<table>")
        yield f'<div class="output">\n{html}\n</div>'
    else:
        text = "".join(output.get("text") or data["text/plain"]).rstrip()
        yield f"```{{ .text .output }}\n{text}\n```"
