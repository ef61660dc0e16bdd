"""Checkpoints: sealed when they are written, and checked before training goes on from one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback

from cai.store.files import broken_seal, seal


class SealCheckpoints(TrainerCallback):
    """Writes the digests of a checkpoint's files into it."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **_):
        # each process writes a file of its own, the state of its random numbers
        self.accelerator.wait_for_everyone()
        if args.process_index == 0:
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def find_newest_checkpoint(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The newest checkpoint that is complete and undamaged. Removes any newer one that is not."""
    checkpoints = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    for checkpoint in reversed(checkpoints):
        # trainer_state.json is written last
        if _read_state(checkpoint) is not None:
            damaged_file = broken_seal(checkpoint)
            if damaged_file is None:
                return checkpoint
            say(
                f"{damaged_file} is damaged; training goes on from the checkpoint before, "
                "or from the beginning"
            )
        shutil.rmtree(checkpoint)
    return None


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def has_ended(checkpoint: Path) -> bool:
    """Whether training had ended at this checkpoint, and only the result was not saved."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
