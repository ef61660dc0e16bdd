"""The dpo stage on the tiny model: pairs of both kinds in, a model, its curve and figures out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cai.composing import compose
from cai.errors import CaiError
from cai.progress import Progress
from cai.stages import dpo
from cai.stages.base import Context, Input, write_rows


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path) -> Context:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": turn("user", f"Is {n} even?"), "chosen": turn("assistant", "Yes."), "principles": ["p"]}
        | {"rejected": turn("assistant", "No, it is not."), "probability": 0.6 if n % 2 else 1.0}
        | {"kind": "feedback" if n % 2 else "revision", "orders": [0.7, 0.5] if n % 2 else []}
        for n in range(10)
    ]
    (tmp_path / "label").mkdir()
    write_rows(tmp_path / "label" / "pairs.parquet", rows)
    (tmp_path / "sl_cai").mkdir()
    (tmp_path / "sl_cai" / "model").symlink_to(tiny_model)
    config = compose(["experiment=smoke", "model=path", f"model.path={tiny_model}"])
    return Context(
        stage="dpo",
        seed=0,
        root=tmp_path,
        scratch=tmp_path / "scratch",
        model=config.model,
        engine=config.engine,
        data={},
        held_out={},
        constitution="harmlessness",
        inputs={name: Input(str(tmp_path / name), name) for name in ("sl_cai", "label")},
        progress=Progress("dpo", quiet=True),
    )


def run(context: Context, name: str, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work = context.root / name
    work.mkdir()
    apart = dataclasses.replace(context, scratch=context.root / f"scratch-{name}")  # checkpoints are another run's
    summary = dpo.run(compose(["experiment=smoke", *words]).dpo, context.inputs, work, apart)
    return summary, json.loads((work / "history.json").read_text())


def test_the_curve_has_margins_and_kl_of_training_and_held_out_pairs(context: Context):
    summary, log = run(context, "soft", "dpo.validation=0.2", "dpo.guards.chosen_floor=100")
    assert (summary["pairs"], summary["dropped"], summary["held_out_rows"]) == (10, 0, 2)
    names = {name for entry in log for name in entry}
    assert {"rewards/margins", "kl", "probability", "eval_rewards/margins", "eval_kl"} <= names
    assert any(0.6 < entry["probability"] < 1 for entry in log if "probability" in entry)  # both kinds in a batch
    assert len(summary["signs"]) == 1 and summary["signs"][0].startswith("At step 2 ")
    hard, _ = run(context, "hard", "dpo.validation=0.2", "dpo.loss=trl")
    assert hard["rewards/margins"] != summary["rewards/margins"] and hard["signs"] == []


def test_a_sweep_finds_the_references_in_the_runs_folder(context: Context):
    plain, _ = run(context, "plain")
    made, _ = run(context, "made", "dpo.args.precompute_ref_log_probs=true")
    folder = context.root / "references"
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(written) == 2  # of training and of held-out pairs
    found, _ = run(context, "found", "dpo.args.precompute_ref_log_probs=true")
    swept, _ = run(context, "swept", "dpo.args.precompute_ref_log_probs=true", "dpo.args.beta=0.3")
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    assert made == found != swept
    assert made["rewards/margins"] == pytest.approx(plain["rewards/margins"], abs=1e-5)
    inputs = {**context.inputs, "sl_cai": Input(context.inputs["sl_cai"].path, "another")}
    other = dataclasses.replace(context, inputs=inputs)
    run(other, "other", "dpo.args.precompute_ref_log_probs=true")
    assert len(list(folder.iterdir())) == 4  # another reference model's are its own


def test_pairs_that_do_not_fit_are_counted_and_none_left_is_an_error(context: Context):
    with pytest.raises(CaiError, match=r"each of 10 prompts fills dpo\.args\.max_length"):
        run(context, "short", "dpo.args.max_length=8")
