"""The transformers engine on a tiny random model: no batch changes completions, exact scores."""

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Request, encode_request
from cai.engines.decoder import Job
from cai.engines.rows import gather_rows
from cai.engines.transformers import TransformersEngine
from cai.errors import CaiError
from cai.messages import Message, assistant, user
from cai.models.chat_template import render

WARM = Sampling(temperature=1.0, top_p=0.9, top_k=40, max_new_tokens=12)
GREEDY = Sampling(temperature=0, max_new_tokens=12)
LONG = (
    "What is a good way to keep bread fresh for some days without a freezer "
    "in a warm and humid kitchen? " * 3
)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))


def ask(engine: TransformersEngine, requests: list[Request]):
    return asyncio.run(gather_rows([engine.complete(request) for request in requests]))


def questions(sampling: Sampling) -> list[Request]:
    texts = ["Hello.", "Tell me about rivers.", *(f"{LONG} And number {n}?" for n in range(9))]
    return [Request((user(text),), sampling, seed=n) for n, text in enumerate(texts)]


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_a_completion_does_not_depend_on_its_batch(engine: TransformersEngine, sampling: Sampling):
    requests = questions(sampling)
    alone = [ask(engine, [request])[0].text for request in requests]
    together = [completion.text for completion in ask(engine, requests)]
    assert together == alone
    assert [c.text for c in ask(engine, requests[::-1])][::-1] == alone


