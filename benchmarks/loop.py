"""The critique and revision loop: cai's engine beside what a user would otherwise run.

    make bench-loop

Red-team prompts, greedy: first answer, then critique and revision after two exemplars, on
SmolLM2-135M. Each engine has a process of its own, which keeps its model; they take turns at the
same rows. vLLM and distilabel run in environments of their own (`--vllm PYTHON`,
`--distilabel PYTHON`; the Makefile builds both).

The table gives the median seconds of the clock and of the processor, and the ratio to the first
engine's. It also gives how many texts equal those of plain `generate`, one request at a time (or
the first's). Loading the model is counted for none. The processor's seconds of vLLM are not known,
since its worker goes on.

For cai it also gives the efficiency: the arithmetic of the loop's different tokens over the time,
as a share of the machine's own float32 matrix product. What rows share, and what a row's next
request repeats, is counted once.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai.config.compose import compose
from cai.config.schema import Config
from cai.data.prompts import load_prompts
from cai.engines.base import Completion, Engine, Request, open_engine
from cai.engines.batcher import Batcher
from cai.engines.rows import gather_rows
from cai.engines.transformers import TransformersEngine
from cai.messages import assistant
from cai.method.constitution import Constitution
from cai.method.critique import Revision, revise
from cai.models.chat_template import render

ALONE, PADDED = "generate, one by one", "generate, padded batches of 16"
VLLM, DISTILABEL = "vLLM, prefixes cached", "distilabel, TransformersLLM"
OVERRIDES = ["experiment=bench", "revise.exemplars=2", "revise.exemplar_choice=fixed"]
Figures = dict[str, Any]


class Plain:
    """What scripts do: tokenize `rows` waiting requests, padded on the left, and call generate."""

    def __init__(self, model: str, rows: int, dtype: str, device: str = "cpu"):
        from cai.models.load import load_model, load_tokenizer

        self.tokenizer: Any = load_tokenizer(model)
        self.tokenizer.padding_side = "left"
        self.model: Any = load_model(model, dtype, device).eval()
        self._batcher = Batcher(lambda waiting: list(range(min(rows, len(waiting)))), self._run)

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        return await self._batcher.complete(request)

    def _run(self, batch: list[Request]) -> list[Completion]:
        import torch

        assert batch[0].sampling is not None
        texts = [render(self.tokenizer, request.messages) for request in batch]
        inputs = self.tokenizer(
            texts, padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=batch[0].sampling.max_new_tokens, do_sample=False
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        replies = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Completion(reply.strip(), "stop", 0, 0, 0.0) for reply in replies]

    def close(self) -> None:
        self.model = None


def loop_of(name: str, config: Config, model: str, python: str | None) -> Callable[[], Figures]:
    """What runs the loop once, on an engine that is open. `python`: that of vLLM's environment."""
    if name == DISTILABEL:
        from benchmarks.loop_distilabel import run

        return lambda: run(config, model)
    opened: Engine
    if name in (ALONE, PADDED):
        opened = Plain(model, 1 if name == ALONE else 16, config.engine.dtype)
    elif name == VLLM:
        own = compose([*OVERRIDES, "engine=vllm", f"engine.dtype={config.engine.dtype}"])
        opened = open_engine(replace(own.engine, python=python), model)
    else:
        opened = open_engine(config.engine, model)
    return lambda: with_engine(config, opened)


def with_engine(config: Config, engine: Engine) -> Figures:
    constitution = Constitution.load(config.constitution)
    prompts = load_prompts(config.revise.prompts, config.data, config.seed)
    asked: list[tuple[Request, Completion]] = []

    async def ask(request: Request) -> Completion:
        asked.append((request, await engine.complete(request)))
        return asked[-1][1]

    started, busy = time.perf_counter(), processor()
    chains = asyncio.run(
        gather_rows([revise(p, constitution, config.revise, config.seed, ask) for p in prompts])
    )
    found: Figures = {"seconds": time.perf_counter() - started, "processor": processor() - busy}
    if isinstance(engine, TransformersEngine):
        found["gflop"], found["gflop_attention"] = (
            flop / 1e9 for flop in arithmetic(engine, asked)
        )
    return found | {"texts": [text for chain in chains for text in texts(chain)]}


def texts(chain: Revision) -> list[str]:
    return [
        chain.answer,
        *(text for step in chain.steps for text in (step.critique, step.revision)),
    ]


def processor() -> float:
    """Seconds of the processor, of this process and of its children that have ended."""
    return sum(os.times()[:4])


def arithmetic(engine: Any, asked: list[tuple[Request, Completion]]) -> tuple[float, float]:
    """FLOP for the different tokens of all requests: (of the weights, of attention).

    Of the weights: two a weight for each token that is read, and two more a weight of the output
    layer for each that is written. Of attention: four a number of a query, for each token that it
    looks at."""
    config = engine.model.config
    head = engine.model.get_output_embeddings().weight.numel()
    layers = (
        sum(p.numel() for p in engine.model.parameters())
        - engine.model.get_input_embeddings().weight.numel()
    )
    layers -= 0 if config.tie_word_embeddings else head
    different: set[tuple[int, ...]] = set()
    written = 0
    for request, completion in asked:
        turns = (*request.messages, assistant(completion.text))
        ids = engine.tokenizer(render(engine.tokenizer, turns), add_special_tokens=False)[
            "input_ids"
        ]
        place = 0
        for end in range(1, len(ids) + 1):  # a token is the same where all that stands before it is
            place = hash((place, ids[end - 1]))
            different.add((end, place))
        written += completion.new_tokens
    width = config.num_attention_heads * config.head_dim
    seen = sum(end for end, _ in different)
    return 2.0 * (
        layers * len(different) + head * written
    ), 4.0 * config.num_hidden_layers * width * seen


