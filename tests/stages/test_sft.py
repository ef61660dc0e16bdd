"""Which rows are trained on, what is left out and why, and that the rest of a large file is never in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cai.composing import compose
from cai.config import DataConfig, EngineConfig, ModelConfig, SftConfig
from cai.errors import CaiError
from cai.progress import Progress
from cai.stages.base import Context, Input, write_rows
from cai.stages.sft import prepare, refuse_losses, training_rows
from cai.training.model import load_tokenizer

SECRET = "one two three four five six seven eight nine ten"  # a held-out prompt


def file(folder: Path, name: str, rows: list[Any]) -> DataConfig:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(kind="file", path=str(folder / f"{name}.jsonl"))


def rows(count: int, start: str = "Is it") -> list[dict[str, str]]:
    return [{"prompt": f"{start} {n}?", "completion": f"It is {n}.", "task": start.split()[0]} for n in range(count)]


def context_of(folder: Path, model: Path, data: dict[str, DataConfig], stage: str = "sft") -> Context:
    held_out = {name: data.pop(name) for name in list(data) if name.startswith("held")}
    return Context(
        stage=stage,
        seed=0,
        root=folder,
        scratch=folder,
        model=ModelConfig("tiny", "path", str(model)),
        engine=EngineConfig(device="cpu"),
        data=data | held_out,
        held_out=held_out,
        constitution="harmlessness",
        inputs={"revise": Input(str(folder), "")},
        progress=Progress(stage, quiet=True),
    )


def settings(*overrides: str) -> SftConfig:
    return compose(["experiment=smoke", *overrides]).sft


def test_what_is_left_out_is_counted_with_the_reason(tmp_path: Path):
    mine = [*rows(5), {"prompt": "No answer?"}, {"foo": 1}, {"prompt": f"Say {SECRET}!", "completion": "Yes."}]
    mine += [{"prompt": "Held?", "completion": "No."}]
    held = {name: file(tmp_path, name, [{"prompt": text}]) for name, text in [("held_a", SECRET), ("held_b", "held")]}
    context = context_of(tmp_path, tmp_path, {"seed": file(tmp_path, "seed", mine), **held})
    drawn, counts = training_rows(settings("sft.limit=3"), context)
    assert len(drawn) == 3 and all(tags == {"source": "seed", "task": "Is"} for _, tags in drawn)
    where = f"{tmp_path}/seed.jsonl:7: no known layout has the columns foo; set 'format' and 'fields'"
    assert counts == {
        "read": 9,
        "skipped": 1,
        "skipped_first": [where],
        "overlaps": {"held_a": 1, "held_b": 1},
        "no_answer": 1,
        "overlapping": 2,
        "not_drawn": 2,
        "instructions": 3,
        "sources": {"seed": 3},
    }


def test_revisions_are_all_taken_and_helpful_rows_drawn_beside_them(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write_rows(tmp_path / "training.parquet", [{"messages": turns, "last": last} for last in (False, True, True)])
    context = context_of(tmp_path, tmp_path, {"seed": file(tmp_path, "seed", rows(9))}, "sl_cai")
    config = compose(["experiment=smoke", "sl_cai.helpful_ratio=2", "sl_cai.limit=null"]).sl_cai
    drawn, counts = training_rows(config, context)
    assert counts["revisions"] == 2 and counts["instructions"] == 4 and counts["not_drawn"] == 5
    assert [tags["source"] for _, tags in drawn] == ["seed"] * 4 + ["revisions"] * 2


def audited(folder: Path, model: Path, mine: list[Any], *overrides: str) -> tuple[SftConfig, dict[str, Any]]:
    context = context_of(folder, model, {"seed": file(folder, "seed", mine)})
    config = settings("sft.limit=null", *overrides)
    trained, audit = prepare(config, context, load_tokenizer(str(model)))
    assert len(trained) == audit["rows"] - audit["dropped"]
    return config, audit


def test_the_audit_is_the_same_for_the_same_rows(tiny_model: Path, tmp_path: Path):
    one, again = (audited(tmp_path, tiny_model, rows(6)) for _ in range(2))
    assert one == again and one[1]["texts"]["tags"] == {"task": {"Is": 6}}
    refuse_losses(one[0], "sft", one[1])


def test_a_stage_without_trained_tokens_is_refused(tiny_model: Path, tmp_path: Path):
    config, audit = audited(tmp_path, tiny_model, rows(6), "sft.max_length=8", "sft.max_lost=1")
    with pytest.raises(CaiError, match=r"sft: no trained token is left in 6 rows; raise sft.max_length \(now 8\)"):
        refuse_losses(config, "sft", audit)


@pytest.mark.parametrize(
    ("bad", "most", "said"),
    [
        ([{"foo": 1}], 0.25, None),
        ([{"foo": 1}] * 2, 0.25, "40% of the rows are lost, and sft.max_lost is 0.25: of 5 read, 2 do not fit"),
        ([{"prompt": "No answer?"}] * 3, 0.25, "50% of the rows are lost"),
        (rows(3, "word " * 200), 0.4, "of 6 drawn, 3 keep no trained token"),
        ([{"foo": 1}] * 3 + rows(3, "word " * 200), 0.6, "67% of the rows are lost"),  # a third, then half
    ],
)
def test_more_losses_than_configured_are_refused(
    tiny_model: Path, tmp_path: Path, bad: list[Any], most: float, said: str | None
):
    config, audit = audited(tmp_path, tiny_model, [*rows(3), *bad], f"sft.max_lost={most}")
    if said is None:
        refuse_losses(config, "sft", audit)
    else:
        with pytest.raises(CaiError) as caught:
            refuse_losses(config, "sft", audit)
        assert said in str(caught.value)


@pytest.mark.slow
def test_memory_is_bounded_by_what_is_drawn(tmp_path: Path):
    with (tmp_path / "seed.jsonl").open("w") as out:
        for number in range(100_000):
            out.write(json.dumps({"prompt": f"Is it {number}?", "completion": f"{number} " * 150}) + "\n")
    assert (tmp_path / "seed.jsonl").stat().st_size > 90_000_000
    data = {"seed": DataConfig(kind="file", path=str(tmp_path / "seed.jsonl"))}
    tracemalloc.start()
    drawn, counts = training_rows(settings("sft.limit=500"), context_of(tmp_path, tmp_path, data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 500 and counts["not_drawn"] == 99_500
    assert peak < 10_000_000  # 500 rows of 1 kB, and what reads them
