"""The stages, each with one home: its Stage, its Summary, and `run`."""
