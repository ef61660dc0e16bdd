"""A server of a model whose answers a test writes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelHandler(BaseHTTPRequestHandler):
    """A test's own handler has `do_POST`."""

    def body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, choice: dict[str, Any]) -> None:
        """Sends one choice, as OpenAI's API has it."""
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        data = json.dumps({"choices": [{"finish_reason": "stop"} | choice], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def served(handler: type[ModelHandler], model: str) -> Iterator[list[str]]:
    """The overrides that name the server's model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield ["engine=openai", f"engine.model={model}", f"engine.server.urls=[{url}]"]
    server.shutdown()
    server.server_close()
