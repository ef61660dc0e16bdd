"""Constitutional AI: critique, revision, AI feedback and DPO from a principle file."""

__version__ = "0.1.0"
