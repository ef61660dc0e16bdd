"""Checkpoints: sealed when they are written, and checked before training goes on from one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from transformers import TrainerCallback, TrainingArguments

from cai.digest import JsonObject
from cai.errors import CaiError
from cai.store.files import broken_seal, seal, write_json

BATCH = "batch.json"  # in a checkpoint: by how many processes, and how many rows a step


class SealCheckpoints(TrainerCallback):
    """Writes into a checkpoint its batch and the digests of its files."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **_):
        # each process writes a file of its own, the state of its random numbers
        self.accelerator.wait_for_everyone()
        if args.process_index == 0:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            batch = {"processes": args.world_size, "rows": rows_in_step(args)}
            write_json(folder / BATCH, batch)
            seal(folder)


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


def _read_state(checkpoint: Path) -> JsonObject | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def rows_in_step(args: TrainingArguments) -> int:
    """The rows of one step, those of all processes together."""
    return args.world_size * args.train_batch_size * args.gradient_accumulation_steps


def keep_batch(args: TrainingArguments, checkpoint: Path, stage: str, sharded: bool) -> None:
    """Has each step train on as many rows as before the checkpoint, and on the same ones.

    Another number of processes would have other steps, so a resume would skip rows, or train on
    some twice. The steps are made equal by accumulating gradients over more or fewer batches.
    Raises CaiError where that can't be.
    """
    try:
        batch = json.loads((checkpoint / BATCH).read_text())
    except FileNotFoundError:  # of an earlier version of cai: each process has a file of its own
        processes = len(list(checkpoint.glob("rng_state_*.pth"))) or 1
        batch = {"processes": processes, "rows": rows_in_step(args) // args.world_size * processes}
    rows_in_round = args.world_size * args.train_batch_size
    reason = ""
    if sharded and batch["processes"] != args.world_size:
        reason = "and what is sharded over processes can't be read by another number of them"
    elif batch["rows"] == rows_in_step(args):
        return
    elif batch["rows"] % rows_in_round:
        reason = f"and batches of {rows_in_round}, for {args.world_size} processes, do not add up"
    elif args.train_sampling_strategy != "random":
        reason = f"and train_sampling_strategy={args.train_sampling_strategy} would order them anew"
    if reason:
        raise CaiError(
            f"{stage}: was interrupted at {checkpoint.name}, with {batch['processes']} processes "
            f"and {batch['rows']} rows a step, {reason}. Start as many processes as before "
            f"(launcher.args), or remove {checkpoint.parent} to train the stage from its beginning"
        )
    args.gradient_accumulation_steps = batch["rows"] // rows_in_round


def has_ended(checkpoint: Path) -> bool:
    """Whether training had ended at this checkpoint, and only the result was not saved."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
