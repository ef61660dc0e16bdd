"""Training: cai's SFT and DPO beside trl's trainers with their defaults, on the same rows.

    .venv/bin/python benchmarks/training.py sft
    .venv/bin/python benchmarks/training.py dpo --rows 6

SmolLM2-135M with the settings of experiment=bench (more overrides at the end, e.g.
sft.peft=null). SFT learns rows of its data sets, DPO people's pairs of human_harm. trl gets the
same tokens, start, batch sizes, learning rate, adapter and max_length, and has its own way in
everything else. `like lengths` is cai with train_sampling_strategy: group_by_length, so in another
order. Each trains one epoch; they take turns in one process, after a step each that does not count.

The table has medians: tokens without padding for each second of the clock and of the processor,
from the loaded model to the trained one, ratios to trl, the share of padding, and losses.
"""

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cai.config.compose import compose
from cai.config.schema import Config, Prompts
from cai.data.prompts import load_preferences
from cai.observe.progress import Progress
from cai.stages.base import Context
from cai.training.arguments import dpo_arguments, sft_arguments

OVERRIDES = ["experiment=bench", "sft.validation=0", "dpo.validation=0"]
# more steps to compare
OVERRIDES += ["sft.args.gradient_accumulation_steps=1", "dpo.args.gradient_accumulation_steps=1"]
THEIRS, OURS = "trl", "cai"
WAYS: dict[str, dict[str, Any]] = {  # arguments of each, beside the conf's
    THEIRS: {},
    OURS: {},
    "like lengths": {"train_sampling_strategy": "group_by_length"},
    "reference first": {"precompute_ref_log_probs": True},
}
EQUAL = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
)
EQUAL += ("lr_scheduler_type", "warmup_steps", "max_length", "seed")
UNTIMED = {"num_train_epochs": 1, "save_steps": 10**6}


def read_source(kind: str, config: Config, tokenizer: Any, count: int, folder: Path) -> Any:
    """SFT: tokens and labels; DPO: conversations."""
    from datasets import Dataset

    from cai.stages.tokenized_rows import tokenized_rows

    if kind == "sft":
        given = {
            "model": config.model,
            "engine": config.engine,
            "data": config.data,
            "constitution": "harmlessness",
        }
        given |= {"root": folder, "scratch": folder, "held_out": {}, "inputs": {}}
        given |= {"progress": Progress("sft", quiet=True)}
        context = Context("sft", config.seed, **given)
        return tokenized_rows(config.sft, context).rows.select(range(count))
    pairs = load_preferences(Prompts(data=["human_harm"], limit=count), config.data, config.seed)
    return Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": turn.role, "content": turn.content} for turn in prompt.messages
                ],
                "chosen": [{"role": "assistant", "content": better}],
                "rejected": [{"role": "assistant", "content": worse}],
                "probability": 1.0,
            }
            for prompt, better, worse in pairs
        ]
    )


