"""Docstrings as Markdown: what they say of parameters, a line each, becomes a list."""

import re
from typing import Any

import griffe

# `model`: a folder, ...
PARAMETER = re.compile(r"^(?=`\w+`: )", re.MULTILINE)


class Parameters(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = PARAMETER.sub("- ", obj.docstring.value)
