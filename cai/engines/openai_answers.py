"""What is read of the answers of OpenAI-compatible servers. Other fields are ignored."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from cai.digest import JsonObject
from cai.text import well_formed

Count = Annotated[int, Field(ge=0, lt=1 << 32)]

# rounding may lift it a little above 0
Logprob = Annotated[float, Field(le=0.01, allow_inf_nan=False)]


class Answer(BaseModel):
    model: str | None = None


A = TypeVar("A", bound=Answer)


def reader(kind: type[A], model: str) -> Callable[[bytes], A]:
    """A function that reads an answer, and raises ValueError where it is of no use."""

    def read(content: bytes) -> A:
        try:
            answer = kind.model_validate_json(mend(content))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "JSON"
            raise ValueError(f"{place}: {first['msg']}") from None
        # hosted servers add a date to the name
        if answer.model and not answer.model.startswith(model):
            raise ValueError(f"it is from {answer.model!r}, not from {model!r}")
        return answer

    return read


class Message(BaseModel):
    content: str | None = None


class TokenLogprob(BaseModel):
    """A possible first token and its natural-log probability."""

    token: str
    logprob: Logprob


class Position(BaseModel):
    top_logprobs: list[TokenLogprob]


class ReplyLogprobs(BaseModel):
    content: list[Position] | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: Literal["stop", "length", "content_filter"]
    logprobs: ReplyLogprobs | None = None


class Usage(BaseModel):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class ChatAnswer(Answer):
    """Of chat/completions."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None


class EchoLogprobs(BaseModel):
    token_logprobs: list[Logprob | None]


class Echo(BaseModel):
    index: int
    logprobs: EchoLogprobs


class EchoAnswer(Answer):
    """Of completions, with `echo`: the prompts' own log-probabilities."""

    choices: list[Echo]

    def scores(self, prompt_length: int, options: Sequence[Sequence[int]]) -> tuple[float, ...]:
        """The sum over each option's tokens, where `echo_fields` were asked for.

        Raises ValueError where one is missing.
        """
        scores = []
        choices = sorted(self.choices, key=lambda choice: choice.index)
        for choice, option_ids in zip(choices, options, strict=False):
            tail = choice.logprobs.token_logprobs[prompt_length:][: len(option_ids)]
            logprobs = [logprob for logprob in tail if logprob is not None]
            if len(logprobs) == len(option_ids):
                scores.append(math.fsum(logprobs))
        if len(scores) != len(options):
            raise ValueError("the server left out some of the prompt's log-probabilities")
        return tuple(scores)


def echo_fields(prompt_ids: list[int], options: Sequence[list[int]]) -> JsonObject:
    """What asks for the log-probabilities of each option's tokens after the prompt's."""
    return {
        "prompt": [prompt_ids + option_ids for option_ids in options],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }


class FirstTokens(BaseModel):
    """Of each new token: the asked tokens, as `token_id:7`, and their log-probabilities."""

    top_logprobs: Annotated[list[dict[str, Logprob]], Field(min_length=1)]


class Text(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: FirstTokens | None = None


class TextAnswer(Answer):
    """Of completions."""

    choices: Annotated[list[Text], Field(min_length=1)]
    usage: Usage


class TokensAnswer(Answer):
    """Of /tokenize."""

    tokens: list[int]
    count: int | None = None  # vLLM gives it. llama.cpp, which knows no chat templates, does not.


def mend(content: bytes) -> bytes:
    """A JSON document with U+FFFD for each half of a surrogate pair, which pydantic refuses.

    A server cuts an emoji in half where its tokens end.
    """
    if rb"\ud" not in content.lower():
        return content
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    text = json.dumps(document, ensure_ascii=False)
    return well_formed(text).encode()
