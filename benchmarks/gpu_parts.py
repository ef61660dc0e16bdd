"""The parts of benchmarks/gpu.py. Each yields its rows: `case`, and figures by their names."""

import dataclasses
import gc
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open

from benchmarks import loop as bench_loop
from benchmarks import training as bench_training
from benchmarks.gpu import NO_CUDA
from benchmarks.gpu_speed import Rows, attention, step
from cai.config.compose import compose
from cai.config.schema import Config
from cai.engines.base import open_engine
from cai.models.convert import locate
from cai.models.load import load_tokenizer
from cai.store.run_folder import Run
from cai.training.memory import GIB

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


def require_cuda() -> None:
    if not torch.cuda.is_available():
        sys.exit(f"{NO_CUDA} (torch {torch.__version__}); --device cpu --small tries this check")


def machine(device: str, small: bool, model: Sequence[str]) -> Rows:
    row: dict[str, Any] = {"case": platform.processor() or platform.machine()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        row = {
            "case": properties.name,
            "GiB": round(properties.total_memory / GIB, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "CUDA": torch.version.cuda,
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    row["Python"] = platform.python_version()
    yield row | {name: importlib.metadata.version(name) for name in LIBRARIES}


def losses(device: str, small: bool, model: Sequence[str]) -> Rows:
    count = 8 if small else 32
    for kind in ("sft", "dpo"):
        words = [*bench_training.OVERRIDES, *model]
        source = locate(compose(words).model)
        with tempfile.TemporaryDirectory() as folder:
            rows = bench_training.read_source(
                kind, compose(words), load_tokenizer(source), count, Path(folder)
            )

        def train(where: str, *more: str, kind=kind, words=words, rows=rows) -> dict[str, Any]:
            ours, config = bench_training.OURS, compose([*words, *more])
            return bench_training.train(kind, ours, config, rows, None, device=where)

        on_cpu = train("cpu")["losses"]
        ways: dict[str, tuple[str, ...]] = {"float32": ()}
        if device == "cuda":
            ways["float32"] = (f"+{kind}.args.bf16=false",)
        if device == "cuda" and torch.cuda.is_bf16_supported():
            ways["bfloat16 autocast"] = ()
        for name, more in ways.items():
            figures = train(device, *more)
            differences = [
                abs(loss - other) for loss, other in zip(figures["losses"], on_cpu, strict=True)
            ]
            yield {
                "case": f"{kind}, {name}",
                "steps": len(differences),
                "last loss": round(figures["losses"][-1], 4),
                "on the CPU": round(on_cpu[-1], 4),
                "largest difference": float(f"{max(differences):.1e}"),
                "train seconds": round(figures["seconds"], 1),
            }


def cai(*words: str) -> None:
    """Runs cai as a person would; if it fails, so does this part, with cai's last words."""
    command = [sys.executable, "-m", "cai", *words]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if process.returncode != 0:
        sys.exit(f"cai ended with {process.returncode}: {process.stderr.strip()[-250:]}")


def quickstart(device: str, small: bool, model: Sequence[str]) -> Rows:
    name = "smoke" if small else "quickstart"
    with tempfile.TemporaryDirectory() as folder:
        words = [f"experiment={name}", f"engine.device={device}", f"outputs={folder}", *model]
        cai(*words)
        run = Run(Path(folder) / name)
        start = Path(locate(compose(words).model)) / "model.safetensors"
        for stage in ("sft", "revise", "sl_cai", "label", "dpo", "evaluate"):
            manifest = run.latest(stage)
            assert manifest is not None, stage
            row: dict[str, Any] = {"case": stage, "stage seconds": round(manifest.seconds, 1)}
            out = run.folder(stage, manifest.key) / "out"
            if (out / "adapter").is_dir():
                row |= {"update kept": round(kept_update(start, out), 3)}
                start = out / "model" / "model.safetensors"
            yield row


def kept_update(start: Path, out: Path) -> float:
    """How much of the adapter's update is in the published weights: 1.0 is all of it.

    It is the projection of (published - starting weights) onto the adapter's update. Rounding the
    weights to bfloat16 loses updates that are smaller than half a step of that format.
    """
    lora: Any = LoraConfig.from_pretrained(str(out / "adapter"))
    scale = lora.lora_alpha / lora.r
    kept = norm = 0.0
    published = out / "model" / "model.safetensors"
    adapter_file = out / "adapter" / "adapter_model.safetensors"
    with (
        safe_open(start, "pt") as before,
        safe_open(published, "pt") as after,
        safe_open(adapter_file, "pt") as adapter,
    ):
        for key in sorted(adapter.keys()):
            if ".lora_A." not in key:
                continue
            name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            down = adapter.get_tensor(key).float()
            up = adapter.get_tensor(key.replace("lora_A", "lora_B")).float()
            update = scale * (up @ down)
            change = after.get_tensor(name).float() - before.get_tensor(name).float()
            kept += (change * update).sum().item()
            norm += update.square().sum().item()
    return kept / norm if norm else float("nan")


def loop(device: str, small: bool, model: Sequence[str]) -> Rows:
    prompts, new_tokens, batch_rows = (4, 12, 4) if small else (256, 64, 64)
    greedy = f"{{temperature: 0, max_new_tokens: {new_tokens}}}"
    samplings = f"{{answer: {greedy}, critique: {greedy}, revision: {greedy}}}"
    words = [*bench_loop.OVERRIDES, *model, f"engine.device={device}"]
    words += [f"revise.prompts.limit={prompts}", f"revise.sampling={samplings}"]
    words += [f"engine.batch_rows={batch_rows}"]
    by_name: dict[str, list[str]] = {}
    for dtype in ("float32",) if device == "cpu" else ("float32", "bfloat16"):
        config = compose([*words, f"engine.dtype={dtype}"])
        source = locate(config.model)
        for name in ("cai", "padded generate"):
            if name == "cai":
                engine: Any = open_engine(config.engine, source)
            else:
                engine = bench_loop.Plain(source, batch_rows, dtype, device)
            figures = loop_figures(config, engine, source)
            texts = by_name[f"{name}, {dtype}"] = figures.pop("texts")
            first = next(iter(by_name.values()))
            same = sum(text == other for text, other in zip(texts, first, strict=True))
            yield {
                "case": f"{name}, {dtype}",
                **figures,
                "texts as the first": f"{same}/{len(texts)}",
            }
            engine.close()
            gc.collect()


def loop_figures(config: Config, engine: Any, source: str) -> dict[str, Any]:
    prompts = dataclasses.replace(config.revise.prompts, limit=2)
    few = dataclasses.replace(config, revise=dataclasses.replace(config.revise, prompts=prompts))
    bench_loop.with_engine(few, engine)  # a first turn, which does not count
    figures = bench_loop.with_engine(config, engine)
    tokenizer: Any = load_tokenizer(source)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in figures["texts"])
    speed = round(tokens / figures["seconds"])
    return {"tokens/s": speed, "tokens": tokens, "texts": figures["texts"]}


def fsdp(device: str, small: bool, model: Sequence[str]) -> Rows:
    """On a CPU, which has no FSDP: `accelerate launch` alone."""
    launcher = ["launcher=accelerate", 'launcher.args=["--num_processes=1"]']
    if device == "cuda":
        args = compose(["launcher=fsdp"]).launcher.args
        one = [word.replace("--num_processes=2", "--num_processes=1") for word in args]
        launcher = ["launcher=fsdp", f"launcher.args={json.dumps(one)}"]
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=smoke", f"engine.device={device}", f"outputs={folder}", *model]
        cai(*words, *launcher, "stages=[sft,revise]")
        run = Run(Path(folder) / "smoke")
        for stage in ("sft", "revise"):
            manifest = run.latest(stage)
            assert manifest is not None, stage
            yield {"case": stage, "stage seconds": round(manifest.seconds, 1)}


PARTS = {part.__name__: part for part in (machine, attention, step, losses, quickstart, loop, fsdp)}
