"""The engine on vLLM: a server of its own, started for the model and ended with the engine.

It is asked as engine=openai asks servers, but by token ids: a prompt is tokenised once, here. An
adapter's folder is served as it is, on its base's weights.
"""

import copy
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from cai.config.schema import EngineConfig, Sampling, ServerConfig
from cai.config.types import Arguments
from cai.digest import JsonObject
from cai.engines.base import (
    Completion,
    Engine,
    OnText,
    Request,
    RequestFailed,
    encode_request,
)
from cai.engines.openai_answers import EchoAnswer, TextAnswer, echo_fields, reader
from cai.engines.servers import Refused, Servers
from cai.engines.thoughts import PROMPT_END, answer_of, marks_thoughts
from cai.engines.vllm_adapters import adapter_options
from cai.engines.vllm_options import flags, interpreter
from cai.engines.vllm_server import URL, VllmServer
from cai.models.chat_template import turn_end_ids
from cai.models.load import load_tokenizer
from cai.models.numerics import numerics
from cai.models.source import adapter_base, split_revision, tokenizer_source

BASE = "base"  # the name that the server knows a model by that is no adapter

LONGEST_ANSWER = 86_400.0  # seconds: a request may wait for all others, and none is lost

# A server whose engine has died answers with faults for some seconds before it ends. A request
# must be there still when it has been started again.
RETRIES, BACKOFF = 10, 0.05

OTHER_FILES = 256  # open files that are no connection

# Everything that decides the next token is said, or the model's generation_config would.
PLAIN = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True)
class Job:
    """A request in tokens."""

    request: Request
    prompt_ids: list[int]
    option_ids: list[list[int]]  # of the continuations

    @property
    def single(self) -> bool:
        """Whether each continuation is one token, so that the next token's scores are enough."""
        return all(len(ids) == 1 for ids in self.option_ids)

    @property
    def new_tokens(self) -> int:
        """How many tokens need room behind the prompt."""
        if self.request.sampling:
            return self.request.sampling.max_new_tokens
        # vLLM writes at least one token behind those that it scores
        return 1 if self.single else max(map(len, self.option_ids)) + 1


class VllmEngine:
    """A vLLM server with one model. `model` is a folder or a hub id, `id@revision`.

    Of an adapter it has the base's weights, and `others` are adapters on the same base that it
    serves too, with the same tokens (SharedServer). Its seeds are vLLM's own: it samples other
    texts than transformers does.
    """

    def __init__(self, config: EngineConfig, model: str, *others: str):
        self._names, self._owns_server = served_names([model, *others]), True
        self._choose(model)
        arguments = flags(server_options(config, model, *others))
        self.server = VllmServer(interpreter(config), arguments, config.server.timeout)
        allow_open_files(config.batch_rows + OTHER_FILES)
        self.server.start()
        server_config = ServerConfig(
            [URL],
            concurrency=config.batch_rows,
            timeout=LONGEST_ANSWER,
            retries=RETRIES,
            backoff=BACKOFF,
        )
        self._servers = Servers(server_config, self.server.transport, self.server.ensure_running)

    def _choose(self, model: str) -> None:
        self._model = self._names[model]
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self._marks_thoughts = marks_thoughts(self.tokenizer)

    def serving(self, model: str) -> "VllmEngine":
        """An engine on one of the server's models. The server stays when it is closed."""
        engine = copy.copy(self)
        engine._choose(model)
        engine._owns_server = False
        return engine

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        prompt_ids, option_ids = encode_request(self.tokenizer, request)
        job = Job(request, prompt_ids, option_ids)
        if len(prompt_ids) + job.new_tokens > self.server.context_length:
            return Completion("", "too_long", len(prompt_ids), 0, 0.0)
        return await self._servers.run(self._complete(job))

    def close(self) -> None:
        if self._owns_server:
            self._servers.close()
            self.server.close()

    async def _complete(self, job: Job) -> Completion:
        try:
            if job.request.sampling:
                return await self._reply(job, job.request.sampling)
            return await (self._score_next(job) if job.single else self._score(job))
        except Refused as refused:
            raise RequestFailed(str(refused)) from None

    async def _reply(self, job: Job, sampling: Sampling) -> Completion:
        fields = {
            # beside those that tokenizer and generation_config name
            "stop_token_ids": turn_end_ids(self.tokenizer),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": job.request.seed,
            "skip_special_tokens": not self._marks_thoughts,
        }
        answer, seconds = await self._ask(job, PLAIN | fields)
        reply, new_tokens = answer.choices[0], answer.usage.completion_tokens
        opening = self.tokenizer.decode(job.prompt_ids[-PROMPT_END:])
        text, reason = answer_of(self.tokenizer, reply.text, reply.finish_reason, str(opening))
        return Completion(text, reason, len(job.prompt_ids), new_tokens, seconds)

    async def _score_next(self, job: Job) -> Completion:
        """Continuations of one token each: the model's own scores of the token that comes next."""
        tokens = [token for (token,) in job.option_ids]
        fields = {
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": tokens,
            "return_tokens_as_token_ids": True,
        }
        answer, seconds = await self._ask(job, PLAIN | fields)
        logprobs = answer.choices[0].logprobs
        by_token = logprobs.top_logprobs[0] if logprobs else {}
        try:
            scores = tuple(by_token[f"token_id:{token}"] for token in tokens)
        except KeyError as error:
            raise RequestFailed(f"vLLM's answer has no log-probability of {error}") from None
        return Completion("", "score", len(job.prompt_ids), 0, seconds, scores)

    async def _score(self, job: Job) -> Completion:
        """Continuations of any length, which are read as part of the prompt."""
        # with the prompt's ids in the answer, vLLM need not make a text of them
        body = {"model": self._model, "return_token_ids": True}
        body |= echo_fields(job.prompt_ids, job.option_ids)
        read = reader(EchoAnswer, self._model)
        answer, seconds = await self._servers.ask("completions", body, read)
        try:
            scores = answer.scores(len(job.prompt_ids), job.option_ids)
        except ValueError as error:
            raise RequestFailed(f"vLLM: {error}") from None
        return Completion("", "score", len(job.prompt_ids), 0, seconds, scores)

    async def _ask(self, job: Job, fields: JsonObject) -> tuple[TextAnswer, float]:
        body = {"model": self._model, "prompt": job.prompt_ids} | fields
        return await self._servers.ask("completions", body, reader(TextAnswer, self._model))


