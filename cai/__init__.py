"""Constitutional AI: critique, revision, AI feedback and DPO from a principle file.

The names in `__all__` are the Python API (docs/python.md). All else may change with any version.
"""

import importlib

__version__ = "0.1.0"

# Where the API's names live. A name is loaded at its first use: `import cai` loads nothing heavy.
_PUBLIC = {
    "CaiError": "cai.errors",
    "Constitution": "cai.method.constitution",
    "Engine": "cai.api.engine",
    "PreferencePair": "cai.method.preferences",
    "Results": "cai.api.results",
    "Revision": "cai.method.critique",
    "Run": "cai.api.run",
    "UsageError": "cai.errors",
    "compare": "cai.api.method",
    "open_engine": "cai.api.engine",
    "revise": "cai.api.method",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cai' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
