"""Whole pipelines on a tiny random model, as a person would type them.

They run, run again, are killed, and continue."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.data.parquet import read_rows
from cai.errors import UsageError
from cai.store.files import SEAL, broken_seal
from cai.store.manifest import Manifest
from cai.store.run_folder import Run
from cai.training.checkpoints import BATCH
from tests.smoke_runs import NAMES, run_fork, smoke_command, start_fork

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]


def typed(folder: Path, tiny_model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it. `run_fork` does the same without the time of imports."""
    return subprocess.run(
        smoke_command(tiny_model, *words), cwd=folder, capture_output=True, text=True, timeout=400
    )


def manifests(folder: Path) -> dict[str, Manifest]:
    run = Run(folder / "outputs" / "smoke")
    found = {name: run.latest(name) for name in NAMES}
    assert all(found.values()), {name: bool(one) for name, one in found.items()}
    return {name: one for name, one in found.items() if one}


def ledger_rows(folder: Path) -> dict[bytes, str]:
    import sqlite3

    with sqlite3.connect(folder / "outputs" / "smoke" / "ledger.sqlite") as db:
        return dict(db.execute("select digest, completion from completions"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder in which the smoke experiment has run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = typed(folder, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held-out prompts, 95 % intervals" in done.stdout and "report.html" in done.stdout
    assert all(name in done.stdout for name in ("base", "sft", "sl_cai", "dpo"))
    assert "revisions by principle" in done.stdout and "revisions by round" in done.stdout
    return folder


def test_the_published_model_loads_with_plain_transformers(whole: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = next((whole / "outputs/smoke/latest/dpo/out").resolve().glob("model"))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert model.config.vocab_size >= len(tokenizer)
    assert not list(folder.rglob("*.bin")) and not list(
        folder.rglob("*.pt")
    )  # safetensors, no pickle


def test_the_rows_load_with_datasets(whole: Path):
    from datasets import load_dataset

    for stage, file in (("revise", "revisions"), ("label", "pairs"), ("evaluate", "answers")):
        path = whole / "outputs/smoke/latest" / stage / "out" / f"{file}.parquet"
        assert (
            len(
                load_dataset(
                    "parquet", data_files=str(path), split="train", cache_dir=str(whole / "cache")
                )
            )
            > 0
        )


def test_nothing_runs_twice(whole: Path, tiny_model: Path):
    before = ledger_rows(whole)
    again = run_fork(whole, tiny_model)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    first, change, where = again.stdout.splitlines()
    assert first == f"up to date: {', '.join(NAMES)}" and change.startswith("Refusals of red-team")
    assert "report.html" in where
    assert ledger_rows(whole) == before


def test_status_reads_the_folder_alone(whole: Path):
    done = subprocess.run(
        [sys.executable, "-m", "cai", "status", "outputs/smoke"],
        cwd=whole,
        capture_output=True,
        text=True,
    )
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [name, "done"] for name in NAMES
    ]


def test_records_can_be_read(whole: Path, cai: Command):
    def show(*words: str) -> subprocess.CompletedProcess[str]:
        return cai("show", *words, folder=whole)

    some = show("outputs/smoke", "--stage", "revise", "--random", "2")
    ids = [line.split()[1] for line in some.stdout.splitlines() if line.split()[:1] == ["id"]]
    assert len(ids) == 2 and "critique 1" in some.stdout
    assert show("smoke", "--id", ids[0][:6]).stdout.count("prompt") >= 1
    assert show("label", "-n", "1").stdout.count("chosen") == 1
    for words, expected in (
        (["--gated", "leekage"], "did you mean 'leakage'?"),
        (["--gated", "leakage"], "no record of revise is like that"),
        (["label", "--gated", "echo"], "only revise has gates"),
    ):
        failed = show(*words)
        assert failed.returncode and expected in failed.stderr and "Traceback" not in failed.stderr


def test_a_beta_runs_dpo_and_what_follows(whole: Path, tiny_model: Path):
    sft = manifests(whole)["sft"]
    done = run_fork(whole, tiny_model, "dpo.args.beta=0.3", "launcher=process")
    assert done.returncode == 0, done.stderr[-3000:]
    said = {
        line.split(":")[0]: line.split(": ")[1]
        for line in done.stderr.splitlines()
        if line.split(":")[0] in NAMES
    }
    assert [name for name in NAMES if said[name] == "up to date"] == NAMES[:4]
    assert manifests(whole)["sft"] == sft
    assert len(list((whole / "outputs/smoke/dpo").iterdir())) == 2
    assert run_fork(whole, tiny_model).returncode == 0  # and back


def test_adapters_alone_run_resume_and_are_pushed(tmp_path: Path, tiny_model: Path):
    words = []
    for stage in ("sft", "sl_cai"):
        lora = "{r: 4, lora_alpha: 8, target_modules: all-linear}"
        words += [f"{stage}.publish=adapter", f"{stage}.peft={lora}"]
    done = run_fork(tmp_path, tiny_model, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "outputs" / "smoke"
    whole_models = [file.parts[-5] for file in root.glob("[!l]*/*/out/model/config.json")]
    assert whole_models == ["dpo"] and not (root / "merged").exists()
    # what merges sl_cai's model again
    again = run_fork(tmp_path, tiny_model, *words, "dpo.args.beta=0.3")
    assert again.returncode == 0 and "sl_cai: up to date" in again.stderr, again.stderr[-3000:]
    pushed = subprocess.run(
        [sys.executable, "-m", "cai", "push", "outputs/smoke", "--repo=a/b", "--stage=sl_cai"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "model.safetensors" in pushed.stdout and "digests.json" not in pushed.stdout
    assert "nothing was sent" in pushed.stdout, pushed.stderr


def test_a_sweep_shares_what_stands_before_it(whole: Path, tiny_model: Path):
    before = {name: len(list((whole / "outputs/smoke" / name).iterdir())) for name in NAMES}
    done = typed(whole, tiny_model, "-m", "dpo.args.beta=0.2,0.4")
    assert done.returncode == 0, done.stderr[-3000:]
    after = {
        name: len(list((whole / "outputs/smoke" / name).iterdir())) - before[name] for name in NAMES
    }
    assert after == {name: 0 if name in NAMES[:4] else 2 for name in NAMES}
    assert run_fork(whole, tiny_model).returncode == 0  # and back


def test_a_sweeps_jobs_run_in_processes_of_submitit(whole: Path, tmp_path: Path, tiny_model: Path):
    """As on Slurm, by submitit's local executor.

    Both are started at once, and one waits for the other's run."""
    shutil.copytree(whole / "outputs", tmp_path / "outputs", symlinks=True)
    run = Run(tmp_path / "outputs/smoke")
    before = {name: len(list((run.root / name).iterdir())) for name in NAMES}
    launcher = ["-m", "hydra/launcher=submitit_local"]
    done = typed(tmp_path, tiny_model, *launcher, "dpo.args.beta=0.06,0.07")  # in no other test
    assert done.returncode == 0, done.stderr[-3000:]
    after = {name: len(list((run.root / name).iterdir())) - before[name] for name in NAMES}
    assert after == {name: 0 if name in NAMES[:4] else 2 for name in NAMES}
    logs = [file.read_text() for file in run.root.glob("logs/sweep-*/.submitit/*/*_log.err")]
    assert len(logs) == 2 and all("dpo: stale: dpo.args.beta 0" in log for log in logs), logs
    results = [file.read_text() for file in run.root.glob("logs/sweep-*/.submitit/*/*_log.out")]
    assert all(
        "held-out prompts, 95 % intervals" in log and "report.html" in log for log in results
    )
    # a job that fails is one line, there and here
    failed = typed(tmp_path, tiny_model, *launcher, "name=other", "model.path=/nowhere")
    assert failed.returncode == 1 and "cai: model.path: /nowhere holds no model" in failed.stderr
    assert "Traceback" not in failed.stderr
    (log,) = (tmp_path / "outputs/other").glob("logs/sweep-*/.submitit/*/*_log.err")
    assert "cai: model.path: /nowhere holds no model" in log.read_text()


def test_a_second_round_goes_on_from_the_first(
    whole: Path, tmp_path: Path, tiny_model: Path, cai: Command
):
    """Round 1 is not made again.

    Round 2 stops between its stages and goes on, with other prompts and another model."""
    shutil.copytree(whole / "outputs", tmp_path / "outputs", symlinks=True)
    run, words = Run(tmp_path / "outputs/smoke"), ("rounds=2", "dpo.reference=first")
    started = run_fork(tmp_path, tiny_model, *words, "stages=[label2]")
    assert started.returncode == 0, started.stderr[-3000:]
    assert [line.split(":")[0] for line in started.stderr.splitlines()].count(
        "label2"
    ) and not run.latest("dpo2")
    done = run_fork(tmp_path, tiny_model, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.endswith(": up to date")]
    assert [line.split(":")[0] for line in lines] == [*NAMES[:5], "label2"]
    found = {name: one for name in (*NAMES, "label2", "dpo2") if (one := run.latest(name))}
    assert {name: found[name].key for name in NAMES[:5]} == {
        name: manifests(whole)[name].key for name in NAMES[:5]
    }
    assert (
        found["dpo2"].files["model/model.safetensors"]
        != found["dpo"].files["model/model.safetensors"]
    )
    assert [*found["evaluate"].summary["metrics"]] == ["base", "sft", "sl_cai", "dpo", "dpo2"]
    assert (
        str(run.folder("dpo2", found["dpo2"].key).name) in done.stdout
    )  # the model that is named at the end
    ids = [
        {row["id"] for row in read_rows(run.root / "latest" / name / "out/pairs.parquet")}
        for name in ("label", "label2")
    ]
    assert all(ids) and not ids[0] & ids[1]
    page = (run.root / "latest/report/out/report.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in ("label2", "dpo2"))
    for words in (("show", "smoke", "label2", "-n", "1"), ("status", "outputs/smoke")):
        read = cai(*words)
        assert read.returncode == 0 and (
            "chosen" in read.stdout or "dpo2     done" in read.stdout
        ), read.stderr


def test_sft_is_tuned_on_what_build_has_made(tmp_path: Path, tiny_model: Path):
    words = [
        "stages=[build,sft]",
        "sft.data=[seed,built]",
        "+sft.weights={built: 1, seed: 3}",
        "build.target=0",
    ]
    words += ["build.prompts={data: [seed], limit: 5}", "build.engine={kind: scripted}"]
    done = run_fork(tmp_path, tiny_model, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    tuned = Run(tmp_path / "outputs/smoke").latest("sft")
    assert tuned is not None and tuned.summary["audit"]["sources"] == {"seed": 12, "built": 4}
    again = run_fork(tmp_path, tiny_model, *words, "build.sampling.answer.temperature=0.5")
    assert "sft: stale: build gave other output" in again.stderr


def tuned(
    folder: Path, tiny_model: Path, launcher: str, rows: int, *more: str
) -> tuple[Path, list[dict[str, float]]]:
    """What sft writes with `rows` rows a process, and its curve."""
    words = [
        f"name={launcher}",
        f"launcher={launcher}",
        f"sft.args.per_device_train_batch_size={rows}",
    ]
    words += [
        "stages=[sft]",
        "sft.validation=0.25",
        "sft.max_length=1024",
        "sft.args.per_device_eval_batch_size=1",
    ]
    done = run_fork(folder, tiny_model, *words, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / "outputs" / launcher / "latest/sft/out"
    return out, json.loads((out / "history.json").read_text())


def check_curves(
    together: list[dict[str, float]], alone: list[dict[str, float]], *keys: str
) -> None:
    for key in keys:
        found = [entry[key] for entry in together if key in entry]
        assert found and found == pytest.approx(
            [entry[key] for entry in alone if key in entry], abs=1e-3
        )


def test_two_processes_train_as_one_does(tmp_path: Path, tiny_model: Path):
    """At an equal global batch: the same losses step by step, and the same held-out loss."""
    (_, alone), (_, together) = (
        tuned(tmp_path, tiny_model, *how) for how in (("inline", 4), ("accelerate", 2))
    )
    assert [entry["step"] for entry in together] == [entry["step"] for entry in alone] and len(
        alone
    ) > 4
    check_curves(together, alone, "loss", "eval_loss", "grad_norm")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_machine(
    rank: int, port: int, folder: Path, tiny_model: Path, *more: str
) -> "subprocess.Popen[str]":
    """One of two machines, which both are this one: they share the folder and meet at a port."""
    words = [
        "name=machines",
        "launcher=accelerate",
        "launcher.machines.count=2",
        f"launcher.machines.rank={rank}",
        "launcher.machines.address=127.0.0.1",
        f"launcher.machines.port={port}",
        *more,
    ]
    return subprocess.Popen(
        smoke_command(tiny_model, *words), cwd=folder, text=True, stderr=subprocess.PIPE
    )


def test_two_machines_train_as_one_does(whole: Path, tmp_path: Path, tiny_model: Path):
    """sl_cai and dpo on two machines of a process each: what one of two processes makes."""
    for name in ("one", "machines"):
        shutil.copytree(whole / "outputs/smoke", tmp_path / "outputs" / name, symlinks=True)
    words = [
        "stages=[sl_cai,label,dpo]",
        "sl_cai.args.per_device_train_batch_size=2",
        "dpo.args.per_device_train_batch_size=1",
    ]
    done = run_fork(tmp_path, tiny_model, "name=one", "launcher=accelerate", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    port = free_port()
    second, first = (start_machine(rank, port, tmp_path, tiny_model, *words) for rank in (1, 0))
    said = [machine.communicate(timeout=400)[1] for machine in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    joined = [line for line in said[1].splitlines() if "joins" in line]
    assert joined == [f"machine 1: joins {name}" for name in ("sl_cai", "dpo")]
    for stage in ("sl_cai", "dpo"):
        manifests = [Run(tmp_path / "outputs" / name).latest(stage) for name in ("one", "machines")]
        assert len({manifest.output for manifest in manifests if manifest}) == 1, stage


def test_the_other_machines_end_with_the_first(tmp_path: Path, tiny_model: Path):
    """A failure of machine 0 ends the others too, and says where to look."""
    words = ["stages=[dpo]"]  # nothing that it needs has run
    port = free_port()
    second = start_machine(1, port, tmp_path, tiny_model, *words)
    assert second.stderr is not None
    while "waits for machine 0" not in second.stderr.readline():
        assert second.poll() is None
    first = start_machine(0, port, tmp_path, tiny_model, *words)
    assert "needs sft, sl_cai" in first.communicate(timeout=100)[1] or first.returncode == 2
    assert "machine 0 has ended with exit code 2" in second.communicate(timeout=100)[1]
    assert second.returncode == 1


# accelerate shards on accelerators alone, and trains data parallel elsewhere without a word:
# here CPUs pass for GPUs
SHARDS = """
import atexit, os
from pathlib import Path
if "LOCAL_RANK" in os.environ:  # a process of `accelerate launch`
    import torch
    from accelerate import state
    from accelerate.utils import DistributedType
    begin, meet = state.PartialState.__init__, torch.distributed.barrier
    def init(self, cpu=False, **options):
        begin(self, cpu, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
    state.PartialState.__init__ = init
    def barrier(*given, device_ids=None, **named):  # gloo knows no device
        return meet(*given, **named)
    torch.distributed.barrier = barrier
    from cai.training import shards
    load, load_all = shards.load_to_train, shards.load_model
    def load_for_gpu(model, dtype, device, *rest):
        return load(model, dtype, "gpu", *rest)
    def told(*given):
        Path(f"loaded-{os.environ['RANK']}").touch()
        return load_all(*given)
    shards.load_to_train, shards.load_model = load_for_gpu, told
    def note():
        sharded = state.AcceleratorState().is_fsdp2
        Path(f"sharded-{os.environ['RANK']}").write_text(str(sharded))
    atexit.register(note)
"""


# the same for DeepSpeed, without its own kernel for CPUs, which a compiler would have to make;
# every weight is divided, also those that ZeRO-3 leaves whole since they are small
ZERO = """
import os
from pathlib import Path
if "LOCAL_RANK" in os.environ:
    from accelerate import state
    from accelerate.utils import DistributedType
    begin, begin_all = state.PartialState.__init__, state.AcceleratorState.__init__
    def init(self, cpu=False, **options):
        begin(self, True, **options)
        self._cpu, self.distributed_type = False, DistributedType.DEEPSPEED
        import deepspeed
        if not deepspeed.comm.is_initialized():  # as accelerate does on accelerators
            deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        from deepspeed.runtime.engine import DeepSpeedEngine
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        gather = DeepSpeedEngine._zero3_consolidated_16bit_state_dict
        def told(engine, **options):
            whole = sum(weights.numel() > 0 for weights in engine.module.parameters())
            Path(f"sharded-{os.environ['RANK']}").write_text(str(whole == 0))
            return gather(engine, **options)
        DeepSpeedEngine._zero3_consolidated_16bit_state_dict = told
    def init_all(self, mixed_precision=None, cpu=False, **options):
        begin_all(self, mixed_precision, False, **options)
        zero = self.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    state.PartialState.__init__, state.AcceleratorState.__init__ = init, init_all
"""


def pretend_gpus(launcher: str, site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every process of a launcher run `site` first. Skips where the launcher is missing."""
    if launcher == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(site)
    path = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


@pytest.mark.parametrize(
    "peft", ["null", "{r: 4, lora_alpha: 8, target_modules: all-linear}"], ids=["full", "lora"]
)
@pytest.mark.parametrize(
    ("launcher", "site"), [("fsdp", SHARDS), ("deepspeed", ZERO)], ids=["fsdp", "deepspeed"]
)
def test_sharded_training_is_that_of_one_process(
    launcher: str,
    site: str,
    peft: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """FSDP2 or ZeRO-3 on gloo: the same losses at an equal global batch, and the same weights
    published in one piece."""
    from safetensors.torch import load_file

    pretend_gpus(launcher, site, tmp_path, monkeypatch)
    one, alone = tuned(tmp_path, tiny_model, "inline", 4, f"sft.peft={peft}")
    two, together = tuned(tmp_path, tiny_model, launcher, 2, f"sft.peft={peft}")
    assert [(tmp_path / f"sharded-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    if launcher == "fsdp":  # the first process alone has weights before they are handed round
        assert [(tmp_path / f"loaded-{rank}").exists() for rank in (0, 1)] == [True, False]
    check_curves(together, alone, "loss", "eval_loss")
    whole, gathered = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    assert gathered.keys() == whole.keys()
    assert all(gathered[name].shape == whole[name].shape for name in whole)
    assert max(float((gathered[name] - whole[name]).abs().max()) for name in whole) < 1e-3
    for file in ("config.json", "generation_config.json"):  # where answers stop stands in them
        alone_config, together_config = (
            json.loads((out / "model" / file).read_text()) for out in (one, two)
        )
        assert together_config == alone_config


@pytest.mark.parametrize(
    ("launcher", "site", "tuning"),
    [("fsdp", SHARDS, "full"), ("fsdp", SHARDS, "lora"), ("deepspeed", ZERO, "full")],
    ids=["fsdp", "fsdp-lora", "deepspeed"],
)
def test_sharded_dpo_is_that_of_one_process(
    launcher: str,
    site: str,
    tuning: str,
    whole: Path,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Where every weight is tuned, the reference is a second model, which is sharded too."""
    pretend_gpus(launcher, site, tmp_path, monkeypatch)
    words = [
        f"dpo={tuning}",
        "dpo.validation=0.25",
        "dpo.args.learning_rate=1e-3",
        "dpo.args.per_device_eval_batch_size=1",
    ]
    outputs = tmp_path / "outputs"
    for name in ("inline", launcher):
        shutil.copytree(whole / "outputs/smoke", outputs / name, symlinks=True)
    done = run_fork(tmp_path, tiny_model, "name=inline", "stages=[dpo]", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    words += [f"launcher={launcher}", "dpo.args.per_device_train_batch_size=1"]
    done = run_fork(tmp_path, tiny_model, f"name={launcher}", "stages=[dpo]", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (
        json.loads((outputs / name / "latest/dpo/out/history.json").read_text())
        for name in ("inline", launcher)
    )
    check_curves(together, alone, "loss", "eval_loss", "rewards/margins")


def killed_at_a_checkpoint(folder: Path, tiny_model: Path, *words: str) -> Path:
    """Kills a run once sft has sealed a checkpoint, and returns the newest.

    The workers end a moment later. If they have removed that checkpoint by then and not yet sealed
    the next one, all is done again.
    """
    for _ in range(4):
        _killed_when_sealed(folder, tiny_model, *words)
        if seals := _seals(folder):
            folders = [seal.parent for seal in seals]
            return max(folders, key=lambda path: int(path.name.rsplit("-", 1)[1]))
        shutil.rmtree(folder / "outputs/smoke")
    raise AssertionError("four times the workers left no sealed checkpoint")


def _seals(folder: Path) -> list[Path]:
    return list(folder.glob(f"outputs/smoke/sft/*/scratch/checkpoints/checkpoint-*/{SEAL}"))


def _killed_when_sealed(folder: Path, tiny_model: Path, *words: str) -> None:
    process = subprocess.Popen(
        smoke_command(tiny_model, *words),
        cwd=folder,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not _seals(folder):
            assert process.poll() is None and time.monotonic() < deadline, (
                "no checkpoint was sealed"
            )
            time.sleep(0.005)
    finally:
        process.kill()  # the conductor alone: its launcher's workers see that it is gone
        process.wait()
    while True:
        with contextlib.suppress(UsageError), Run(folder / "outputs/smoke").lock():
            break
        assert time.monotonic() < deadline, "the workers hold the run for good"
        time.sleep(0.1)


# 12 rows, so that three batches of 4 are an epoch: of two processes each fills its last batch up
# with rows that it had before, where one process has a smaller one.
OF_TWO = ["stages=[sft]", "sft.validation=0.25", "sft.args.per_device_train_batch_size=2"]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The run's folder of an sft that two processes trained without interruption."""
    folder = tmp_path_factory.mktemp("of-two")
    done = run_fork(folder, tiny_model, "launcher=accelerate", *OF_TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "outputs/smoke"


def test_a_damaged_checkpoint_of_two_processes_is_noticed(
    of_two_processes: Path, tmp_path: Path, tiny_model: Path
):
    words = ["launcher=accelerate", *OF_TWO]
    folder = killed_at_a_checkpoint(tmp_path, tiny_model, *words)
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= {
        *json.loads((folder / SEAL).read_text())
    }
    assert broken_seal(folder) is None
    with next(folder.glob("*.safetensors")).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    done = run_fork(tmp_path, tiny_model, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(".safetensors is damaged; training goes on") == 1, done.stderr
    outputs = [Run(root).latest("sft") for root in (of_two_processes, tmp_path / "outputs/smoke")]
    assert all(outputs) and len({one.output for one in outputs if one}) == 1


def test_training_of_two_processes_goes_on_with_one(
    of_two_processes: Path, tmp_path: Path, tiny_model: Path
):
    folder = killed_at_a_checkpoint(tmp_path, tiny_model, "launcher=accelerate", *OF_TWO)
    assert json.loads((folder / BATCH).read_text()) == {"processes": 2, "rows": 4}
    done = run_fork(tmp_path, tiny_model, "launcher=inline", *OF_TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    together, alone = (
        json.loads((root / "latest/sft/out/history.json").read_text())
        for root in (of_two_processes, tmp_path / "outputs/smoke")
    )
    assert [entry["step"] for entry in alone] == [entry["step"] for entry in together]
    check_curves(alone, together, "loss", "grad_norm")


def test_killed_in_every_stage_it_continues_to_the_same_result(
    whole: Path, tmp_path: Path, tiny_model: Path
):
    """One run, killed in each stage in turn: what goes on with a stage is killed in the next."""
    expected, asked = manifests(whole), ledger_rows(whole)
    root, committed = tmp_path / "outputs/smoke", {}
    for stage in NAMES:
        process = start_fork(tmp_path, tiny_model)
        try:
            _wait_until_it_works_on(stage, root, lambda process=process: process.exitcode)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        after = ledger_rows(tmp_path) if (root / "ledger.sqlite").exists() else {}
        # not asked for again: seconds differ between two calls
        assert {key: after[key] for key in committed} == committed, stage
        committed = after
    done = run_fork(tmp_path, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]
    found = manifests(tmp_path)
    assert {n: m.output for n, m in found.items() if n != "report"} == {
        n: m.output for n, m in expected.items() if n != "report"
    }
    after = ledger_rows(tmp_path)
    assert {key: after[key] for key in committed} == committed
    assert after and after.keys() <= asked.keys()


def _wait_until_it_works_on(stage: str, root: Path, ended: Callable[[], int | None]) -> None:
    """Until a process that starts now has done a part of the stage, and has not finished it."""
    deadline, started = time.monotonic() + 240, time.time()
    while time.monotonic() < deadline and ended() is None:
        for file in root.glob(f"{stage}/*/scratch/progress.json"):
            if stage in ("sft", "sl_cai", "dpo"):
                states = file.parent.glob("checkpoints/checkpoint-*/trainer_state.json")
                if any(_written(state) > started for state in states):
                    return
            elif _written(file) > started and _done(file):
                return
        reports = root.glob("report/*/work")
        if stage == "report" and any(_written(work) > started for work in reports):
            return
        time.sleep(0.01)
    assert ended() is not None and (root / "latest" / stage / "manifest.json").exists(), (
        f"{stage} never began"
    )


def _written(file: Path) -> float:
    """When a file was written that may vanish at any moment: then, never."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _done(progress: Path) -> int:
    """Units done, of a file that vanishes as soon as its stage is published."""
    try:
        return json.loads(progress.read_text() or "{}").get("done", 0)
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_how_to_continue(
    number: int, code: int, tmp_path: Path, tiny_model: Path
):
    process = subprocess.Popen(
        smoke_command(tiny_model),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    _wait_until_it_works_on("sft", tmp_path / "outputs" / "smoke", process.poll)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert "the same command continues" in said and "Traceback" not in said
