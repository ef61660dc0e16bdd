"""One event loop, in a thread of its own, that answers everything that the Python API asks.

A notebook has an event loop that runs already, beside which its thread can start no other. And the
caller's thread only waits here, so Ctrl-C is heard at once. The batch under way ends by itself; the
next call waits for it.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Where the wait is interrupted, the coroutine is cancelled."""
    future = asyncio.run_coroutine_threadsafe(main, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="cai", daemon=True).start()
    return loop


# a forked process has no such thread
os.register_at_fork(after_in_child=_loop.cache_clear)
