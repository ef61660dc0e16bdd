"""A hung server is told from a slow one, with a small HTTP server on a Unix socket."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.engines.watch import WatchedTransport

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
PATIENCE = 60.0


class SkippingLoop(asyncio.SelectorEventLoop):
    """Its clock does not run, but skips the time for which there is nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        selector: Any = self._selector  # pyright: ignore[reportAttributeAccessIssue]
        select = selector.select

        def skip(timeout: float | None = None) -> list[Any]:
            events = select(0)
            self.now += 0.0 if events else timeout or 0.0
            return events

        selector.select = skip

    def time(self) -> float:
        return self.now


async def ask(socket: Path, slowness: float) -> tuple[int, list[str]]:
    """How many of three requests are answered by a server that takes `slowness` seconds for each,
    one after another, and what is found of it."""
    found: list[str] = []
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while await reader.readuntil(b"\r\n\r\n"):
                async with turn:
                    await asyncio.sleep(slowness)
                writer.write(ANSWER)

    def end() -> None:
        found.append("hangs")
        for request in asked:  # as where a server is killed
            request.cancel()

    async with await asyncio.start_unix_server(serve, socket):
        transport = WatchedTransport(socket, httpx2.Limits(), PATIENCE, end)
        async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
            asked = [asyncio.ensure_future(client.get("http://it/")) for _ in range(3)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.sleep(2 * PATIENCE)  # it has nothing to answer now
    return sum(isinstance(result, httpx2.Response) for result in results), found


@pytest.mark.parametrize(
    ("slowness", "answered", "found"),
    [(40.0, 3, []), (1e6, 0, ["hangs"])],  # the last of the slow one's waits for 120 s
    ids=["slow", "hung"],
)
def test_a_server_hangs_where_it_answers_nothing(
    slowness: float, answered: int, found: list[str], tmp_path: Path
):
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        assert runner.run(ask(tmp_path / "socket", slowness)) == (answered, found)
