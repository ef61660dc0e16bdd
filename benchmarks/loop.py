"""The critique and revision loop: cai's engine beside what a user would otherwise write.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/loop.py --rows 16

Red-team prompts, greedy: first answer, then critique and revision after two exemplars, on SmolLM2-135M. The engines
take turns at the same rows in one process; the table gives the median seconds of the clock and of the processor (these
change less where others use the machine too), the ratio to cai's own, and how many texts equal those of plain
`generate` one request at a time. `--engines cai vllm` runs in vLLM's environment (make test-vllm builds it).
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.composing import compose
from cai.config import Config
from cai.constitution import Constitution
from cai.critique import Revision, revise
from cai.data.formats import load_prompts
from cai.dialogue import render
from cai.engines.base import Batcher, Completion, Engine, Request, gather_rows, open_engine

ALONE, PADDED = "generate, one by one", "generate, padded batches of 16"
OVERRIDES = ["experiment=quickstart", "revise.exemplars=2", "revise.exemplar_choice=fixed"]


class Plain:
    """What scripts do: tokenize `rows` waiting requests with padding on the left, and call generate."""

    def __init__(self, model: str, rows: int):
        from cai.training.model import load_model, load_tokenizer

        self.tokenizer: Any = load_tokenizer(model)
        self.tokenizer.padding_side = "left"
        self.model: Any = load_model(model, "float32", "cpu").eval()
        self._batcher = Batcher(lambda waiting: list(range(min(rows, len(waiting)))), self._run)

    async def complete(self, request: Request) -> Completion:
        return await self._batcher.complete(request)

    def _run(self, batch: list[Request]) -> list[Completion]:
        import torch

        assert batch[0].sampling is not None
        texts = [render(self.tokenizer, request.messages) for request in batch]
        inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=batch[0].sampling.max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        replies = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Completion(reply.strip(), "stop", 0, 0, 0.0) for reply in replies]

    def close(self) -> None:
        self.model = None


def engines(config: Config, model: str) -> dict[str, Callable[[], Engine]]:
    return {
        "cai": lambda: open_engine(config.engine, model),
        ALONE: lambda: Plain(model, 1),
        PADDED: lambda: Plain(model, 16),
        "vllm": lambda: open_engine(compose([*OVERRIDES, "engine=vllm"]).engine, model),
    }


def loop(config: Config, engine: Engine) -> tuple[float, float, list[str]]:
    """Seconds of the clock, seconds of the processor, and every text of every chain."""
    constitution = Constitution.load(config.constitution)
    prompts = load_prompts(config.revise.prompts, config.data, config.seed)
    started, busy = time.perf_counter(), time.process_time()
    chains = asyncio.run(
        gather_rows([revise(p, constitution, config.revise, config.seed, engine.complete) for p in prompts])
    )
    wall, busy = time.perf_counter() - started, time.process_time() - busy
    return wall, busy, [text for chain in chains for text in texts(chain)]


def texts(chain: Revision) -> list[str]:
    return [chain.answer, *(text for step in chain.steps for text in (step.critique, step.revision))]


def main() -> None:
    from cai.training.model import locate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48, help="the most that a reply may have")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--engines", nargs="*", default=["cai", ALONE, PADDED])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    sampling = f"{{temperature: 0, max_new_tokens: {options.new_tokens}}}"
    replies = f"revise.sampling={{answer: {sampling}, critique: {sampling}, revision: {sampling}}}"
    config = compose([*OVERRIDES, replies, f"revise.prompts.limit={options.rows}"])
    known = engines(config, locate(config.model))
    opened = {name: known[name]() for name in options.engines}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in opened}
    written: dict[str, list[str]] = {}
    for _ in range(options.times):
        for name, engine in opened.items():
            wall, busy, written[name] = loop(config, engine)
            taken[name].append((wall, busy))
            print(f"{name}: {wall:.1f} s, of the processor {busy:.1f}", flush=True)
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in taken.items()
    }
    own = medians[options.engines[0]]
    table = {}
    print(
        "| engine | seconds | ratio | processor seconds | ratio | texts equal |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, (wall, busy) in medians.items():
        same = sum(a == b for a, b in zip(written[name], written.get(ALONE, []), strict=False))
        table[name] = {"seconds": taken[name], "medians": [wall, busy], "same": same, "texts": len(written[name])}
        ratios = f"{wall:.1f} | {wall / own[0]:.2f} | {busy:.1f} | {busy / own[1]:.2f}"
        print(f"| {name} | {ratios} | {same} of {len(written[name])} |")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
