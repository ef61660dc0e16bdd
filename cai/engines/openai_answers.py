"""What is read of the answers of OpenAI-compatible servers. Other fields are ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

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
