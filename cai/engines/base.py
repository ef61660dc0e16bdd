"""The engine interface: a request goes in, a completion comes out."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from cai.config.schema import EngineConfig, Sampling
from cai.digest import digest
from cai.errors import CaiError, UsageError
from cai.messages import Dialogue, as_dicts, assistant
from cai.models.chat_template import TemplateRefusal, render

if TYPE_CHECKING:  # it would load torch
    from transformers import PreTrainedTokenizerBase

OpenEngine = Callable[[EngineConfig, str], "Engine"]

OnText = Callable[[str], object]  # is told the words of a reply as they come


@dataclass(frozen=True)
class Request:
    """Asks for a reply (`sampling` is set), or for the log-probabilities of `continuations`.

    A dialogue that ends in an assistant turn is continued inside that turn.
    """

    messages: Dialogue
    sampling: Sampling | None = None
    seed: int = 0
    continuations: tuple[str, ...] = ()
    principle: str = ""  # id, for the metrics; not in the digest

    def digest(self, model: str) -> str:
        """The sha256 of everything that decides the completion.

        `model` is the digest of weights, tokenizer and chat template.
        """
        greedy = self.sampling is None or self.sampling.temperature == 0
        parts = {
            "model": model,
            "messages": as_dicts(self.messages),
            "sampling": self.sampling,
            "seed": 0 if greedy else self.seed,
            "continuations": self.continuations,
        }
        return digest(parts)


@dataclass(frozen=True)
class Completion:
    """The answer to a request."""

    text: str
    finish_reason: str  # stop | length | score | too_long (the context has no room for the request)
    prompt_tokens: int
    new_tokens: int
    seconds: float  # this request's share of its batch's time
    logprobs: tuple[float, ...] = ()  # natural log, one for each continuation: its tokens' sum


class RequestFailed(CaiError):
    """A request was refused, or failed too often.

    Its row is left out. The ledger keeps nothing of it, so another run asks again.
    """


def encode_request(
    tokenizer: "PreTrainedTokenizerBase", request: Request
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt, and of each continuation.

    A continuation has the tokens that it has behind the prompt, however the tokenizer splits it: as
    an answer, those that training would give it ([INST] templates write a space before). Where the
    two share a token, it belongs to the continuation. Raises RequestFailed where the template
    refuses.
    """

    def encode(text: str) -> list[int]:
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        prompt_ids = encode(render(tokenizer, request.messages))
        continued = [
            encode(render(tokenizer, continued_dialogue(request.messages, text)))
            for text in request.continuations
        ]
    except TemplateRefusal as error:
        raise RequestFailed(str(error)) from None
    return split_continuations(prompt_ids, continued)


def continued_dialogue(messages: Dialogue, text: str) -> Dialogue:
    """The dialogue with a continuation: of its last turn if that is the assistant's, or a turn."""
    if messages[-1].role != "assistant":
        return (*messages, assistant(text))
    return (*messages[:-1], assistant(messages[-1].content + text))


def split_continuations(
    prompt_ids: list[int], continued: Sequence[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """The tokens that a prompt has in common with all of its continued texts, and their others."""
    length = min((_common_length(prompt_ids, ids) for ids in continued), default=len(prompt_ids))
    return prompt_ids[:length], [ids[length:] for ids in continued]


def _common_length(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


class Engine(Protocol):
    """Completes requests, many at a time."""

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        """Raises RequestFailed where this request can't be answered but others may be.

        `on_text` is told a reply's words as they come, where the engine can and the request is
        alone.
        """
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


class EngineKind(NamedTuple):
    """Where a kind of engine is found, each as "module:name"."""

    engine: str  # a class that is made from (EngineConfig, model)
    check: str | None = None  # check(EngineConfig, key), in a file that loads nothing heavy
    ready: str | None = None  # ready(EngineConfig, its key): can it be opened on this machine?
    # a class whose open(EngineConfig, model) serves several models from one server
    shared: str | None = None


ENGINES = {
    "transformers": EngineKind("cai.engines.transformers:TransformersEngine"),
    "vllm": EngineKind(
        "cai.engines.vllm:VllmEngine",
        "cai.engines.vllm_options:check",
        "cai.engines.vllm_server:ready",
        "cai.engines.vllm:SharedServer",
    ),
    "openai": EngineKind(
        "cai.engines.openai:OpenAIEngine", "cai.engines.openai:check", "cai.engines.openai:ready"
    ),
    "scripted": EngineKind("cai.engines.scripted:ScriptedEngine"),
}


def open_engine(config: EngineConfig, model: str) -> Engine:
    """Opens the configured engine.

    `model` is a folder, a hub id (`id@revision`), or the model's name on a server.
    """
    return _import(ENGINES[config.kind].engine)(config, model)


@contextmanager
def sharing_servers(
    config: EngineConfig, models: Sequence[str], opener: OpenEngine
) -> Iterator[OpenEngine]:
    """Gives what opens engines as `opener` does, for models that are asked one after another.

    Some of them may share a server of this kind, which is closed at the end.
    """
    if len(models) < 2 or (shared := ENGINES[config.kind].shared) is None:
        yield opener
        return
    with closing(_import(shared)(config, models, opener)) as server:
        yield server.open


def check_engine(config: EngineConfig, key: str) -> None:
    """Checks what holds for this kind of engine alone. Raises UsageError.

    `key` is the engine's place in the configuration, e.g. `label.engine`.
    """
    if config.kind != "openai" and config.model is not None:
        raise UsageError(f"{key}.model: only kind: openai has such a name")
    if config.kind != "openai" and config.extra_body:
        raise UsageError(f"{key}.extra_body: only kind: openai sends such fields")
    if config.kind != "vllm" and (config.python is not None or config.options):
        name = "python" if config.python is not None else "options"
        raise UsageError(f"{key}.{name}: only kind: vllm has such a setting")
    if (check := ENGINES[config.kind].check) is not None:
        _import(check)(config, key)


def check_ready(config: EngineConfig, key: str = "engine") -> None:
    """Raises UsageError where an engine of this kind can't be opened on this machine.

    `key` is the engine's place in the configuration.
    """
    if (ready := ENGINES[config.kind].ready) is not None:
        _import(ready)(config, key)


def _import(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
