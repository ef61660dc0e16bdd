"""Templates of data sets that are written in another language than cai's."""

import re
from collections.abc import Sequence

from cai.config.explain import at
from cai.config.schema import Config
from cai.errors import UsageError

# a column in two braces, or a block
JINJA = re.compile(r"\{\{-?\s*(\w[\w.]*)[^{}\n]*\}\}|\{%.*?%\}")


def check_templates(config: Config, overrides: Sequence[str]) -> None:
    """Raises UsageError on Jinja's marks, which would stay in the text."""
    for name, dataset in config.data.items():
        for number, template in enumerate(dataset.templates, 1):
            match = JINJA.search(f"{template.prompt}\n{template.completion}")
            if match is None:
                continue
            remedy = "cai's templates know no conditions and no loops"
            if column := match[1]:
                remedy = (
                    f"write {{{column}}} for the column; braces that belong to the text stand "
                    f"apart, as {{ {{{column}}} }}"
                )
            setting = at(f"data.{name}.templates", overrides)
            raise UsageError(f"{setting}: template {number} has Jinja's '{match[0]}'; {remedy}")
