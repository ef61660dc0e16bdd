"""What is read of the answers of OpenAI-compatible servers. Other fields are ignored."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cai.text import well_formed

Count = Annotated[int, Field(ge=0, lt=1 << 32)]

# rounding may lift it a little above 0
Logprob = Annotated[float, Field(le=0.01, allow_inf_nan=False)]


class Answer(BaseModel):
    model: str | None = None


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