def opened(
    kind: str, way: str, config: Config, given: dict[str, Any], folder: str, device: str = "cpu"
) -> Any:
    """The trainer: trl's own as a user would write it, or the one that the stage opens."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from cai.training.cpu_head import install_lean_head
    from cai.training.soft_dpo import open_trainer

    section = config.sft if kind == "sft" else config.dpo
    section.args.update(UNTIMED | WAYS[way])
    if kind == "sft":
        args = sft_arguments("sft", config.sft, config.seed, folder, device, held_out=False)
    else:
        args = dpo_arguments(config.dpo, config.seed, folder, device, held_out=False)
    if way == THEIRS:
        equal = {name: getattr(args, name) for name in EQUAL}
        equal |= {
            "use_cpu": True,
            "bf16": False,
            "num_train_epochs": 1,
            "save_strategy": "no",
            "report_to": "none",
        }
        shown = {"logging_steps": 1, "disable_tqdm": True}  # to compare each step's loss
        if kind == "sft":
            return SFTTrainer(args=SFTConfig(folder, **equal, **shown), **given)
        return DPOTrainer(args=DPOConfig(folder, **equal, **shown), **given)
    if kind == "dpo":
        return open_trainer(
            config.dpo,
            reference_folder=Path(folder),
            reference_digest="benchmark",
            args=args,
            **given,
        )
    trainer: Any = SFTTrainer(args=args, **given)
    install_lean_head(trainer.model, ("entropy", "is_top1"))
    return trainer


def tokens(trainer: Any) -> tuple[int, int]:
    """Tokens of an epoch's batches, without padding and with it."""
    masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def train(
    kind: str,
    way: str,
    config: Config,
    rows: Any,
    held: Any,
    profiled: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile
    from transformers import PrinterCallback

    from cai.models.convert import locate
    from cai.models.load import load_model, load_tokenizer
    from cai.training.arguments import lora_config

    where = locate(config.model)
    section = config.sft if kind == "sft" else config.dpo
    given = {
        "model": load_model(where, "float32", device),
        "train_dataset": rows,
        "processing_class": load_tokenizer(where),
        "peft_config": None if section.peft is None else lora_config(f"{kind}.peft", section.peft),
    }
    with tempfile.TemporaryDirectory() as folder:
        wall, busy = time.perf_counter(), time.process_time()
        trainer = opened(kind, way, config, given | {"eval_dataset": held}, folder, device)
        trainer.remove_callback(PrinterCallback)
        if profiled:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                trainer.train()
            print(
                seen.key_averages().table(
                    sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
                )
            )
        else:
            trainer.train()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        real, padded = tokens(trainer)
        found = {
            "seconds": wall,
            "processor": busy,
            "tokens": real,
            "padding": 1 - real / padded,
            "losses": losses,
        }
        if held is not None:
            found["held_out_loss"] = trainer.evaluate()["eval_loss"]
    del trainer, given
    gc.collect()
    return found


def main() -> None:
    from cai.models.convert import locate
    from cai.models.load import load_tokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["sft", "dpo"])
    parser.add_argument("overrides", nargs="*", help="of the configuration, e.g. sft.peft=null")
    parser.add_argument("--rows", type=int, default=16, help="that are trained on, for one epoch")
    parser.add_argument("--held-out", type=int, default=4)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=[THEIRS, OURS])
    parser.add_argument(
        "--profile", action="store_true", help="print each way's twelve dearest operators, once"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()

    def config() -> Config:
        return compose([*OVERRIDES, *options.overrides])

    count = options.rows + options.held_out
    with tempfile.TemporaryDirectory() as folder:
        rows = read_source(
            options.kind, config(), load_tokenizer(locate(config().model)), count, Path(folder)
        )
    held = rows.select(range(options.held_out)) if options.held_out else None
    rows = rows.select(range(options.held_out, len(rows)))

    def run(way: str, *given: Any) -> dict[str, Any]:
        return train(options.kind, way, config(), *given)

    for way in options.ways:
        run(way, rows.select(range(2)), None)
    if options.profile:
        for way in options.ways:
            print(way)
            run(way, rows, None, True)
        return
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.times):
        for way in options.ways:
            taken[way].append(run(way, rows, held))
            print(f"{way}: {taken[way][-1]}", flush=True)
    show(taken)
    if options.json:
        options.json.write_text(json.dumps(taken, indent=1))


def show(taken: dict[str, list[dict[str, Any]]]) -> None:
    """The table, and how far the first way's losses are from the second's, step by step."""
    speeds = {
        way: [
            statistics.median(run["tokens"] / run[clock] for run in runs)
            for clock in ("seconds", "processor")
        ]
        for way, runs in taken.items()
    }
    first = next(iter(speeds.values()))
    print(
        "| | tokens a second | ratio | a processor second | ratio "
        "| padding | last loss | held-out loss |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for way, (wall, busy) in speeds.items():
        run = taken[way][0]
        ratios = f"{wall:.1f} | {wall / first[0]:.2f} | {busy:.1f} | {busy / first[1]:.2f}"
        losses = f"{run['losses'][-1]:.4f} | {run.get('held_out_loss', math.nan):.5f}"
        print(f"| {way} | {ratios} | {run['padding']:.0%} | {losses} |")
    if {THEIRS, OURS} <= taken.keys():
        both = zip(taken[THEIRS][0]["losses"], taken[OURS][0]["losses"], strict=True)
        print(
            "In the same order, no step's loss differs by more than "
            f"{max(abs(a - b) for a, b in both):.1g}."
        )


if __name__ == "__main__":
    main()
