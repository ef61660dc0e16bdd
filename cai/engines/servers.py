"""Asks one of several HTTP servers that serve the same, none of which is trusted: each may be slow, away or wrong.

What another try may mend is tried again, with exponential backoff and full jitter. A server that keeps failing is left
alone for a while and then asked one thing at a time (a circuit breaker). What can't be mended raises.
"""

import asyncio
import json
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from cai.config.schema import ServerConfig
from cai.engines.base import RequestFailed
from cai.errors import CaiError, UsageError
from cai.observe.log import log
from cai.observe.metrics import count, set_gauge

T = TypeVar("T")

TRIPS = 5  # failures in a row after which a server is left alone

LONGEST = 60.0  # seconds between tries at most

LARGEST = (
    8 << 20
)  # bytes of an answer: the log-probabilities of 50,000 tokens fit, and no memory runs out


class Refused(Exception):
    """The server will not answer this request, however often it is asked."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class _Trouble(Exception):
    """Another try may help. `away`: the server is down or busy, which is not this request's fault."""

    def __init__(self, text: str, away: bool = False, rest: float = 0.0):
        super().__init__(text)
        self.away, self.rest = away, rest


class _Server:
    """One address, how many requests it is at, and its circuit breaker."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.address = httpx2.URL(f"{self.url}/")
        self.busy = self.failures = 0
        self.resting = 0.0  # until then nothing is sent to it
        self.probed = False

    def ready(self, now: float, concurrency: int) -> bool:
        """Whether it may be asked: never while it rests; after TRIPS failures in a row, one request at a time."""
        free = self.busy < concurrency if self.failures < TRIPS else not self.probed
        return free and now >= self.resting

    def fail(self, now: float, backoff: float) -> None:
        if now >= self.resting:  # what was under way when it fell says nothing new
            self.failures += 1
            if self.failures == TRIPS:
                log(f"{self.url} is left alone: {TRIPS} failures in a row", logging.WARNING)
            if self.failures >= TRIPS:
                self.resting = now + _wait(backoff, self.failures - TRIPS + 1)


class Servers:
    """The configured servers, asked from a thread of their own: a model that computes in this process holds no answer
    up, and one client outlives the event loops of several callers."""

    def __init__(self, config: ServerConfig):
        self.config = config
        self._key = read_key(config)
        self._servers = [_Server(url) for url in config.urls]
        self._waiting: deque[asyncio.Future[_Server]] = deque()
        self._answered = -math.inf  # when a server last said something of use
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx2.Timeout(None, connect=min(10.0, config.timeout))  # `ask` limits the whole
        self._http = httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine that calls `ask` in the servers' thread, for a caller in another."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        async def leave() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._http.aclose()

        asyncio.run_coroutine_threadsafe(leave(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def ask(
        self, path: str, body: dict[str, Any], read: Callable[[bytes], T]
    ) -> tuple[T, float]:
        """What `read` makes of the answer of URL + `path`, and the answer's share of its server's seconds.

        `read` raises ValueError where the answer is of no use. Raises Refused (a status of 3xx or 4xx), RequestFailed
        (more faults than `retries`), CaiError (no server was there for `patience` seconds).
        """
        content = json.dumps(body).encode()  # ASCII: half a surrogate pair has no other form
        asked, faults, tries = self._loop.time(), 0, 0
        while True:
            server = await self._lease()
            began = self._loop.time()
            try:
                async with asyncio.timeout(self.config.timeout):
                    answer = await self._exchange(server, path, content, read)
                took = self._loop.time() - began
                count("server_answers_total", server=server.url)
                count("server_seconds_total", took, server=server.url)
                return answer, took / server.busy
            except (_Trouble, httpx2.HTTPError, TimeoutError) as error:
                trouble, now = self._explained(server, error), self._loop.time()
                count(
                    "server_retries_total",
                    server=server.url,
                    cause="away" if trouble.away else "fault",
                )
                if trouble.rest:
                    server.resting = max(
                        server.resting, now + min(trouble.rest, self.config.patience)
                    )
                else:
                    server.fail(now, self.config.backoff)
            finally:
                self._release(server)
            tries += 1
            faults += not trouble.away
            if faults > self.config.retries:
                raise RequestFailed(f"{trouble} ({faults} tries)")
            if trouble.away and now - max(asked, self._answered) > self.config.patience:
                raise CaiError(
                    f"no server answers: {trouble}; see server.urls and server.patience of the engine"
                )
            await asyncio.sleep(random.uniform(0, _wait(self.config.backoff, tries)))  # noqa: S311 - no secret

    async def _exchange(
        self, server: _Server, path: str, content: bytes, read: Callable[[bytes], T]
    ) -> T:
        data = bytearray()
        async with self._http.stream(
            "POST", server.address.join(path), content=content
        ) as response:
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > LARGEST:
                    raise _Trouble(f"{server.url}: an answer of more than {LARGEST >> 20} MB")
        status, page = response.status_code, "html" in response.headers.get("content-type", "")
        if status >= 500 or status in (408, 409, 425, 429):
            rest = _seconds(response.headers.get("retry-after", ""))
            raise _Trouble(self._says(server, status, data), status in (429, 502, 503, 504), rest)
        try:
            answer = read(bytes(data)) if status < 300 and not page else None
        except ValueError as error:
            raise _Trouble(
                f"{server.url}: an answer that can't be used: {self._plain(str(error))}"
            ) from None
        self._answered, server.failures = self._loop.time(), 0
        if answer is None:
            raise Refused(status, self._says(server, status, data))
        return answer

    def _explained(self, server: _Server, error: Exception) -> _Trouble:
        if isinstance(error, _Trouble):
            return error
        if isinstance(error, TimeoutError):
            return _Trouble(f"{server.url}: no answer in {self.config.timeout:g} s")
        away = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        return _Trouble(f"{server.url}: {type(error).__name__}: {self._plain(str(error))}", away)

    def _says(self, server: _Server, status: int, data: bytearray) -> str:
        """A server's error in one line."""
        try:
            text = json.loads(data)["error"]["message"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = data[:2000].decode("utf-8", "replace")
        return f"{server.url}: HTTP {status}: {self._plain(str(text))}"

    def _plain(self, text: str) -> str:
        """At most 300 characters that are safe to show. Servers repeat what they were sent: the key is taken out."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]

    async def _lease(self) -> _Server:
        """The least busy server that may be asked; first come, first served."""
        turn: asyncio.Future[_Server] = self._loop.create_future()
        self._waiting.append(turn)
        self._wake()
        try:
            return await turn
        except asyncio.CancelledError:  # its turn may have come just before
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _release(self, server: _Server) -> None:
        server.busy -= 1
        set_gauge("server_open", server.busy, server=server.url)
        server.probed = False
        if (rest := server.resting - self._loop.time()) > 0:
            self._loop.call_later(rest + 0.01, self._wake)  # a timer may ring a little early
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            now = self._loop.time()
            ready = [
                server for server in self._servers if server.ready(now, self.config.concurrency)
            ]
            if not ready:
                return
            turn = self._waiting.popleft()
            if not turn.done():  # its row may be gone
                server = min(ready, key=lambda server: server.busy)
                server.busy += 1
                set_gauge("server_open", server.busy, server=server.url)
                server.probed = server.failures >= TRIPS
                turn.set_result(server)


def read_key(config: ServerConfig) -> str:
    """The key from the environment variable that `server.key` names; empty where it names none. Raises UsageError."""
    if config.key is None:
        return ""
    key = os.environ.get(config.key, "").strip()
    if (
        not key or not key.isascii() or not key.isprintable()
    ):  # such a key would show up in an error about headers
        raise UsageError(
            f"server.key: the environment variable {config.key} is not set, or holds no key"
        )
    return key


def _wait(backoff: float, times: int) -> float:
    """Seconds, doubling each time."""
    return min(LONGEST, backoff * 2.0 ** min(times, 30))


def _seconds(text: str) -> float:
    """A Retry-After header (RFC 9110, section 10.2.3): seconds or a date. 0 where there is none."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
