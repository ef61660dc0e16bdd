"""Asks several HTTP servers that serve the same model. None is trusted: they may be slow or wrong.

What another try may mend is tried again, with exponential backoff and full jitter. A server that
keeps failing is left alone for a while and then asked one thing at a time (a circuit breaker). What
can't be mended raises.
"""

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from cai.config.schema import ServerConfig
from cai.digest import JsonObject
from cai.engines.base import RequestFailed
from cai.errors import CaiError, UsageError
from cai.observe.log import log
from cai.observe.metrics import count, set_gauge

T = TypeVar("T")

TRIPS = 5  # failures in a row after which a server is left alone
LONGEST = 60.0  # seconds between tries at most
LARGEST = 8 << 20  # bytes of an answer: the log-probabilities of 50,000 tokens fit


class Refused(Exception):
    """The server will not answer this request, however often it is asked."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Fault(Exception):
    """Another try may help. `away`: the server is down or busy, which is not the request's fault.

    `rest`: for so many seconds the server wants to be left alone; 0: it does not say.
    """

    def __init__(self, text: str, away: bool = False, rest: float = 0.0):
        super().__init__(text)
        self.away, self.rest = away, rest


class Server:
    """One address, how many requests it is at, and its circuit breaker."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.address = httpx2.URL(f"{self.url}/")
        self.busy = self.failures = 0
        self.resting_until = 0.0  # nothing is sent to it before
        self.probed = False  # after TRIPS failures, one request is under way

    def ready(self, now: float, concurrency: int) -> bool:
        """Whether it may be asked: never while it rests; after TRIPS failures, one at a time."""
        free = self.busy < concurrency if self.failures < TRIPS else not self.probed
        return free and now >= self.resting_until

    def fail(self, now: float, backoff: float, rest: float = 0.0) -> None:
        """Leaves it alone for the `rest` seconds that it asks for, or after too many failures."""
        if rest:
            self.resting_until = max(self.resting_until, now + rest)
            return
        if now < self.resting_until:  # what was under way when it fell says nothing new
            return
        self.failures += 1
        if self.failures == TRIPS:
            log(f"{self.url} is left alone: {TRIPS} failures in a row", logging.WARNING)
        if (doublings := self.failures - TRIPS + 1) > 0:
            self.resting_until = now + min(LONGEST, backoff * 2.0 ** min(doublings, 30))


