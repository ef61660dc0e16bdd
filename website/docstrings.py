"""Docstrings as Markdown: what they say of parameters, a line each, becomes a list.

What they raise becomes a paragraph below it.
"""

import re
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]  # in the site's environment alone

# `model`: a folder, ...
PARAMETER = re.compile(r"^(?=`\w+`: )", re.MULTILINE)
RAISES = re.compile(r"^(?=Raises [A-Z])", re.MULTILINE)


class Parameters(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = PARAMETER.sub("- ", obj.docstring.value)
            obj.docstring.value = RAISES.sub("\n", text)
