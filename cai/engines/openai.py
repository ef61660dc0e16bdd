"""The engine on OpenAI-compatible servers: vLLM, SGLang, llama.cpp, Ollama, hosted ones."""

import math
import re
from collections.abc import Callable, Sequence

from cai.config.schema import EngineConfig
from cai.digest import JsonObject
from cai.engines.base import (
    Completion,
    OnText,
    Request,
    RequestFailed,
    continued_dialogue,
    split_continuations,
)
from cai.engines.openai_answers import (
    A,
    ChatAnswer,
    EchoAnswer,
    TokenLogprob,
    TokensAnswer,
    Usage,
    echo_fields,
    reader,
)
from cai.engines.servers import Refused, Servers, read_key
from cai.engines.thoughts import without_thoughts
from cai.errors import CaiError, UsageError
from cai.messages import Dialogue, as_dicts

TOP_LOGPROBS = 20  # likeliest first tokens that are asked for: as many as servers give

TOO_LONG = re.compile(r"context[ _]?(length|size|window)", re.IGNORECASE)  # all servers say so

# what each request says by itself
OWN_FIELDS = {"model", "messages", "temperature", "top_p", "top_k", "seed", "n", "stream"}
OWN_FIELDS |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
OWN_FIELDS |= {"continue_final_message", "add_generation_prompt", "repetition_penalty"}

TEMPLATE_ARGUMENTS = "chat_template_kwargs"  # a field that /tokenize takes too

# fields that are not in OpenAI's own API
EXTRAS = {"top_k", "repetition_penalty", "continue_final_message", "add_generation_prompt"}


def check(config: EngineConfig, key: str) -> None:
    """Raises UsageError where no server is named, or a field of cai's own is set."""
    if not config.server.urls:
        raise UsageError(
            f"{key}.server.urls is empty; name a server, e.g. [http://127.0.0.1:8000/v1]"
        )
    if taken := sorted(OWN_FIELDS & config.extra_body.keys()):
        raise UsageError(f"{key}.extra_body.{taken[0]} is set by cai itself; leave it out")


def ready(config: EngineConfig, key: str) -> None:
    """Raises UsageError where the server's key is not in the environment."""
    read_key(config.server, key)