class Servers:
    """The configured servers, asked from a thread of their own.

    So a model that computes in this process holds no answer up, and one client outlives the event
    loops of several callers.

    `transport` makes what takes requests to them. `revive` is called after each fault, in a thread,
    and returns once they should answer again; it raises CaiError where they never will.
    """

    def __init__(
        self,
        config: ServerConfig,
        transport: Callable[[httpx2.Limits], httpx2.AsyncBaseTransport] | None = None,
        revive: Callable[[], None] | None = None,
    ):
        self.config = config
        self._revive = revive
        self._key = read_key(config)
        self._servers = [Server(url) for url in config.urls]
        self._waiting: deque[asyncio.Future[Server]] = deque()
        self._last_answer = -math.inf  # when a server last said something of use
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx2.Timeout(None, connect=min(10.0, config.timeout))  # _try limits the whole
        way = transport(limits) if transport else None  # None: the network
        self._http = httpx2.AsyncClient(
            headers=headers, limits=limits, timeout=timeout, transport=way
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine that calls `ask` in the servers' thread, for a caller in another."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    async def ask(self, path: str, body: JsonObject, read: Callable[[bytes], T]) -> tuple[T, float]:
        """What `read` makes of the answer, and the answer's share of its server's seconds.

        `path` follows a server's URL. `read` raises ValueError where the answer is of no use.
        Raises Refused (a status of 3xx or 4xx), RequestFailed (more faults than `retries`) or
        CaiError (no server was there for `patience` seconds).
        """
        content = json.dumps(body).encode()  # ASCII: half a surrogate pair has no other form
        started, faults = self._loop.time(), 0
        wait = wait_random_exponential(multiplier=2 * self.config.backoff, max=LONGEST)
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(Fault), wait=wait):
            with attempt:
                try:
                    return await self._try(path, content, read)
                except Fault as fault:
                    if self._revive is not None:
                        await asyncio.to_thread(self._revive)
                    faults += not fault.away
                    if faults > self.config.retries:
                        raise RequestFailed(f"{fault} ({faults} tries)") from None
                    silent = self._loop.time() - max(started, self._last_answer)
                    if fault.away and silent > self.config.patience:
                        raise CaiError(
                            f"no server answers: {fault}; see server.urls and server.patience of "
                            "the engine"
                        ) from None
                    raise
        raise AssertionError("tries end with an answer or an error")

    async def _try(self, path: str, content: bytes, read: Callable[[bytes], T]) -> tuple[T, float]:
        """Asks one server once. Raises Fault, after which the server may be left alone."""
        server = await self._lease()
        started = self._loop.time()
        try:
            async with asyncio.timeout(self.config.timeout):
                answer = await self._exchange(server, path, content, read)
            seconds = self._loop.time() - started
            count("server_answers_total", server=server.url)
            count("server_seconds_total", seconds, server=server.url)
            return answer, seconds / server.busy
        except (Fault, httpx2.HTTPError, TimeoutError) as error:
            fault = self._fault(server, error)
            cause = "away" if fault.away else "fault"
            count("server_retries_total", server=server.url, cause=cause)
            rest = min(fault.rest, self.config.patience)
            server.fail(self._loop.time(), self.config.backoff, rest)
            raise fault from None
        finally:
            self._release(server)

    async def _exchange(
        self, server: Server, path: str, content: bytes, read: Callable[[bytes], T]
    ) -> T:
        received, url = bytearray(), server.address.join(path)
        async with self._http.stream("POST", url, content=content) as response:
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > LARGEST:
                    raise Fault(f"{server.url}: an answer of more than {LARGEST >> 20} MB")
        status, is_page = response.status_code, "html" in response.headers.get("content-type", "")
        if status >= 500 or status in (408, 409, 425, 429):
            rest = parse_retry_after(response.headers.get("retry-after", ""))
            away = status in (429, 502, 503, 504)
            raise Fault(self._error_text(server, status, received), away, rest)
        try:
            answer = read(bytes(received)) if status < 300 and not is_page else None
        except ValueError as error:
            reason = self._plain(str(error))
            raise Fault(f"{server.url}: an answer that can't be used: {reason}") from None
        self._last_answer, server.failures = self._loop.time(), 0
        if answer is None:
            raise Refused(status, self._error_text(server, status, received))
        return answer

    def _fault(self, server: Server, error: Exception) -> Fault:
        if isinstance(error, Fault):
            return error
        if isinstance(error, TimeoutError):
            return Fault(f"{server.url}: no answer in {self.config.timeout:g} s")
        away = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        return Fault(f"{server.url}: {type(error).__name__}: {self._plain(str(error))}", away)

    def _error_text(self, server: Server, status: int, received: bytearray) -> str:
        """A server's error in one line."""
        try:
            text = json.loads(received)["error"]["message"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = received[:2000].decode("utf-8", "replace")
        return f"{server.url}: HTTP {status}: {self._plain(str(text))}"

    def _plain(self, text: str) -> str:
        """At most 300 characters that are safe to show.

        Servers repeat what they were sent, so the key is taken out.
        """
        text = text.replace(self._key, "***") if self._key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]

    async def _lease(self) -> Server:
        """The least busy server that may be asked; first come, first served."""
        turn: asyncio.Future[Server] = self._loop.create_future()
        self._waiting.append(turn)
        self._wake()
        try:
            return await turn
        except asyncio.CancelledError:  # its turn may have come just before
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _release(self, server: Server) -> None:
        self._set_busy(server, server.busy - 1)
        server.probed = False
        if (rest := server.resting_until - self._loop.time()) > 0:
            self._loop.call_later(rest + 0.01, self._wake)  # a timer may ring a little early
        self._wake()

    def _wake(self) -> None:
        """Gives free servers to the requests that wait."""
        while self._waiting:
            now, concurrency = self._loop.time(), self.config.concurrency
            ready = [server for server in self._servers if server.ready(now, concurrency)]
            if not ready:
                return
            turn = self._waiting.popleft()
            if not turn.done():  # its row may be gone
                server = min(ready, key=lambda server: server.busy)
                self._set_busy(server, server.busy + 1)
                server.probed = server.failures >= TRIPS
                turn.set_result(server)

    @staticmethod
    def _set_busy(server: Server, requests: int) -> None:
        server.busy = requests
        set_gauge("server_open", requests, server=server.url)


def read_key(config: ServerConfig, engine: str = "engine") -> str:
    """The key from the environment variable that `server.key` names; empty where it names none.

    `engine` is the engine's place in the configuration. Raises UsageError.
    """
    if config.key is None:
        return ""
    key = os.environ.get(config.key, "").strip()
    # a key with other characters would show up in an error about headers
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(
            f"{engine}.server.key: the environment variable {config.key} is not set, or holds no "
            "key"
        )
    return key


def parse_retry_after(text: str) -> float:
    """Seconds from a Retry-After header (RFC 9110, section 10.2.3), which may be a date; else 0."""
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
