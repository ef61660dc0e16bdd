"""The life of a server that cai starts, with a small HTTP server in vLLM's place."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.schema import EngineConfig, EvaluateConfig, Sampling, ServerConfig
from cai.engines import vllm_server
from cai.engines.base import Completion, Engine, Request, check_engine, check_ready, open_engine
from cai.engines.rows import gather_rows
from cai.engines.vllm import server_options
from cai.engines.vllm_options import flags, share_device
from cai.engines.vllm_server import VllmServer
from cai.errors import CaiError, Interrupted, UsageError
from cai.messages import Prompt, assistant, user
from cai.observe.log import enter_stage, open_log
from cai.stages.base import Context
from cai.stages.model_answers import ask_models
from cai.stages.suites import Suites
from cai.store.files import write_json

SHORT = Sampling(temperature=0, max_new_tokens=4)
LETTERS = Request((user("Is it?"), assistant("The answer is:")), continuations=(" A", " B"))

# A Python that runs this in place of vLLM: the model's answer to a prompt is its length in tokens.
FAKE = """
    import json, os, pathlib, socketserver, subprocess, sys
    from http.server import BaseHTTPRequestHandler

    if "-c" in sys.argv:
        print(pathlib.Path(__file__).parent / "vllm")
        sys.exit("{state}" == "no vLLM")
    here = pathlib.Path(__file__).parent
    with open(here / "arguments.jsonl", "a") as file:
        file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + chr(10))
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(here / "pids", "a") as file:
        print(os.getpid(), engine.pid, file=file)
    print("loading", flush=True)
    {first}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            cards = [dict(id="base", max_model_len=100), dict(id="adapter", parent="base")]
            self.answer(dict(data=cards))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open(here / "bodies.jsonl", "a") as file:
                file.write(json.dumps(body) + chr(10))
            {each}
            prompt = body["prompt"]
            scores = dict()
            for token in body.get("logprob_token_ids") or []:
                scores[f"token_id:{{token}}"] = -token / 100
            choice = dict(index=0, text=f" {{len(prompt)}} ", finish_reason="stop")
            choice["logprobs"] = dict(top_logprobs=[scores], token_logprobs=[None])
            usage = dict(prompt_tokens=len(prompt), completion_tokens=2)
            self.answer(dict(model=body["model"], choices=[choice], usage=usage))

        def answer(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def address_string(self):
            return "here"

        def log_message(self, *args):
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path = next(word.removeprefix("--uds=") for word in sys.argv if word.startswith("--uds="))
    Server(path, Handler).serve_forever()
"""

MakePython = Callable[..., EngineConfig]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[MakePython]:
    """Makes a Python that serves as FAKE does, and the configuration that names it."""

    def make(first: str = "pass", each: str = "pass", state: str = "") -> EngineConfig:
        program = textwrap.dedent(FAKE.format(first=first, each=each, state=state))
        (tmp_path / "python").write_text(f"#!{sys.executable}\n{program}")
        (tmp_path / "python").chmod(0o755)
        return EngineConfig(kind="vllm", python=str(tmp_path / "python"))

    yield make
    assert until(lambda: not running(tmp_path)), "a process was left"


def running(folder: Path) -> list[int]:
    """The processes of the servers and of their children that are there."""
    file = folder / "pids"
    pids = map(int, file.read_text().split()) if file.exists() else ()
    return [pid for pid in pids if is_there(pid)]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # one that nobody waits for stays as a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def until(holds: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def ask(engine: Engine, *requests: Request) -> list[Completion]:
    async def run() -> list[Completion]:
        return await gather_rows([engine.complete(request) for request in requests])

    return asyncio.run(run())


def question(words: int) -> Request:
    return Request((user("a " * words),), SHORT)


def test_a_server_is_started_asked_and_ended(fake: MakePython, tiny_model: Path, tmp_path: Path):
    engine = open_engine(fake(), str(tiny_model))
    reply, scored, too_long = ask(engine, question(3), LETTERS, question(200))
    assert reply.text == str(reply.prompt_tokens)
    assert (reply.finish_reason, reply.new_tokens) == ("stop", 2)
    assert (scored.finish_reason, scored.new_tokens) == ("score", 0)
    assert too_long.finish_reason == "too_long"
    assert len(running(tmp_path)) == 2
    engine.close()
    assert until(lambda: not running(tmp_path), 2)


def test_the_server_is_told_nothing_but_tokens_and_what_decides_them(
    fake: MakePython, tiny_model: Path, tmp_path: Path
):
    engine = open_engine(fake(), str(tiny_model))
    ask(engine, Request((user("a"),), Sampling(0.5, 0.9, 40, 4), seed=7))
    (scored,) = ask(engine, LETTERS)
    engine.close()
    reply, letters = map(json.loads, (tmp_path / "bodies.jsonl").read_text().splitlines())
    assert all(isinstance(token, int) for token in reply.pop("prompt"))
    assert reply == {
        "model": "base",
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_token_ids": [2],
        "top_k": 40,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 7,
        "skip_special_tokens": True,
    }
    assert letters["max_tokens"] == 1
    assert not letters.get("prompt_logprobs") and not letters.get("echo")
    assert scored.logprobs == tuple(-token / 100 for token in letters["logprob_token_ids"])


def test_the_environment_is_the_servers_own(
    fake: MakePython, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    open_engine(fake(), str(tiny_model)).close()
    arguments, variables = json.loads((tmp_path / "arguments.jsonl").read_text())
    assert "PYTHONPATH" not in variables
    assert variables["PATH"].split(":")[0] == str(tmp_path)
    assert (variables["VLLM_NO_USAGE_STATS"], variables["DO_NOT_TRACK"]) == ("1", "1")
    assert arguments[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert not any(word.startswith(("--host", "--port", "--api-key")) for word in arguments)
    socket = Path(arguments[-1].removeprefix("--uds="))
    assert not socket.parent.exists()


CAI = """
import sys, time
from cai.config.schema import EngineConfig
from cai.engines import vllm_server
from cai.engines.base import open_engine
engine = open_engine(EngineConfig(kind="vllm", python=sys.argv[1]), sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_cai_leaves_no_server(fake: MakePython, tiny_model: Path, tmp_path: Path):
    python = fake().python
    assert python
    command = [sys.executable, "-c", CAI, python, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as cai:
        assert cai.stdout and cai.stdout.readline() == b"ready\n"
        assert len(running(tmp_path)) == 2
        cai.kill()
    assert until(lambda: not running(tmp_path), 5)


def test_a_server_that_ignores_sigterm_is_killed(
    fake: MakePython, tiny_model: Path, tmp_path: Path
):
    import_signal = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    engine = open_engine(fake(first=import_signal), str(tiny_model))
    engine.close()
    assert until(lambda: not running(tmp_path), 2)


def test_a_server_that_is_killed_is_started_again(
    fake: MakePython, tiny_model: Path, tmp_path: Path
):
    """It dies of its third request, with others under way; the rows are the same."""
    dies = "if len(open(here / 'bodies.jsonl').readlines()) == 3: os.kill(os.getpid(), 9)"
    engine = open_engine(fake(each=dies), str(tiny_model))
    requests = [question(words) for words in range(1, 9)]
    replies = ask(engine, *requests)
    engine.close()
    assert [reply.text for reply in replies] == [str(reply.prompt_tokens) for reply in replies]
    assert len((tmp_path / "pids").read_text().splitlines()) == 2


def test_a_server_that_dies_of_every_request_ends_the_stage(
    fake: MakePython, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vllm_server, "RESTARTS", 1)
    engine = open_engine(fake(each="print('no memory', flush=True); os._exit(3)"), str(tiny_model))
    with pytest.raises(CaiError, match=r"has died, and was started 2 times(?s:.*)no memory"):
        ask(engine, question(1))
    engine.close()


def test_a_server_that_hangs_is_started_again(fake: MakePython, tiny_model: Path, tmp_path: Path):
    """It is alive, and its first process never answers; the rows are the same."""
    hangs = "if len(open(here / 'pids').readlines()) == 1: import time; time.sleep(600)"
    config = replace(fake(each=hangs), server=ServerConfig(timeout=3))
    engine = open_engine(config, str(tiny_model))
    replies = ask(engine, *[question(words) for words in range(1, 5)])
    engine.close()
    assert [reply.text for reply in replies] == [str(reply.prompt_tokens) for reply in replies]
    assert len((tmp_path / "pids").read_text().splitlines()) == 2


def test_a_server_that_always_hangs_ends_the_stage(
    fake: MakePython, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vllm_server, "RESTARTS", 0)
    config = replace(fake(each="import time; time.sleep(600)"), server=ServerConfig(timeout=3))
    engine = open_engine(config, str(tiny_model))
    with pytest.raises(CaiError, match=r"has answered nothing for 3 s, and was started 1 times"):
        ask(engine, question(1))
    engine.close()


def test_a_server_that_hangs_while_it_starts_is_ended(fake: MakePython, tiny_model: Path):
    config = replace(fake(first="import time; time.sleep(600)"), server=ServerConfig(timeout=2))
    silence = r"has neither answered nor said anything for 2 s.*engine\.server\.timeout"
    with pytest.raises(CaiError, match=rf"{silence}(?s:.*)loading"):
        open_engine(config, str(tiny_model))


def test_what_a_server_said_last_is_in_the_error_and_in_the_runs_logs(
    fake: MakePython, tiny_model: Path, tmp_path: Path
):
    open_log(tmp_path / "run")
    enter_stage("revise")
    try:
        config = fake(first="sys.exit('out of memory: see \\x1b[1m--gpu-memory-utilization')")
        with pytest.raises(CaiError) as caught:
            open_engine(config, str(tiny_model))
        log_file = tmp_path / "run/logs/vllm-revise-1.log"
        assert f"ended before it was ready. The end of {log_file}:\n" in str(caught.value)
        assert "  loading\n  out of memory: see \ufffd[1m--gpu" in str(caught.value)
        assert "ended by itself, with exit code 1" in str(caught.value)
        assert "out of memory" in log_file.read_text()
        with pytest.raises(CaiError, match=r"vllm-revise-2\.log"):  # no log is written over
            open_engine(config, str(tiny_model))
    finally:
        enter_stage("")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "api_server.py: error: unrecognized arguments: --max-modl-len=5",
            "engine.options.max_modl_len: vLLM has no option --max-modl-len",
        ),
        (
            "api_server.py: error: argument --max-model-len: invalid value 'x'",
            "engine.options.max_model_len: invalid value 'x'",
        ),
    ],
)
def test_an_option_that_vllm_refuses_is_named(
    said: str, message: str, fake: MakePython, tiny_model: Path
):
    with pytest.raises(UsageError) as caught:
        open_engine(fake(first=f"sys.exit({said!r})"), str(tiny_model))
    assert str(caught.value) == message


