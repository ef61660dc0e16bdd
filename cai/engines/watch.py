"""Finds out that a server which is alive answers nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx2


class WatchedTransport(httpx2.AsyncHTTPTransport):
    """Takes requests to the server on a Unix socket.

    Calls `end` where the server has answered none of those that it has for `patience` seconds. No
    request has a limit of its own, since it may wait for others, which are answered meanwhile.
    """

    def __init__(
        self, socket: Path, limits: httpx2.Limits, patience: float, end: Callable[[], None]
    ):
        super().__init__(uds=str(socket), limits=limits)
        self._patience, self._end = patience, end
        self._under_way = 0
        self._alarm: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._under_way += 1
        if self._under_way == 1:
            self._set_alarm()
        try:
            return await super().handle_async_request(request)
        finally:
            self._under_way -= 1
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Anew with each answer, and none while the server has nothing to answer."""
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(self._patience, self._end) if self._under_way else None
