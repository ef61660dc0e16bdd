"""A hung server is told from a slow one, with a small HTTP server on a Unix socket."""

import asyncio
import contextlib
from pathlib import Path

import httpx2
import pytest

from cai.engines.watch import WatchedTransport

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def ask(socket: Path, patience: float, requests: int, slowness: float) -> list[str]:
    """What a server that answers one request after another is found to be. -1: it never does."""
    ended: list[str] = []
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                async with turn:
                    await asyncio.sleep(slowness if slowness >= 0 else 600)
                writer.write(ANSWER)

    async with await asyncio.start_unix_server(serve, socket):
        transport = WatchedTransport(
            socket, httpx2.Limits(), patience, lambda: ended.append("hangs")
        )
        async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
            asked = [asyncio.ensure_future(client.get("http://it/")) for _ in range(requests)]
            done, waits = await asyncio.wait(asked, timeout=1.0)
            ended += [f"answered {len(done)}"]
            for request in waits:
                request.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            await asyncio.sleep(patience)  # nothing is open, so nothing hangs
    return ended


@pytest.mark.parametrize(
    ("requests", "slowness", "found"),
    [
        (6, 0.1, ["answered 6"]),  # the last waits for longer than the patience
        (3, -1, ["hangs", "answered 0"]),
        (0, 0, ["answered 0"]),
    ],
    ids=["slow", "hung", "idle"],
)
def test_a_server_hangs_where_it_answers_nothing(
    requests: int, slowness: float, found: list[str], tmp_path: Path
):
    assert asyncio.run(ask(tmp_path / "socket", 0.4, requests, slowness)) == found
