"""Serves the page on this machine alone, until Ctrl-C."""

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Mapping

import uvicorn

from cai.errors import UsageError
from cai.review.app import Review, View, make_app

HOST = "127.0.0.1"
GRACE = 2  # seconds that a request in progress has at the end


def serve(pages: Review | View, facts: Mapping[str, str], port: int, open_browser: bool) -> None:
    """Prints the address, with a token that is new at every start, and returns after Ctrl-C.

    `port`: 0 for a free one. Raises UsageError where it is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"--port {port}: {error.strerror}; without --port, a free one is taken"
            ) from None
        listener.listen()
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        address = f"http://{HOST}:{port}/?token={token}"
        config = uvicorn.Config(
            make_app(pages, token, port, facts),
            loop="asyncio",  # not uvloop where that happens to be installed
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        # uvicorn ends in order, and then raises the signal once more
        with contextlib.suppress(KeyboardInterrupt):
            print(f"{address}\nCtrl-C ends it.", flush=True)
            if open_browser:
                webbrowser.open(address)
            uvicorn.Server(config).run(sockets=[listener])