class OpenAIEngine:
    """One model on one or more servers.

    The ledger knows the model by `engine.model`, the servers' name for it, and by no address. So do
    not serve other weights under a name that a run has used. Without a name, the servers serve the
    run's own models as base, sft, sl_cai and dpo, and the ledger knows these by their content.

    Servers that know `continue_final_message` (vLLM, SGLang) continue a dialogue's last assistant
    turn, and llama.cpp and Ollama do it anyway. Others begin a new turn. Continuations are scored
    token by token where there are /tokenize and echoed prompts (vLLM), else by the first token's
    `top_logprobs`. Ollama reads neither `top_k` nor the repetition penalty: its own defaults hold.

    Raises RequestFailed for a row that can't be answered, and CaiError where no row can.
    """

    def __init__(self, config: EngineConfig, model: str):
        self.model = config.model or model
        self._extra_body = config.extra_body
        self._servers = Servers(config.server)
        self._refused_extras: set[str] = set()
        self._limit_field = "max_tokens"
        self._tokenizes: bool | None = None  # None: not known yet
        # (the last turn that it continues, a continuation) -> its tokens
        self._option_ids: dict[tuple[str, str], list[int]] = {}

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        return await self._servers.run(self._complete(request))

    def close(self) -> None:
        self._servers.close()

    async def _complete(self, request: Request) -> Completion:
        try:
            return await (self._reply(request) if request.sampling else self._score(request))
        except Refused as refused:
            if TOO_LONG.search(str(refused)):
                return Completion("", "too_long", 0, 0, 0.0)
            if refused.status < 400 or refused.status in (401, 404):  # it is so for every row
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
            "seed": request.seed,
        }
        answer, seconds = await self._chat(request, sampling.max_new_tokens, fields)
        choice, usage = answer.choices[0], answer.usage or Usage()
        if choice.finish_reason == "content_filter":
            raise RequestFailed(f"{self.model}: the server's content filter withholds the answer")
        text = (choice.message.content or "").strip()
        text, reason = without_thoughts(text, choice.finish_reason)
        tokens = usage.prompt_tokens, usage.completion_tokens
        return Completion(text, reason, *tokens, seconds)

    async def _chat(
        self, request: Request, max_tokens: int, fields: JsonObject
    ) -> tuple[ChatAnswer, float]:
        """Asks for at most `max_tokens` tokens.

        Filters and penalties that are off are sent too, or a server's own defaults would hold. A
        server that refuses such a field by name is asked without it.
        """
        messages = as_dicts(request.messages)
        body = {"model": self.model, "messages": messages, "repetition_penalty": 1.0} | fields
        body |= self._extra_body
        if request.messages[-1].role == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        droppable = EXTRAS & body.keys()
        if body["top_k"]:
            droppable.discard("top_k")
        dropped, limit_field = set(self._refused_extras), self._limit_field
        while True:
            sent = {name: body[name] for name in body if name not in dropped & droppable}
            sent[limit_field] = max_tokens
            try:
                answer = await self._servers.ask("chat/completions", sent, self._reader(ChatAnswer))
            except Refused as refused:
                text = str(refused)
                named = {name for name in droppable - dropped if name in text}
                renamed = limit_field == "max_tokens" and "max_completion_tokens" in text
                if TOO_LONG.search(text) or not (named or renamed):
                    raise
                dropped |= named
                limit_field = "max_completion_tokens" if renamed else limit_field
            else:  # only now is it clear that these fields were the reason
                self._refused_extras |= dropped
                self._limit_field = limit_field
                return answer

    async def _score(self, request: Request) -> Completion:
        if self._tokenizes is not False and (completion := await self._score_tokens(request)):
            return completion
        if any(len(text.split()) > 1 for text in request.continuations):
            raise CaiError(
                f"{self.model}: its servers score no whole answers; vLLM's do (`vllm serve`)"
            )
        [first], tokens, seconds = await self._likeliest(request, 1, temperature=1.0)
        scores = first_token_logprobs(request.continuations, first)
        if scores is None and (space := likeliest_space(first)) is not None:
            # A tokenizer that splits " A": the letter stands behind the space, which the model
            # writes where it takes the likeliest token.
            [_, *second], tokens, extra_seconds = await self._likeliest(request, 2, temperature=0.0)
            seconds += extra_seconds
            behind = first_token_logprobs(request.continuations, second[0] if second else [])
            scores = behind and tuple(space + logprob for logprob in behind)
        if scores is None:
            options = ", ".join(map(repr, request.continuations))
            raise RequestFailed(
                f"{self.model}: none of {options} is among its {TOP_LOGPROBS} likeliest first "
                "tokens; a model that thinks first wants to write its thought, so switch that off "
                "(chat_template_kwargs in the engine's extra_body), or take another judge"
            )
        return Completion("", "score", tokens, 0, seconds, scores)

    async def _likeliest(
        self, request: Request, new_tokens: int, temperature: float
    ) -> tuple[list[list[TokenLogprob]], int, float]:
        """The likeliest tokens at each of the first places; tokens of the prompt; seconds."""
        no_logprobs = (
            f"{self.model}: its servers give no log-probabilities (top_logprobs), "
            "which a judge needs"
        )
        fields = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        fields |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        try:
            answer, seconds = await self._chat(request, new_tokens, fields)
        except Refused as refused:
            if "logprobs" in str(refused):
                raise CaiError(f"{no_logprobs}: {refused}") from None
            raise
        logprobs = answer.choices[0].logprobs
        places = logprobs.content if logprobs and logprobs.content else []
        if not (places and places[0].top_logprobs):
            raise CaiError(no_logprobs)
        prompt_tokens = answer.usage.prompt_tokens if answer.usage else 0
        likeliest = [place.top_logprobs for place in places[:new_tokens]]
        return likeliest, prompt_tokens, seconds

    async def _score_tokens(self, request: Request) -> Completion | None:
        """Scores the continuations by all of their tokens. None: these servers can't."""
        prompt_ids = await self._tokenize(request.messages)
        if prompt_ids is None:
            return None
        prompt_ids, options = await self._split(request, prompt_ids)
        body = {"model": self.model} | echo_fields(prompt_ids, options)
        answer, seconds = await self._servers.ask("completions", body, self._reader(EchoAnswer))
        try:
            scores = answer.scores(len(prompt_ids), options)
        except ValueError as error:
            raise RequestFailed(f"{self.model}: {error}") from None
        return Completion("", "score", len(prompt_ids), 0, seconds, scores)

    async def _split(
        self, request: Request, prompt_ids: list[int]
    ) -> tuple[list[int], list[list[int]]]:
        """The prompt's tokens, and those that each continuation has behind it (encode_request)."""
        last, texts = request.messages[-1], request.continuations
        keys = [(last.content, text) for text in texts]
        if last.role == "assistant" and all(key in self._option_ids for key in keys):
            return prompt_ids, [self._option_ids[key] for key in keys]
        continued = [
            await self._tokenize(continued_dialogue(request.messages, text)) or [] for text in texts
        ]
        common_ids, options = split_continuations(prompt_ids, continued)
        if last.role == "assistant" and len(common_ids) == len(prompt_ids):
            # a judge's last turn is always the same, and so are the letters behind it
            self._option_ids |= dict(zip(keys, options, strict=True))
        return common_ids, options

    async def _tokenize(self, messages: Dialogue) -> list[int] | None:
        """The token ids of a dialogue, or None where the servers can't tell."""
        inside_turn = messages[-1].role == "assistant"
        body = {
            "model": self.model,
            "messages": as_dicts(messages),
            "add_generation_prompt": not inside_turn,
            "continue_final_message": inside_turn,
        }
        if TEMPLATE_ARGUMENTS in self._extra_body:
            body[TEMPLATE_ARGUMENTS] = self._extra_body[TEMPLATE_ARGUMENTS]
        try:
            answer, _ = await self._servers.ask("../tokenize", body, self._reader(TokensAnswer))
        except Refused as refused:
            if self._tokenizes:
                raise
            # a 400 may be about this request alone
            self._tokenizes = None if refused.status in (400, 422) else False
            return None
        self._tokenizes = self._tokenizes or answer.count is not None
        return answer.tokens if self._tokenizes else None

    def _reader(self, kind: type[A]) -> Callable[[bytes], A]:
        return reader(kind, self.model)


def first_token_logprobs(
    options: Sequence[str], likeliest: Sequence[TokenLogprob]
) -> tuple[float, ...] | None:
    """One natural-log probability for each option of one token. None: no option is listed.

    " A" is looked up with its space and without, and the way with more probability in all counts. A
    model that continues "The answer is:" writes the space; one that begins a turn does not. An
    option that is not listed is at most as likely as the last that is, and is given that.
    """
    listed = {first.token: first.logprob for first in reversed(likeliest)}
    spaced = [listed.get(option) for option in options]
    stripped = [listed.get(option.strip()) for option in options]
    scores = max(spaced, stripped, key=_total_probability)
    if all(score is None for score in scores):
        return None
    return tuple(min(listed.values()) if score is None else score for score in scores)


def likeliest_space(likeliest: Sequence[TokenLogprob]) -> float | None:
    """The natural-log probability of a space where it is the likeliest token, else None."""
    best = max(likeliest, key=lambda first: first.logprob)
    return best.logprob if best.token and not best.token.strip(" \u2581") else None


def _total_probability(logprobs: Sequence[float | None]) -> float:
    return sum(math.exp(logprob) for logprob in logprobs if logprob is not None)