def served_names(models: Sequence[str]) -> dict[str, str]:
    """The names that the server knows models by: BASE, or an adapter's place among them."""
    return {
        model: f"adapter-{place}" if adapter_base(model) else BASE
        for place, model in enumerate(models)
    }


def server_options(config: EngineConfig, *models: str) -> Arguments:
    """vLLM's options for a model, and for adapters on its base. Those of a person come last."""
    model, names = models[0], served_names(models)
    name, revision = split_revision(adapter_base(model) or model)
    options: Arguments = {
        "model": name,
        "revision": revision,
        "served_model_name": BASE,
        "dtype": numerics(config)["dtype"],
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
    }
    if adapters := [adapter for adapter in models if adapter_base(adapter)]:
        options |= adapter_options(adapters)
        options["lora_modules"] = [f"{names[adapter]}={adapter}" for adapter in adapters]
        if tokenizer_source(model) == model:
            options["tokenizer"] = model
    return options | config.options


class SharedServer:
    """Opens engines on models that are asked one after another: those on one base share a server.

    It is there from the first of them until a model with another base is opened, or the end.
    `open_engine` opens what shares no server. Each model has the tokens of the base then: a server
    has one tokenizer.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: Sequence[str],
        open_engine: Callable[[EngineConfig, str], Engine],
    ):
        self._config, self._models, self._open_engine = config, models, open_engine
        self._served: set[str] = set()
        self._engine: VllmEngine | None = None

    def open(self, config: EngineConfig, model: str) -> Engine:
        if self._engine is None or model not in self._served or config != self._config:
            self.close()
            sharing = [candidate for candidate in self._models if share_server(model, candidate)]
            if config != self._config or not sharing:
                return self._open_engine(config, model)
            self._engine = VllmEngine(config, model, *sharing)
            self._served = {model, *sharing}
        return self._engine.serving(model)

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def share_server(model: str, other: str) -> bool:
    """Whether one server can serve two models: an adapter and its base, or adapters on one."""
    bases = [adapter_base(name) or name for name in (model, other)]
    if model == other or bases[0] != bases[1]:
        return False
    first, second = load_tokenizer(model), load_tokenizer(other)
    return (first.get_vocab(), first.eos_token) == (second.get_vocab(), second.eos_token)


def allow_open_files(count: int) -> None:
    """Lets this process have so many files open, as far as the system does: one a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
