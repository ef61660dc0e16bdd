"""The engine interface: a request goes in, a completion comes out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cai.config.schema import EngineConfig, Sampling
from cai.digest import digest
from cai.errors import CaiError
from cai.messages import Dialogue, as_dicts

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """Either a reply to be sampled (`sampling` set) or log-probabilities of given `continuations`.

    A dialogue that ends in an assistant turn is continued inside that turn.
    """

    messages: Dialogue
    sampling: Sampling | None = None
    seed: int = 0
    continuations: tuple[str, ...] = ()
    principle: str = ""  # whose request it is, for the figures; no part of the digest

    def digest(self, model: str) -> str:
        """sha256 over everything that decides the completion. `model` covers weights, tokenizer and chat template."""
        seed = (
            self.seed if self.sampling and self.sampling.temperature > 0 else 0
        )  # greedy needs none
        parts = {
            "model": model,
            "messages": as_dicts(self.messages),
            "sampling": self.sampling,
            "seed": seed,
        }
        return digest(parts | {"continuations": self.continuations})


@dataclass(frozen=True)
class Completion:
    """What came back. `logprobs`: one natural-log probability for each continuation, summed over its tokens."""

    text: str
    finish_reason: (
        str  # stop | length | score | too_long (the prompt leaves no room in the model's context)
    )
    prompt_tokens: int
    new_tokens: int
    seconds: float  # this request's share of its batch's time
    logprobs: tuple[float, ...] = ()


class RequestFailed(CaiError):
    """A request that is refused, or that fails too often, and why. Its row is left out; the ledger keeps nothing of it,
    so that another run asks again."""


class Engine(Protocol):
    """Completes requests, many at a time."""

    async def complete(self, request: Request) -> Completion:
        """Raises RequestFailed where this request can't be answered and others may be."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


ENGINES = {
    "transformers": "cai.engines.transformers:TransformersEngine",
    "vllm": "cai.engines.vllm:VllmEngine",
    "openai": "cai.engines.openai:OpenAIEngine",
    "scripted": "cai.engines.scripted:ScriptedEngine",
}


def open_engine(config: EngineConfig, model: str) -> Engine:
    """The configured engine on a model folder or hub id (`id@revision`), or, of a server, on the model's name there."""
    module, name = ENGINES[config.kind].split(":")
    return getattr(importlib.import_module(module), name)(config, model)


def listened(engine: Engine, heard: Callable[[str], object] | None) -> Engine:
    """The engine, which tells `heard` the words of a text as the model writes it, where it is one that can."""
    if hasattr(engine, "heard"):
        engine.heard = heard  # pyright: ignore[reportAttributeAccessIssue]
    return engine
