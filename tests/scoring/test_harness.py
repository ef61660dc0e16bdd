"""lm-evaluation-harness on the tiny model, and the error where the extra is not installed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.errors import CaiError, UsageError
from cai.run.runner import check
from cai.scoring.harness import estimates, harness_metrics, task_manager
from tests.configs import smoke


def test_standard_errors_become_intervals():
    found = {
        "name": "arc",
        "sample_len": 50,
        "acc,none": 0.4,
        "acc_stderr,none": 0.1,
        "f1,none": 0.2,
    }
    found |= {"f1_stderr,none": "N/A", "exact_match,strict": 1.0, "exact_match_stderr,strict": 0.0}
    figures = estimates(found, 50)
    assert list(figures) == [
        "acc",
        "exact_match, strict",
    ]  # without a standard error there is no figure
    one = figures["acc"]
    assert (one.value, one.count) == (0.4, 50) and one.low == pytest.approx(0.204, abs=1e-3)
    assert one.high == pytest.approx(0.596, abs=1e-3)
    assert estimates({"acc,none": 0.75, "acc_stderr,none": 0.25}, 4)["acc"].high == 1
    assert (
        figures["exact_match, strict"].high == 1 and 0.9 < figures["exact_match, strict"].low < 0.95
    )


def test_where_the_extra_is_missing_it_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[lm-eval\]'"):
        check(compose(["experiment=smoke", "evaluate.lm_eval=[arc_easy]"]))


def test_a_task_file_on_local_data(tiny_model: Path, rivers: Path):
    """Held against the log-probabilities of the same continuations."""
    pytest.importorskip("lm_eval")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = smoke().engine
    manager = task_manager([str(rivers)])
    figures = harness_metrics(str(tiny_model), engine, [str(rivers)], None, manager)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    right = []
    for row in map(json.loads, rivers.with_suffix(".jsonl").read_text().splitlines()):
        scores = []
        for choice in row["choices"]:
            asked = f"Question: {row['question']}\nAnswer:"
            start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
            ids = tokenizer(f"{asked} {choice}", add_special_tokens=False, return_tensors="pt")[
                "input_ids"
            ]
            with torch.inference_mode():
                logits = model(ids).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        right.append(scores.index(max(scores)) == row["answer"])
    assert figures["rivers"]["acc"].value == sum(right) / 4 and figures["rivers"]["acc"].count == 4
    assert figures["rivers"]["acc"].low < figures["rivers"]["acc"].high


@pytest.mark.slow
def test_the_harness_own_tasks_are_read_where_one_is_named(rivers: Path):
    """From 14,000 files, which takes 10 s. A group in a file may name them."""
    pytest.importorskip("lm_eval")
    assert task_manager([str(rivers)]).all_tasks == []
    group = rivers.with_name("group.yaml")
    group.write_text("group: waters\ntask: [arc_easy]\n")
    assert "arc_easy" in task_manager([str(rivers), str(group)]).all_tasks
    with pytest.raises(
        UsageError, match="'arc_eazy' is no task of the harness; did you mean 'arc_easy'"
    ):
        task_manager(["arc_eazy"])


def test_missing_data_is_named(tiny_model: Path, rivers: Path):
    pytest.importorskip("lm_eval")
    rivers.with_suffix(".jsonl").unlink()
    config = smoke()
    engine = replace(config.engine, device="cpu")
    with pytest.raises(CaiError, match=r"evaluate\.lm_eval: .*rivers"):
        harness_metrics(str(tiny_model), engine, [str(rivers)], None, task_manager([str(rivers)]))


def test_a_servers_many_requests_are_no_batch_of_the_harness(
    tiny_model: Path, rivers: Path, monkeypatch: pytest.MonkeyPatch
):
    harness = pytest.importorskip("lm_eval.models.huggingface")
    sizes: list[int] = []

    class Watched(harness.HFLM):
        def __init__(self, *arguments: Any, batch_size: int, **options: Any):
            sizes.append(batch_size)
            super().__init__(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(harness, "HFLM", Watched)
    manager = task_manager([str(rivers)])
    for rows, expected in ((4096, 32), (16, 16)):
        engine = replace(smoke().engine, batch_rows=rows)
        harness_metrics(str(tiny_model), engine, [str(rivers)], 1, manager)
        assert sizes.pop() == expected
