"""The ledger alone: completions read and durably written per second, its size and its memory.

    .venv/bin/python benchmarks/replay.py --rows 1000000

Completions of about 1,000 characters are committed in batches; each batch is one durable
transaction. Then they are read in random order: bare, as `Ledger.get` does, and as a row meets it,
with its request's digest, through `Recorded`. Seconds are the clock's and the processor's; the
latter change less where others use the machine.
"""

import argparse
import asyncio
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cai.config.schema import Sampling
from cai.engines.base import Completion, Engine, Request
from cai.engines.ledger import Ledger, Recorded
from cai.messages import assistant, user

TEXT = "".join(random.Random(0).choices("abcdefghij ", k=20_000))


def request(number: int) -> Request:
    """A critique's: a prompt, an answer of 1,000 characters, and the principle's question."""
    start = number % 19_000
    turns = (
        user(f"Question {number}?"),
        assistant(TEXT[start : start + 1000]),
        user("What is wrong with it?"),
    )
    return Request(turns, Sampling(), seed=number)


def completion(number: int) -> Completion:
    start = number % 18_999
    return Completion(TEXT[start : start + 1000], "stop", 300, 220, 1.5)


def timed(count: int, work: Callable[[], object]) -> dict[str, float]:
    wall, busy = time.perf_counter(), time.process_time()
    work()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {
        "rows": count,
        "per_second": round(count / wall),
        "per_processor_second": round(count / busy),
    }


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def missing() -> Engine:
    raise AssertionError("all is in the ledger")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256, help="completions in one transaction")
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger, before = Ledger(path), megabytes()

        def write() -> None:
            for start in range(0, options.rows, options.batch):
                numbers = range(start, min(start + options.batch, options.rows))
                ledger.put(
                    "revise",
                    "model",
                    [(request(n).digest("model"), completion(n)) for n in numbers],
                )

        found: dict[str, object] = {"write": timed(options.rows, write)}
        chosen = random.Random(1).choices(range(options.rows), k=options.reads)
        keys = [request(number).digest("model") for number in chosen]
        found["read"] = timed(options.reads, lambda: [ledger.get(key) for key in keys])
        recorded = Recorded(missing, ledger, "revise", "model")

        async def replay() -> None:
            for number in chosen:
                await recorded.complete(request(number))

        found["replay"] = timed(options.reads, lambda: asyncio.run(replay()))
        ledger.close()
        found["bytes_a_row"] = round(path.stat().st_size / options.rows)
        found["memory_mb"] = {"before": before, "most": megabytes()}
        found["open_again"] = timed(1, lambda: Ledger(path).close())
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
