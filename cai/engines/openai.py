"""The engine on OpenAI-compatible servers: vLLM, SGLang, llama.cpp, Ollama, hosted ones."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cai.config.schema import EngineConfig
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.servers import Refused, Servers
from cai.errors import CaiError
from cai.messages import as_dicts

T = TypeVar("T")

TOP = 20  # first tokens with their log-probabilities: as many as servers give

TOO_LONG = re.compile(r"context[ _]?(length|size|window)", re.IGNORECASE)  # how they all say it

EXTRAS = {
    "top_k",
    "repetition_penalty",
    "continue_final_message",
    "add_generation_prompt",
}  # not in OpenAI's own API

Count = Annotated[int, Field(ge=0, lt=1 << 32)]

Logprob = Annotated[
    float, Field(le=0.01, allow_inf_nan=False)
]  # rounding may lift it a little above 0


@dataclass(frozen=True)
class _Message:
    content: str | None = None


@dataclass(frozen=True)
class Likely:
    """A first token and its natural-log probability."""

    token: str
    logprob: Logprob


@dataclass(frozen=True)
class _Position:
    top_logprobs: list[Likely]


@dataclass(frozen=True)
class _Logprobs:
    content: list[_Position] | None = None


@dataclass(frozen=True)
class _Reply:
    message: _Message
    finish_reason: Literal["stop", "length", "content_filter"]
    logprobs: _Logprobs | None = None


@dataclass(frozen=True)
class _Usage:
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


@dataclass(frozen=True)
class _Chat:
    choices: Annotated[list[_Reply], Field(min_length=1)]
    model: str | None = None
    usage: _Usage | None = None


@dataclass(frozen=True)
class _Scored:
    token_logprobs: list[Logprob | None]


@dataclass(frozen=True)
class _Echo:
    index: int
    logprobs: _Scored


@dataclass(frozen=True)
class _Echoes:
    choices: list[_Echo]
    model: str | None = None


@dataclass(frozen=True)
class _Tokens:
    tokens: list[int]
    count: int | None = (
        None  # vLLM's /tokenize gives it; llama.cpp's, which knows no chat templates, does not
    )


CHAT, ECHOES, TOKENS = TypeAdapter(_Chat), TypeAdapter(_Echoes), TypeAdapter(_Tokens)


class OpenAIEngine:
    """One model on one or more servers.

    The ledger knows the model by `engine.model`, the name that the servers give it, whatever their addresses: do not
    serve other weights under a name that a run has used. Without one, the servers serve the run's own models under the
    names base, sft, sl_cai and dpo, and the ledger knows them by their content.

    A dialogue that ends in an assistant turn is continued inside it by servers that know `continue_final_message`
    (vLLM, SGLang) or do it anyway (llama.cpp, Ollama); others begin a new turn. Continuations are scored token by token
    where there are /tokenize and echoed prompts (vLLM), else by the first token's `top_logprobs`. Ollama's own defaults
    hold for `top_k` and the repetition penalty, which its endpoint doesn't read.

    Raises RequestFailed for a row that can't be answered, and CaiError where no row can.
    """

    def __init__(self, config: EngineConfig, model: str):
        self.model = config.model or model
        self._servers = Servers(config.server)
        self._unknown: set[str] = set()  # of EXTRAS: what the servers have refused
        self._limit = "max_tokens"
        self._tokenizes: bool | None = None  # not known yet
        self._options: dict[str, list[int]] = {}  # the tokens of continuations

    async def complete(self, request: Request) -> Completion:
        return await self._servers.run(self._complete(request))

    def close(self) -> None:
        self._servers.close()

    async def _complete(self, request: Request) -> Completion:
        try:
            return await (
                self._score(request) if request.sampling is None else self._reply(request)
            )
        except Refused as refused:
            if TOO_LONG.search(str(refused)):
                return Completion("", "too_long", 0, 0, 0.0)
            if refused.status < 400 or refused.status in (401, 404):  # no row would fare better
                raise CaiError(
                    f"{refused}; see model, server.urls and server.key of the engine"
                ) from None
            raise RequestFailed(str(refused)) from None

    async def _reply(self, request: Request) -> Completion:
        sampling = request.sampling
        assert sampling is not None
        fields = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
        answer, seconds = await self._chat(
            request, sampling.max_new_tokens, fields | {"seed": request.seed}
        )
        reply, usage = answer.choices[0], answer.usage or _Usage()
        if reply.finish_reason == "content_filter":
            raise RequestFailed(f"{self.model}: the server's content filter withholds the answer")
        text = (reply.message.content or "").strip()
        return Completion(
            text, reply.finish_reason, usage.prompt_tokens, usage.completion_tokens, seconds
        )

    async def _chat(
        self, request: Request, tokens: int, fields: dict[str, Any]
    ) -> tuple[_Chat, float]:
        """Asks for at most `tokens` tokens.

        Filters and penalties that are off are sent too: a server's own defaults would else hold. One that refuses such
        a field by name is asked without it.
        """
        body = {
            "model": self.model,
            "messages": as_dicts(request.messages),
            "repetition_penalty": 1.0,
        } | fields
        if request.messages[-1].role == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        extras = {name for name in EXTRAS & body.keys() if name != "top_k" or not body["top_k"]}
        out, limit = set(self._unknown), self._limit
        while True:
            sent = {name: value for name, value in body.items() if name not in out & extras} | {
                limit: tokens
            }
            try:
                answer = await self._servers.ask("chat/completions", sent, self._reader(CHAT))
            except Refused as refused:
                named = {name for name in extras - out if name in str(refused)}
                renamed = limit == "max_tokens" and "max_completion_tokens" in str(refused)
                if TOO_LONG.search(str(refused)) or not (named or renamed):
                    raise
                out, limit = out | named, "max_completion_tokens" if renamed else limit
            else:  # only now is it known that it was those
                self._unknown, self._limit = self._unknown | out, limit
                return answer

    async def _score(self, request: Request) -> Completion:
        if self._tokenizes is not False and (scored := await self._exact(request)):
            return scored
        if any(len(text.split()) > 1 for text in request.continuations):
            raise CaiError(
                f"{self.model}: its servers score no whole answers; vLLM's do (`vllm serve`)"
            )
        none = f"{self.model}: its servers give no log-probabilities (top_logprobs), which a judge needs"
        fields = {
            "logprobs": True,
            "top_logprobs": TOP,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }
        try:
            answer, seconds = await self._chat(request, 1, fields)
        except Refused as refused:
            raise (
                CaiError(f"{none}: {refused}") if "logprobs" in str(refused) else refused
            ) from None
        found = answer.choices[0].logprobs
        if not (found and found.content and found.content[0].top_logprobs):
            raise CaiError(none)
        logprobs = first_token_logprobs(request.continuations, found.content[0].top_logprobs)
        if logprobs is None:
            options = ", ".join(map(repr, request.continuations))
            raise RequestFailed(
                f"{self.model}: none of {options} is among its {TOP} likeliest first tokens"
            )
        return Completion(
            "", "score", (answer.usage or _Usage()).prompt_tokens, 0, seconds, logprobs
        )

    async def _exact(self, request: Request) -> Completion | None:
        """Log-probabilities of the continuations' own tokens. None: these servers can't."""
        last = request.messages[-1].role == "assistant"
        form = {"add_generation_prompt": not last, "continue_final_message": last}
        prompt = await self._tokens({"messages": as_dicts(request.messages)} | form)
        if prompt is None:
            return None
        for text in request.continuations:
            if text not in self._options:
                self._options[text] = (
                    await self._tokens({"prompt": text, "add_special_tokens": False}) or []
                )
        options = [self._options[text] for text in request.continuations]
        body = {
            "model": self.model,
            "prompt": [prompt + one for one in options],
            "echo": True,
            "logprobs": 1,
        }
        read = self._reader(ECHOES)
        answer, seconds = await self._servers.ask(
            "completions", body | {"max_tokens": 1, "temperature": 0}, read
        )
        logprobs = []
        for choice, option in zip(
            sorted(answer.choices, key=lambda c: c.index), options, strict=False
        ):
            scores = choice.logprobs.token_logprobs[len(prompt) : len(prompt) + len(option)]
            if len(found := [score for score in scores if score is not None]) == len(option):
                logprobs.append(math.fsum(found))
        if len(logprobs) != len(options):
            raise RequestFailed(
                f"{self.model}: the server left out some of the prompt's log-probabilities"
            )
        return Completion("", "score", len(prompt), 0, seconds, tuple(logprobs))

    async def _tokens(self, body: dict[str, Any]) -> list[int] | None:
        try:
            answer, _ = await self._servers.ask(
                "../tokenize", {"model": self.model} | body, self._reader(TOKENS)
            )
        except Refused as refused:
            if self._tokenizes:
                raise
            # a 400 may be about this request alone
            self._tokenizes = None if refused.status in (400, 422) else False
            return None
        self._tokenizes = self._tokenizes or answer.count is not None
        return answer.tokens if self._tokenizes else None

    def _reader(self, shape: TypeAdapter[T]) -> Callable[[bytes], T]:
        def read(data: bytes) -> T:
            try:
                answer = shape.validate_json(data)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                raise ValueError(
                    f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
                ) from None
            named = getattr(answer, "model", None)
            if named and not named.startswith(self.model):  # hosted ones add a date to the name
                raise ValueError(f"it is from {named!r}, not from {self.model!r}")
            return answer

        return read


def first_token_logprobs(
    options: Sequence[str], likely: Sequence[Likely]
) -> tuple[float, ...] | None:
    """One natural-log probability for each option of one token, from the likeliest first tokens.

    " A" is looked for with its space and without, whichever way has more probability in all: a model that continues
    "The answer is:" writes the space, one that begins a turn doesn't. An option that is not listed is at most as likely
    as the last that is, and is given that. None: no option is listed.
    """
    listed = {one.token: one.logprob for one in reversed(likely)}
    ways = [[listed.get(spell(option)) for option in options] for spell in (str, str.strip)]
    way = max(ways, key=lambda found: sum(math.exp(score) for score in found if score is not None))
    if all(score is None for score in way):
        return None
    return tuple(min(listed.values()) if score is None else score for score in way)
