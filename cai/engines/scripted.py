"""A deterministic engine for tests of the method: it answers from a function of the request, in no time."""

import hashlib

from cai.config.schema import EngineConfig
from cai.digest import digest
from cai.engines.base import Completion, Request


class ScriptedEngine:
    """Each reply names the request that it answers; each log-probability follows from its option's text."""

    def __init__(self, config: EngineConfig, model: str):
        self.config, self.model = config, model
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if request.sampling is None:
            scores = [
                -int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 65536
                for text in request.continuations
            ]
            return Completion("", "score", len(request.messages), 0, 0.0, tuple(scores))
        own, asked = request.digest(self.model)[:8], digest(request.messages[-1])[:8]
        text = f"reply {own} to turn {len(request.messages)}: {asked}"
        return Completion(text, "stop", len(request.messages), len(text.split()), 0.0, ())

    def close(self) -> None:
        self.requests.clear()
