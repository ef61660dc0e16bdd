"""The scheduler and the ledger with very many rows: the revise stage itself on a stand-in engine.

    .venv/bin/python benchmarks/scale.py --rows 20000

Every row is a coroutine that asks for a first answer, a critique and a revision. Every completion
is committed to the ledger. The stand-in answers after a random delay, many at once, as a server
does, with texts of about 1,000 characters. Tells rows and completions per second, the ledger's
size, and the process's memory. `--again` runs the stage a second time from the ledger. It needs no
model and no torch; the folder is removed afterwards.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cai.config.compose import compose
from cai.config.schema import DataConfig, EngineConfig, Prompts
from cai.engines.base import ENGINES, Completion, EngineKind, Request
from cai.observe.progress import Progress
from cai.stages import revise
from cai.stages.base import Context, Input

SENTENCE = (
    "a good answer says what it knows and what it does not "
    "and how a reader may find out more about it"
)
TEXT = " ".join(random.Random(0).choices(SENTENCE.split(), k=2500))


class StandIn:
    """Answers after `MEAN` seconds on average, AT_ONCE requests at a time.

    That is 20,000 a second at the most."""

    MEAN, AT_ONCE = 0.05, 1024

    def __init__(self, config: EngineConfig, model: str):
        self._free = asyncio.Semaphore(self.AT_ONCE)

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        rng = random.Random(request.seed)
        async with self._free:
            seconds = rng.expovariate(1 / self.MEAN)
            await asyncio.sleep(seconds)
        start = rng.randrange(9000)
        return Completion(TEXT[start : start + 1000].strip(), "stop", 300, 220, seconds)

    def close(self) -> None: ...


class Memory(threading.Thread):
    """Resident megabytes of this process, once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []

    def run(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(pages * resource.getpagesize() >> 20)
            time.sleep(1)


def measure(rows: int, root: Path, memory: Memory) -> dict[str, Any]:
    """One run of the stage on the rows of root/prompts.jsonl."""
    config = compose(["experiment=smoke"])
    ENGINES["scripted"] = EngineKind(f"{__name__}:StandIn")
    context = Context(
        stage="revise",
        seed=0,
        root=root,
        scratch=root,
        model=config.model,
        engine=EngineConfig(kind="scripted"),
        data={"many": DataConfig(kind="file", path=str(root / "prompts.jsonl"))},
        held_out={},
        constitution="harmlessness",
        inputs={"sft": Input(str(root), "0" * 64)},
        progress=Progress("revise"),
    )
    settings = dataclasses.replace(config.revise, prompts=Prompts(["many"]), rounds=1)
    work = root / "work"
    work.mkdir(exist_ok=True)
    before, begun, started, busy = (
        memory.seen[-1],
        len(memory.seen),
        time.perf_counter(),
        time.process_time(),
    )
    summary = revise.run(settings, work, context)
    took, busy = time.perf_counter() - started, time.process_time() - busy
    seen = memory.seen[begun:] or memory.seen[-1:]
    assert summary.prompts == rows
    return {
        "rows": rows,
        "completions": 3 * rows,
        "seconds": round(took, 1),
        "processor_seconds": round(busy, 1),
        "rows_per_second": round(rows / took),
        "completions_per_second": round(3 * rows / took),
        "ledger_mb": (root / "ledger.sqlite").stat().st_size >> 20,
        "memory_mb_before": before,
        "memory_mb_most": max(seen),
        "memory_mb_at_tenths": [seen[i * (len(seen) - 1) // 10] for i in range(11)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--again", action="store_true", help="then the same from the ledger")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (root / "prompts.jsonl").open("w") as file:
            for number in range(options.rows):
                file.write(json.dumps({"prompt": f"Question {number}: {SENTENCE[:60]}?"}) + "\n")
        time.sleep(1.1)
        found = {"first": measure(options.rows, root, memory)}
        if options.again:
            found["again"] = measure(options.rows, root, memory)
    for name, figures in found.items():
        print(f"{name}: {json.dumps(figures)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
