"""The page of the Python API: every name that `from cai import ...` gives, out of its docstring."""

import ast

from website.prose import ROOT

TITLE = """# The Python API

What `from cai import ...` gives. How it is used, with examples, is in [From Python](python.md).
"""


# Of classes that the code uses too, what is for others. Of every other class all is.
MEMBERS = {"Constitution": ["load", "of"], "Engine": ["close"]}


def page() -> str:
    """Functions and classes first, errors last."""
    where = public_names()
    names = sorted(where, key=lambda name: (where[name] == "cai.errors", name[0].isupper(), name))
    return TITLE + "".join(_entry(name, where[name]) for name in names)


def _entry(name: str, module: str) -> str:
    members = MEMBERS.get(name)
    options = f"    options:\n      members: {members}\n" if members else ""
    return f"\n::: {module}.{name}\n{options}"


def public_names() -> dict[str, str]:
    """The module of each name, by the stub that type checkers read."""
    tree = ast.parse((ROOT / "cai" / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
