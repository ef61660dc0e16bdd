"""The vLLM engine on a real vLLM (`make test-vllm`): the same greedy text and scores as the transformers engine."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from cai.config import EngineConfig, Sampling  # noqa: E402
from cai.dialogue import assistant, user  # noqa: E402
from cai.engines.base import Completion, Request, gather_rows, open_engine  # noqa: E402
from cai.paths import cache  # noqa: E402

GREEDY = Sampling(temperature=0, max_new_tokens=24)
REQUESTS = [
    *(Request((user(text),), GREEDY) for text in ("What is the capital of France?", "Name three rivers.")),
    Request((user("Is it day? A: yes, B: no."), assistant("The answer is:")), continuations=(" A", " B")),
    Request((user("What is 2 + 2?"),), continuations=("It is four.",)),
    Request((user("x " * 3000),), GREEDY),
]


def answers(kind: str, model: str, **options: object) -> list[Completion]:
    engine = open_engine(EngineConfig(kind=kind, dtype="float32", device="cpu", options=options), model)

    async def ask() -> list[Completion]:
        return await gather_rows([engine.complete(request) for request in REQUESTS])

    try:
        return asyncio.run(ask())
    finally:
        engine.close()


def test_vllm_answers_as_transformers_does():
    models: list[Path] = list((cache() / "models").glob("*"))
    if not models:
        pytest.skip("no converted model in the cache; run `make quickstart` first")
    ours, theirs = (
        answers(kind, str(models[0]), **({"max_model_len": 2048} if kind == "vllm" else {}))
        for kind in ("transformers", "vllm")
    )
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        assert (one.text, one.finish_reason, one.prompt_tokens) == (
            other.text,
            other.finish_reason,
            other.prompt_tokens,
        )
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert theirs[4].finish_reason == "too_long"