def peak() -> float:
    """GFLOP a second of the best of ten products of two float32 matrices, 2,048 wide."""
    import torch

    one, other = torch.randn(2048, 2048), torch.randn(2048, 2048)
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(one, other)
        taken.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(taken) / 1e9


def work(name: str, config: Config, model: str, python: str | None) -> None:
    """A worker: runs the loop once for each line it is sent, and answers with a line of JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    run = loop_of(name, config, model, python)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        found = {"gflops_peak": peak()} if line.strip() == "peak" else run()
        print(json.dumps(found), file=out, flush=True)


def main() -> None:
    from cai.models.convert import locate

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48, help="the most that a reply may have")
    parser.add_argument(
        "--dtype", default="float32", help="of all engines: the weights' and the arithmetic's"
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--engines", nargs="*", default=["cai", ALONE, PADDED])
    parser.add_argument("--vllm", help="the Python of an environment with vLLM, to run that too")
    parser.add_argument(
        "--distilabel", help="the Python of an environment with distilabel, to run that too"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sampling = f"{{temperature: 0, max_new_tokens: {options.new_tokens}}}"
    replies = f"revise.sampling={{answer: {sampling}, critique: {sampling}, revision: {sampling}}}"
    config = compose(
        [
            *OVERRIDES,
            replies,
            f"revise.prompts.limit={options.rows}",
            f"engine.dtype={options.dtype}",
        ]
    )
    model = locate(config.model)
    if options.worker:
        work(options.worker, config, model, options.vllm)
        return
    pythons = dict.fromkeys(options.engines, sys.executable)
    if options.vllm:
        pythons[VLLM] = sys.executable  # its server has the other Python
    if options.distilabel:
        pythons[DISTILABEL] = options.distilabel
    command = [
        "-m",
        "benchmarks.loop",
        "--rows",
        str(options.rows),
        "--new-tokens",
        str(options.new_tokens),
    ]
    command += ["--dtype", options.dtype]
    command += ["--vllm", options.vllm] if options.vllm else []
    workers = {
        name: subprocess.Popen(
            [python, *command, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for name, python in pythons.items()
    }

    def hear(name: str) -> str:
        outlet = workers[name].stdout
        assert outlet
        if not (line := outlet.readline()):
            raise SystemExit(
                f"{name}: its process has ended with {workers[name].wait()}; "
                "what it said stands above"
            )
        return line

    def ask(name: str, what: str) -> Figures:
        inlet = workers[name].stdin
        assert inlet
        print(what, file=inlet, flush=True)
        return json.loads(hear(name))

    for name in workers:
        hear(name)
    taken: dict[str, list[Figures]] = {name: [] for name in workers}
    peaks = []
    for _ in range(options.times):
        for name in workers:
            if name == "cai":
                peaks.append(ask(name, "peak")["gflops_peak"])
            one = ask(name, "run")
            taken[name].append(one)
            print(
                f"{name}: {one['seconds']:.1f} s, of the processor {one['processor']:.1f}",
                flush=True,
            )
            if options.json:
                options.json.with_suffix(".part").write_text(json.dumps(taken))
    for worker in workers.values():
        worker.communicate()
    table = summary(taken, peaks)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))
        options.json.with_suffix(".part").unlink()


def summary(taken: dict[str, list[Figures]], peaks: list[float]) -> Figures:
    """Prints the table and returns its figures."""

    def median(name: str, figure: str) -> float:
        return statistics.median(one[figure] for one in taken[name])

    first = next(iter(taken))
    table: Figures = {}
    print("| engine | seconds | ratio | processor seconds | ratio | texts equal |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in taken.items():
        wall, busy = median(name, "seconds"), median(name, "processor")
        written = runs[-1]["texts"]
        same = sum(
            a == b
            for a, b in zip(written, taken.get(ALONE, taken[first])[-1]["texts"], strict=True)
        )
        ratios = wall / median(first, "seconds"), busy / median(first, "processor")
        seconds = [[one["seconds"], one["processor"]] for one in runs]
        table[name] = {"seconds": seconds, "ratios": ratios, "same": same, "texts": len(written)}
        print(
            f"| {name} | {wall:.1f} | {ratios[0]:.2f} | {busy:.1f} | {ratios[1]:.2f} "
            f"| {same} of {len(written)} |"
        )
    if "gflop" in taken.get("cai", [{}])[0]:
        weights, attention, seconds = (
            median("cai", what) for what in ("gflop", "gflop_attention", "seconds")
        )
        best = statistics.median(peaks)
        shares = weights / seconds / best, (weights + attention) / seconds / best
        table["efficiency"] = {
            "gflop": weights,
            "gflop_attention": attention,
            "peak": best,
            "shares": shares,
        }
        print(
            f"cai, GFLOP/s for different tokens: {weights / seconds:.0f} of the weights, "
            f"{shares[0]:.0%} of {best:.0f};"
        )
        print(f"with attention {(weights + attention) / seconds:.0f}, {shares[1]:.0%}")
    return table


if __name__ == "__main__":
    main()