def test_a_greedy_batch_equals_plain_generate(engine: TransformersEngine):
    for request, completion in zip(questions(GREEDY), ask(engine, questions(GREEDY)), strict=True):
        ids = torch.tensor(
            [engine.tokenizer(render(engine.tokenizer, request.messages))["input_ids"]]
        )
        model: Any = engine.model
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        assert (
            completion.text
            == str(
                engine.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            ).strip()
        )


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_rows_that_have_ended_leave_the_batch_and_change_no_other(
    sampling: Sampling, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
):
    """With every eighth token an end, rows end all along the way."""
    vocabulary = engine.model.config.vocab_size
    monkeypatch.setattr(
        engine.model.generation_config, "eos_token_id", list(range(0, vocabulary, 8))
    )
    requests = [
        dataclasses.replace(r, sampling=dataclasses.replace(sampling, max_new_tokens=24))
        for r in questions(sampling)[2:]
    ]
    alone = [dataclasses.replace(ask(engine, [request])[0], seconds=0) for request in requests]
    assert len({one.new_tokens for one in alone}) > 3
    real: Any = engine.model.generate
    rows: list[int] = []

    def generate(**arguments: Any) -> Any:
        rows.append(len(arguments["input_ids"]))
        return real(**arguments)

    monkeypatch.setattr(engine.model, "generate", generate)
    assert [dataclasses.replace(one, seconds=0) for one in ask(engine, requests)] == alone
    assert (
        len(rows) > 2 and rows == sorted(rows, reverse=True) and rows[-1] < rows[0] == len(requests)
    )


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_what_a_row_goes_on_from_is_not_read_again(
    sampling: Sampling, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two requests in a row, as critique and revision are, in batches that rows leave; or alone."""
    engine = TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))
    vocabulary = engine.model.config.vocab_size
    monkeypatch.setattr(
        engine.model.generation_config, "eos_token_id", list(range(0, vocabulary, 16))
    )
    read: list[tuple[int, ...]] = []

    def count(model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        read.append(tuple((given[0] if given else named["input_ids"]).shape))

    engine.model.register_forward_pre_hook(count, with_kwargs=True)

    def more(first: Request, text: str) -> Request:
        turns = (*first.messages, assistant(text), user(f"Write it again, {len(text)}."))
        return Request(turns, sampling, first.seed + 100)

    async def chain(first: Request) -> tuple[str, str]:
        text = (await engine.complete(first)).text
        return text, (await engine.complete(more(first, text))).text

    def size(request: Request) -> int:
        return len(encode_request(engine.tokenizer, request)[0])

    requests = questions(sampling)
    together = asyncio.run(gather_rows([chain(request) for request in requests]))
    passes = [shape for shape in read if shape[1] > 1]
    assert [rows for rows, _ in passes] == [
        1,
        9,
        9,
        2,
        2,
    ]  # what nine share; each batch, and what goes on from it
    added = [
        size(more(one, text)) - size(one) for one, (text, _) in zip(requests, together, strict=True)
    ]
    assert passes[2][1] <= max(added[2:]) and passes[4][1] <= max(added[:2])
    for request, (text, again) in zip(requests, together, strict=True):
        alone = TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))
        alone.model.generation_config.eos_token_id = engine.model.generation_config.eos_token_id
        assert [one.text for one in ask(alone, [request])] == [text]
        assert [one.text for one in ask(alone, [more(request, text)])] == [again]


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_a_prompt_that_is_asked_several_times_is_read_once(sampling: Sampling, tiny_model: Path):
    engine = TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))
    read: list[tuple[int, ...]] = []
    engine.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: read.append(tuple(given[0].shape))
    )
    texts = [f"{LONG}Number {n}. {LONG * (1 + n % 2)}" for n in range(4)]
    requests = [Request((user(text),), sampling, seed) for text in texts for seed in range(4)]
    together = [one.text for one in ask(engine, requests)]
    rows, width = read[1]
    assert (
        read[0][0] == 1 and rows == 4 and width > 1
    )  # what all share, then what each prompt has of its own
    assert set(read[2:]) <= {(count, 1) for count in range(1, 17)} and read[2] == (16, 1)
    assert len(set(together)) == (16 if sampling is WARM else 4)
    assert together == [ask(engine, [request])[0].text for request in requests]


def test_a_row_that_goes_on_alone_from_a_batch_with_a_shared_prefix(
    engine: TransformersEngine, tiny_model: Path
):
    requests = questions(GREEDY)[2:]
    text = ask(engine, requests)[0].text
    more = Request((*requests[0].messages, assistant(text), user("Again.")), GREEDY)
    alone = TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))
    assert ask(engine, [more])[0].text == ask(alone, [more])[0].text


def test_seeds_and_only_seeds_change_a_sampled_reply(engine: TransformersEngine):
    same = ask(engine, [Request((user("Hello."),), WARM, seed=1)])[0].text
    assert ask(engine, [Request((user("Hello."),), WARM, seed=1)])[0].text == same
    others = {
        c.text
        for c in ask(engine, [Request((user("Hello."),), WARM, seed=n) for n in range(2, 10)])
    }
    assert len(others) > 4


def test_sampling_follows_the_models_distribution(engine: TransformersEngine):
    """The first token's frequencies over 2,000 seeds are the model's probabilities, nearly."""
    from cai.engines.sampler import SeededSampler

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -50.0]]).repeat(2000, 1)
    drawn = SeededSampler(Sampling(temperature=0.5), list(range(2000)))(None, logits).argmax(-1)
    frequencies = torch.bincount(drawn, minlength=5) / 2000
    assert torch.allclose(frequencies, (logits[0] / 0.5).softmax(-1), atol=0.03)
    top_k = SeededSampler(Sampling(top_k=2), list(range(500)))(None, logits[:500]).argmax(-1)
    assert set(top_k.tolist()) == {0, 1}
    top_p = SeededSampler(Sampling(top_p=0.7), list(range(500)))(None, logits[:500]).argmax(-1)
    assert set(top_p.tolist()) == {0, 1}  # 0.64 alone does not reach 0.7, so the second token stays


def test_scores_are_the_summed_log_probabilities(engine: TransformersEngine):
    requests = [
        Request((user("Which?"), assistant("The answer is:")), continuations=(" A", " B")),
        Request((user(LONG),), continuations=("A river carries water.", "No.")),
    ]
    for request, completion in zip(requests, ask(engine, requests), strict=True):
        prompt = engine.tokenizer(render(engine.tokenizer, request.messages))["input_ids"]
        for text, score in zip(request.continuations, completion.logprobs, strict=True):
            own = engine.tokenizer(text)["input_ids"]
            with torch.inference_mode():
                logits = engine.model(torch.tensor([prompt + own])).logits[0].log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(own))
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_leaves_no_room_is_said_to_be_too_long(engine: TransformersEngine):
    request = Request((Message("user", LONG * 400),), GREEDY)
    completion = ask(engine, [request, Request((user("Hello."),), GREEDY)])
    assert completion[0].finish_reason == "too_long" and completion[0].text == ""
    assert completion[1].finish_reason in ("stop", "length")


def test_a_continuation_that_goes_beyond_the_context_is_too_long_too(engine: TransformersEngine):
    prompt, room = (user("Hello."),), engine.model.config.max_position_embeddings
    left = room - len(encode_request(engine.tokenizer, Request(prompt))[0])
    scored = ask(
        engine, [Request(prompt, continuations=("!" * count,)) for count in (left, left + 1)]
    )
    texts = ["!" * count for count in (left, left + 1)]
    assert [len(ids) for ids in engine.tokenizer(texts)["input_ids"]] == [left, left + 1]
    assert [one.finish_reason for one in scored] == ["score", "too_long"]


def test_small_batches_give_the_same(tiny_model: Path, engine: TransformersEngine):
    small = TransformersEngine(
        EngineConfig(device="cpu", batch_rows=2, batch_tokens=2000), str(tiny_model)
    )
    assert [c.text for c in ask(small, questions(WARM))] == [
        c.text for c in ask(engine, questions(WARM))
    ]


@pytest.mark.parametrize(("spare", "sizes"), [(0, [9]), (-1, [7, 2])])
def test_what_the_rows_share_counts_once_for_the_size_of_a_batch(
    spare: int, sizes: list[int], tiny_model: Path
):
    """And nine rows where eight fit: one by itself costs more."""
    requests = questions(GREEDY)[2:]
    engine = TransformersEngine(EngineConfig(device="cpu"), str(tiny_model))
    rows = [encode_request(engine.tokenizer, request)[0] for request in requests]
    shared = next(
        place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1
    )
    own = max(map(len, rows)) - shared + GREEDY.max_new_tokens
    engine.config = EngineConfig(device="cpu", batch_tokens=shared + 8 * own + spare)
    ran: list[int] = []

    def count(model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows, tokens = (given[0] if given else named["input_ids"]).shape
        if tokens > 1 and not given:  # what they share is read by itself
            ran.append(rows)

    engine.model.register_forward_pre_hook(count, with_kwargs=True)
    ask(engine, requests)
    assert ran == sizes


def cuda_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("fill", [cuda_is_full, lambda: torch.empty(1 << 50)], ids=["cuda", "cpu"])
def test_a_batch_that_does_not_fit_is_halved(
    fill: Any, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
):
    """CUDA's error is simulated; the CPU's is its allocator's own."""
    real, room = TransformersEngine._sample, 2

    def sample(self: TransformersEngine, batch: list[Job], sampling: Sampling) -> Any:
        return fill() if len(batch) > room else real(self, batch, sampling)

    expected = [completion.text for completion in ask(engine, questions(WARM)[:5])]
    monkeypatch.setattr(TransformersEngine, "_sample", sample)
    assert [completion.text for completion in ask(engine, questions(WARM)[:5])] == expected
    room = 0
    with pytest.raises(
        CaiError, match=r"one request of \d+ tokens does not fit .*engine\.dtype or max_new_tokens"
    ):
        ask(engine, questions(WARM)[:5])


LITTLE = """
import asyncio, os, resource, sys
from pathlib import Path
from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.messages import user
from cai.engines.transformers import TransformersEngine
few, many = (
    TransformersEngine(
        EngineConfig(device="cpu", batch_rows=rows, batch_tokens=1 << 20), sys.argv[1]
    )
    for rows in (4, 64)
)
sampling = Sampling(temperature=0, max_new_tokens=2)
requests = [Request((user(f"{n} " + "bread " * 400),), sampling) for n in range(64)]
sizes, real = [], TransformersEngine._sample
def sample(self, batch, sampling):
    sizes.append(len(batch))
    return real(self, batch, sampling)
TransformersEngine._sample = sample
def ask(engine):
    completions = asyncio.run(gather_rows([engine.complete(request) for request in requests]))
    return [completion.text for completion in completions]
expected, plenty = ask(few), sizes.copy()
taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (taken + (50 << 20),) * 2)
assert ask(many) == expected
print(plenty, sizes[len(plenty):])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
def test_under_a_limit_on_memory_batches_are_halved_until_they_fit(tiny_model: Path):
    done = subprocess.run(
        [sys.executable, "-c", LITTLE, str(tiny_model)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plenty, little = (
        json.loads(f"[{part}]") for part in done.stdout.strip().strip("[]").split("] [")
    )
    assert plenty == [4] * 16 and little[:2] == [64, 32] and sum(size < 32 for size in little) >= 2


def test_words_are_told_as_they_come_and_change_nothing(engine: TransformersEngine):
    request = questions(WARM)[0]
    silent = ask(engine, [request])[0]
    words: list[str] = []
    assert asyncio.run(engine.complete(request, words.append)).text == silent.text
    assert "".join(words).strip() == silent.text and len(words) > 2

    async def ask_several() -> None:  # at once: nobody could read them
        await gather_rows([engine.complete(one, words.append) for one in questions(WARM)[1:3]])

    asyncio.run(ask_several())
    assert "".join(words).strip() == silent.text
