"""A deterministic engine for tests of the method: its answers are a function of the request."""

from cai.config.schema import EngineConfig
from cai.digest import digest, sha256
from cai.engines.base import Completion, OnText, Request


class ScriptedEngine:
    """Each reply names the request that it answers. A log-probability follows from the text."""

    def __init__(self, config: EngineConfig, model: str):
        self.config, self.model = config, model
        self.requests: list[Request] = []

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        self.requests.append(request)
        turns = len(request.messages)
        if request.sampling is None:
            logprobs = [
                -int(sha256(text.encode())[:4], 16) / 65536 for text in request.continuations
            ]
            return Completion("", "score", turns, 0, 0.0, tuple(logprobs))
        request_id, turn_id = request.digest(self.model)[:8], digest(request.messages[-1])[:8]
        text = f"reply {request_id} to turn {turns}: {turn_id}"
        return Completion(text, "stop", turns, len(text.split()), 0.0)

    def close(self) -> None:
        self.requests.clear()
