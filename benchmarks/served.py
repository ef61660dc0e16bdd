"""Texts a second: cai's vLLM server beside a script that calls `LLM.generate` in waves.

    python -m benchmarks.served --vllm .venv-vllm/bin/python

Greedy, on SmolLM2-135M: an answer to each red-team prompt, then a second answer to a request that
the first is seen in. In waves the second round starts when the slowest answer of the first is done;
with cai each row goes on by itself. Both run in turn, each after a start of its own, which is not
counted. The table gives the seconds of both rounds, and how many texts are equal.

With --overhead: one answer to each prompt, asked by cai and by vLLM's own client, `vllm bench
serve`, in turn on one server that caches no prompts.
"""

import argparse
import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cai.config.compose import compose
from cai.config.schema import EngineConfig, Sampling
from cai.data.prompts import load_prompts
from cai.engines.base import Completion, Request, encode_request, open_engine
from cai.engines.rows import gather_rows
from cai.engines.vllm import VllmEngine
from cai.messages import Dialogue, Prompt, assistant, user
from cai.models.chat_template import render
from cai.models.convert import locate
from cai.models.load import load_tokenizer

AGAIN = user("Write your answer again, shorter and kinder.")

Measured = tuple[float, list[str]]  # seconds, and both rounds' texts row by row


def next_turn(prompt: Prompt, answer: str) -> Dialogue:
    return (*prompt.messages, assistant(answer), AGAIN)


def served(config: EngineConfig, model: str, prompts: list[Prompt], new_tokens: int) -> Measured:
    sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
    engine = open_engine(config, model)

    async def row(prompt: Prompt) -> list[str]:
        first = (await engine.complete(Request(prompt.messages, sampling))).text
        second = await engine.complete(Request(next_turn(prompt, first), sampling))
        return [first, second.text]

    async def rows() -> list[list[str]]:
        return await gather_rows([row(prompt) for prompt in prompts])

    try:
        began = time.perf_counter()
        texts = asyncio.run(rows())
        return time.perf_counter() - began, [text for both in texts for text in both]
    finally:
        engine.close()


def waves(config: EngineConfig, model: str, prompts: list[Prompt], new_tokens: int) -> Measured:
    tokenizer = load_tokenizer(model)
    script = Path(__file__).with_name("served_waves.py")
    options = {"model": model, "dtype": config.dtype} | config.options
    with subprocess.Popen(
        [config.python or "python3", str(script), json.dumps(options), str(new_tokens)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        inlet, outlet = worker.stdin, worker.stdout
        assert inlet and outlet

        def wave(dialogues: list[Dialogue]) -> list[str]:
            texts = [render(tokenizer, dialogue) for dialogue in dialogues]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            print(json.dumps(ids), file=inlet, flush=True)
            return json.loads(outlet.readline())

        assert outlet.readline() == "ready\n", "it has ended; what it said stands above"
        began = time.perf_counter()
        first = wave([prompt.messages for prompt in prompts])
        second = wave([next_turn(*pair) for pair in zip(prompts, first, strict=True)])
        seconds = time.perf_counter() - began
        inlet.close()
    return seconds, [text for both in zip(first, second, strict=True) for text in both]


def overhead(
    config: EngineConfig, model: str, prompts: list[Prompt], new_tokens: int, times: int
) -> None:
    """Seconds of one answer to each prompt, by cai and by vLLM's own client."""
    sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
    requests = [Request(prompt.messages, sampling) for prompt in prompts]
    options = config.options | {"enable_prefix_caching": False}
    engine = VllmEngine(replace(config, options=options), model)
    script, python = Path(__file__).with_name("served_raw.py"), config.python or "python3"
    command = [python, str(script), str(engine.server.socket), model, str(new_tokens)]
    ids = json.dumps([encode_request(engine.tokenizer, request)[0] for request in requests])

    async def rows() -> list[Completion]:
        return await gather_rows([engine.complete(request) for request in requests])

    def ours() -> float:
        began = time.perf_counter()
        asyncio.run(rows())
        return time.perf_counter() - began

    def raw() -> float:
        done = subprocess.run(command, input=ids, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout)

    try:
        print("| turn | cai | vllm bench serve |\n| --- | --- | --- |")
        print(f"| first on the server | {ours():.2f} | |", flush=True)
        for turn in range(times):
            print(f"| {turn + 1} | {ours():.2f} | {raw():.2f} |", flush=True)
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True, help="the Python of vLLM's environment")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--overhead", action="store_true", help="beside `vllm bench serve`")
    options = parser.parse_args()
    config = compose(["experiment=bench", "engine=vllm", "engine.dtype=float32"])
    engine = replace(
        config.engine, python=options.vllm, options={"max_model_len": 2048, "enforce_eager": True}
    )
    chosen = replace(config.revise.prompts, limit=options.rows)
    prompts = load_prompts(chosen, config.data, config.seed)
    if options.overhead:
        overhead(engine, locate(config.model), prompts, options.new_tokens, options.times)
        return
    ways: dict[str, Callable[..., Measured]] = {"served": served, "waves": waves}
    texts: dict[str, list[str]] = {}
    print("| | seconds | texts a second | equal |\n| --- | --- | --- | --- |")
    for _ in range(options.times):
        for name, way in ways.items():
            seconds, written = way(engine, locate(config.model), prompts, options.new_tokens)
            first = texts.setdefault("served", written)
            equal = sum(one == other for one, other in zip(first, written, strict=True))
            pace = len(written) / seconds
            print(
                f"| {name} | {seconds:.1f} | {pace:.2f} | {equal} of {len(written)} |", flush=True
            )


if __name__ == "__main__":
    main()