def test_an_interrupt_ends_a_server_that_still_starts(
    fake: MakePython, tiny_model: Path, tmp_path: Path
):
    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Interrupted):
            open_engine(fake(first="import time; time.sleep(600)"), str(tiny_model))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert until(lambda: not running(tmp_path))


def test_options_become_flags():
    options = {
        "tensor_parallel_size": 2,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"rope": {"factor": 2}},
        "lora_target_modules": ["q_proj", "v_proj"],
        "revision": None,
        "data_parallel_backend": "ray",
    }
    assert flags(options) == [
        "--tensor-parallel-size=2",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        '--hf-overrides={"rope": {"factor": 2}}',
        "--lora-target-modules",
        "q_proj",
        "v_proj",
        "--data-parallel-backend=ray",
    ]


def test_a_persons_options_reach_the_server_beside_ours():
    config = EngineConfig(kind="vllm", dtype="bfloat16", options={"max_model_len": 64})
    options = server_options(config, "owner/model@1234")
    assert (options["model"], options["revision"]) == ("owner/model", "1234")
    assert (options["dtype"], options["max_model_len"]) == ("bfloat16", 64)
    assert options["logprobs_mode"] == "raw_logprobs"


def make_adapter(folder: Path, base: str, module: str = "q_proj", **values: Any) -> str:
    """A folder with an adapter of a module in one layer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 9, "base_model_name_or_path": base} | values
    write_json(folder / "adapter_config.json", config)
    layer = f"base_model.model.model.layers.0.self_attn.{module}"
    factors = {
        f"{layer}.lora_A.weight": torch.ones(9, 4),
        f"{layer}.lora_B.weight": torch.ones(4, 9),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return str(folder)


def test_an_adapter_is_served_unmerged_on_its_base(tmp_path: Path):
    adapter = make_adapter(tmp_path / "one", "owner/base")
    options = server_options(EngineConfig(kind="vllm"), adapter)
    assert options["model"] == "owner/base"
    assert options["lora_modules"] == [f"adapter-0={adapter}"]
    assert options["max_lora_rank"] == 16
    assert options["lora_target_modules"] == ["q_proj"]
    wide = make_adapter(tmp_path / "wide", "owner/base", r=1024)
    with pytest.raises(UsageError, match="r up to 512"):
        server_options(EngineConfig(kind="vllm"), wide)
    (tmp_path / "one/adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        server_options(EngineConfig(kind="vllm"), adapter)


def test_a_server_has_room_for_each_of_its_adapters(tmp_path: Path):
    adapters = [
        make_adapter(tmp_path / "one", "owner/base"),
        make_adapter(tmp_path / "two", "owner/base", "v_proj", r=33),
    ]
    options = server_options(EngineConfig(kind="vllm"), "owner/base", *adapters)
    assert options["model"] == "owner/base"
    assert options["lora_modules"] == [f"adapter-1={adapters[0]}", f"adapter-2={adapters[1]}"]
    assert options["max_lora_rank"] == 64
    assert options["lora_target_modules"] == ["q_proj", "v_proj"]


def test_adapters_on_one_base_are_evaluated_on_one_server(
    fake: MakePython, tiny_model: Path, tmp_path: Path, make_context: Callable[..., Context]
):
    """With the base. A model of other weights has a server of its own, and none runs beside it."""
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    # answers are recorded by what the weights are
    save_file({name: values + 1 for name, values in weights.items()}, other / "model.safetensors")
    names = ["base", str(other)]
    modules = {"one": "q_proj", "two": "v_proj"}
    names += [make_adapter(tmp_path / name, str(tiny_model), modules[name]) for name in modules]
    context = make_context("evaluate", engine=fake())
    prompts = [Prompt.of((user(text),), "test") for text in ("a", "b")]
    config = EvaluateConfig(sampling=SHORT, suites={}, models=names)
    asked = ask_models(names, Suites({"red": prompts}, {}), config, context)
    assert {name: len(model.answers) for name, model in asked.items()} == dict.fromkeys(names, 2)
    bodies = map(json.loads, (tmp_path / "bodies.jsonl").read_text().splitlines())
    served = [body["model"] for body in bodies]
    assert served == ["base"] * 4 + ["adapter-0"] * 2 + ["adapter-1"] * 2
    assert len((tmp_path / "pids").read_text().splitlines()) == 3


def test_an_environment_with_vllm_is_looked_for_before_anything_runs(
    fake: MakePython, tmp_path: Path
):
    check_ready(fake())
    with pytest.raises(UsageError, match=r"vLLM is not installed for .*make vllm"):
        check_ready(fake(state="no vLLM"))
    with pytest.raises(UsageError, match=r"there is no such program; `make vllm`"):
        check_ready(EngineConfig(kind="vllm", python=str(tmp_path / "nowhere")))


def test_an_option_that_vllms_source_does_not_declare_is_named_before_anything_runs(
    fake: MakePython, tmp_path: Path
):
    config = replace(fake(), options={"max_modl_len": 5})
    # its source is not where it is known to be: the server will say it
    check_engine(config, "engine")
    (tmp_path / "vllm/engine").mkdir(parents=True)
    (tmp_path / "vllm/entrypoints/launchers").mkdir(parents=True)
    (tmp_path / "vllm/engine/arg_utils.py").write_text(
        "class EngineArgs:\n    max_model_len: int = 0\n    enforce_eager: bool = False\n"
        "    gpu_memory_utilization: float = 0.9\n    served: str | None = None\n"
    )
    flags = tmp_path / "vllm/entrypoints/launchers/cli_args.py"
    flags.write_text('parser.add_argument("--api-server-count", type=int)\n')
    for value in (5, "16k", "auto", None):
        options = {"max_model_len": value, "api_server_count": 1, "gpu_memory_utilization": 1}
        check_engine(replace(config, options=options | {"served": 7}), "engine")
    wrong = {"max_model_len": "abc", "enforce_eager": 1, "gpu_memory_utilization": "much"}
    words = ("a whole number", "true or false", "a number")
    for (name, value), takes in zip(wrong.items(), words, strict=True):
        message = rf"engine\.options\.{name}={value}: vLLM takes {takes} here"
        with pytest.raises(UsageError, match=message):
            check_engine(replace(config, options={name: value}), "engine")
    message = r"label\.engine\.options\.max_modl_len: .*; did you mean 'max_model_len'"
    with pytest.raises(UsageError, match=message):
        check_engine(config, "label.engine")


def test_servers_that_run_at_once_divide_a_devices_memory():
    config = EngineConfig(kind="vllm", options={"max_model_len": 64})
    assert share_device(config, 2).options == {"max_model_len": 64, "gpu_memory_utilization": 0.46}
    halved = share_device(share_device(config, 2), 1)
    assert halved.options["gpu_memory_utilization"] == 0.46


def test_a_closed_server_is_not_started_again(fake: MakePython):
    server = VllmServer(str(fake().python), [], 60.0)
    server.start()
    server.close()
    with pytest.raises(CaiError, match="closed"):
        server.ensure_running()
