"""A tiny random model, so that tests run the real code in seconds."""

import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from cai.cli.main import main
from cai.config.types import without_runtime
from cai.data.parquet import write_rows
from cai.models.chat_template import CHATML
from cai.observe.progress import Progress
from cai.scoring.statistics import CountedInterval
from cai.stages import dpo, evaluate, label, revise, sft
from cai.stages.base import Context
from cai.stages.judge_summary import Judge
from cai.stages.training_rows import Audit
from cai.store.files import write_json
from cai.store.manifest import Manifest
from cai.store.run_folder import Run
from tests.configs import smoke

# a slow machine is no bug; half of hypothesis's own number, since `make chaos` tries 10,000
settings.register_profile("untimed", deadline=None, max_examples=50)
settings.register_profile(
    "chaos", deadline=None, max_examples=10_000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("CAI_FUZZ", "untimed"))

TEXTS = [
    "Name a river. The Rhine flows through Europe and ends in the North Sea.",
    "What is a good way to keep bread fresh? Wrap it in a cloth and keep it in a cool place.",
    "I won't help with that, since somebody could be hurt. Let's find another way together.",
    "Look at your last answer. Write your answer again. Write only the new answer. "
    "The answer is: A or B.",
]


def forget_garbage() -> None:
    """Keeps what the libraries have loaded, half a million objects, out of later collections.

    A collection that walks them takes 0.4 s, and every engine that closes and every trainer that
    starts asks for one: they were a third of the time of the tests.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    forget_garbage()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        forget_garbage()


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Undoes what a command changes of its process: a command expects to have one of its own."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment, arguments, mask = dict(os.environ), sys.argv, os.umask(0)
    os.umask(mask)
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in signals.items():
            signal.signal(number, handler)
        os.umask(mask)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.unraisablehook = arguments, hook
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture
def cai(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CompletedProcess[str]]:
    """Runs `cai WORDS` in this process, where torch is loaded already; says what it has left."""

    def run(*words: str, folder: Path = tmp_path, stdin: bytes = b"") -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code: object = 0
        with process_restored(), contextlib.chdir(folder):
            try:
                main(words)
            except SystemExit as end:
                code = end.code or 0
        assert isinstance(code, int), code
        return CompletedProcess(words, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers.

    Its tokenizer is byte-level and has the ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        initializer_range=0.3,  # wide, so that the tokens' probabilities differ
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    forget_garbage()  # torch and transformers are loaded now
    return folder


@pytest.fixture
def make_context(tmp_path: Path, tiny_model: Path) -> Callable[..., Context]:
    """Makes a stage's context on the tiny model, with the smoke experiment's engine.

    Fields that are given replace its own."""

    def make(stage: str, **fields: Any) -> Context:
        config = smoke("model=path", f"model.path={tiny_model}")
        context = Context(
            stage=stage,
            seed=0,
            root=tmp_path,
            scratch=tmp_path,
            model=config.model,
            engine=config.engine,
            data={},
            held_out={},
            constitution="harmlessness",
            inputs={},
            progress=Progress(stage, quiet=True),
        )
        return dataclasses.replace(context, **fields)

    return make


HALF: CountedInterval = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 12}


@pytest.fixture
def summaries() -> dict[str, dict[str, Any]]:
    """A summary of each stage, as manifests keep it."""
    audit = Audit(
        read=16,
        skipped=0,
        skipped_first=[],
        no_answer=0,
        overlapping=0,
        overlaps={},
        not_drawn=0,
        instructions=16,
        sources={"seed": 16},
        revisions=None,
        rows=16,
        truncated=0,
        lost_end_of_turn=0,
        dropped=0,
        trained_tokens=99,
        lengths={"median": 6, "p95": 8, "most": 8, "up_to": {"8": 16}},
        texts={
            "compared": 16,
            "exact_duplicates": 0,
            "near_duplicates": 0,
            "tags": {},
            "distinct": {"1": 1.0},
            "openings": {},
            "different_openings": 0,
            "scripts": {"latin": 16},
        },
    )
    revised = revise.Revised(
        drawn=11, changed=10, refused=3, passed=11, gates={}, words_before=9.0, words_after=8.0
    )
    warnings = ["The judge goes by position."]
    judge = Judge("sft", False, {"flipped": HALF}, warnings, [])
    metrics = {
        name: {"red_team": {"refusal": HALF}, "held_out, 2 shots": {"words": HALF}}
        for name in ("base", "dpo")
    }
    found = {
        "sft": sft.Summary("sft", audit, 0, 4, None),
        "revise": revise.Summary(
            prompts=6,
            overlapping=0,
            rows=11,
            failed=0,
            kept=6,
            gates={},
            principles={"kind": revised},
            rounds={"1": revised},
        ),
        "sl_cai": sft.Summary("sl_cai", dataclasses.replace(audit, rows=14), 0, 3, None),
        "label": label.Summary("feedback", "tiny", 8, {"judged": 8}, judge),
        "dpo": dpo.Summary(8, 0, 0, 4, {}, []),
        "evaluate": evaluate.Summary(
            prompts={"red_team": 12},
            metrics=metrics,
            refusal={"by": "rules"},
            harm=None,
            comparisons=[],
            changes=[],
            attacks=[],
            wins=[],
            failed=0,
        ),
    }
    return {name: dataclasses.asdict(summary) for name, summary in found.items()}


@pytest.fixture
def finished_run(tmp_path: Path, tiny_model: Path, summaries: dict[str, dict[str, Any]]) -> Path:
    """A run whose stages are done, as their manifests would say.

    The tiny model stands in for every trained one."""
    from cai.models.source import fingerprint

    root = tmp_path / "outputs" / "smoke"
    words = ("model=path", f"model.path={tiny_model}", "model.name=tiny", "+model.license=MIT")
    config = smoke(*words)
    law = {"constitution": {"principles": {"kind": "0" * 16, "calm": "1" * 16}}}
    done: dict[str, Manifest] = {}

    def finish(stage: str, inputs: list[str], data: list[str], parts: dict[str, Any]) -> None:
        key = f"{stage:0<64}"
        work, _ = Run(root).begin(stage, key)
        if stage in ("sft", "sl_cai", "dpo"):
            (work / "model").mkdir()
            for file in tiny_model.iterdir():
                (work / "model" / file.name).write_bytes(file.read_bytes())
            write_json(work / "history.json", [])
        for name in {"revise": ["revisions", "training"], "label": ["pairs"]}.get(stage, []):
            write_rows(work / f"{name}.parquet", [{"id": name}])
        write_json(work / "mark.json", stage)  # other output than another stage's
        own = {
            stage: without_runtime(getattr(config, stage)),
            "model": fingerprint(config.model),
        } | parts
        own |= {
            "data": {name: {} for name in data},
            "inputs": {name: done[name].output for name in inputs},
        }
        done[stage] = Run(root).publish(stage, 1, key, own, summaries[stage], time.time())

    finish("sft", [], ["seed"], {})
    finish("revise", ["sft"], ["donotanswer"], law)
    finish("sl_cai", ["sft", "revise"], ["seed"], {})
    finish("label", ["sft", "sl_cai"], ["donotanswer"], law)
    finish("dpo", ["sl_cai", "label"], [], {})
    finish("evaluate", ["dpo"], ["harmbench"], {})
    write_json(root / "run.json", {"schema": 1, "config": dataclasses.asdict(config)})
    return root


@pytest.fixture
def rivers(tmp_path: Path) -> Path:
    """A task file in lm-evaluation-harness's own format, with its data beside it."""
    rows = [
        {
            "question": "Which of these is a river?",
            "choices": ["The Rhine", "A loaf of bread"],
            "answer": 0,
        },
        {
            "question": "Which of these is kept in a cloth?",
            "choices": ["The Rhine", "Bread"],
            "answer": 1,
        },
        {
            "question": "Which of these flows through Europe?",
            "choices": ["A cool place", "The Rhine"],
            "answer": 1,
        },
        {"question": "Who could be hurt?", "choices": ["Somebody", "A cloth"], "answer": 0},
    ]
    (tmp_path / "rivers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {"task": "rivers", "dataset_path": "json", "test_split": "test"}
    task |= {
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rivers.jsonl")},
            "cache_dir": str(tmp_path),
        }
    }
    task |= {"output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:"}
    task |= {"doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    task |= {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (tmp_path / "rivers.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "rivers.yaml"
