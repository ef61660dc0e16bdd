"""Which rows are trained on, and what is left out and why.

Also that the rest of a large file is never in memory."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.schema import DataConfig, EngineConfig, ModelConfig, SftConfig
from cai.data.parquet import write_rows
from cai.errors import CaiError
from cai.models.load import load_model
from cai.observe.progress import Progress
from cai.stages.base import Context, Input
from cai.stages.sft import Summary, run
from cai.stages.tokenized_rows import tokenized_rows
from cai.stages.training_rows import Audit, training_rows
from cai.training.arguments import quantization_config
from tests.configs import smoke

SHORT: dict[str, Any] = {"rows": 6, "truncated": 0, "lost_end_of_turn": 0, "dropped": 0}
SHORT |= {"trained_tokens": 9, "lengths": {}, "texts": {}}
SECRET = "one two three four five six seven eight nine ten"  # a held-out prompt


def file(folder: Path, name: str, rows: list[Any]) -> DataConfig:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(kind="file", path=str(folder / f"{name}.jsonl"))


def rows(count: int, start: str = "Is it") -> list[dict[str, str]]:
    return [
        {"prompt": f"{start} {n}?", "completion": f"It is {n}.", "task": start.split()[0]}
        for n in range(count)
    ]


def context_of(
    folder: Path, model: Path, data: dict[str, DataConfig], stage: str = "sft"
) -> Context:
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
    return smoke(*overrides).sft


def test_training_rows_stand_behind_the_sets_system_message(tmp_path: Path, tiny_model: Path):
    mine = replace(file(tmp_path, "mine", rows(3)), system="Be kind.")
    context = context_of(tmp_path, tiny_model, {"mine": mine})
    found, _ = training_rows(replace(settings(), data=["mine"], weights=None), context)
    assert {dialogue[0].content for dialogue, _ in found} == {"Be kind."}


def test_what_is_left_out_is_counted_with_the_reason(tmp_path: Path):
    mine = [
        *rows(5),
        {"prompt": "No answer?"},
        {"foo": 1},
        {"prompt": f"Say {SECRET}!", "completion": "Yes."},
    ]
    mine += [{"prompt": "Held?", "completion": "No."}]
    held = {
        name: file(tmp_path, name, [{"prompt": text}])
        for name, text in [("held_a", SECRET), ("held_b", "held")]
    }
    context = context_of(tmp_path, tmp_path, {"seed": file(tmp_path, "seed", mine), **held})
    drawn, counts = training_rows(settings("sft.limit=3"), context)
    assert len(drawn) == 3 and all(
        tags["source"] == "seed" and tags["task"] == "Is" and ".jsonl:" in tags["place"]
        for _, tags in drawn
    )
    where = (
        f"{tmp_path}/seed.jsonl:7: no known layout has the columns foo; set 'format' and 'fields'"
    )
    assert counts == {
        "read": 9,
        "skipped": 1,
        "skipped_first": [where],
        "ignored": {},
        "overlaps": {"held_a": 1, "held_b": 1},
        "no_answer": 1,
        "overlapping": 2,
        "duplicates": 0,
        "not_drawn": 2,
        "instructions": 3,
        "sources": {"seed": 3},
        "revisions": None,
        "called_bad": 0,
        "edited": 0,
        "verdicts_unused": 0,
    }


def test_revisions_are_all_taken_and_helpful_rows_drawn_beside_them(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write_rows(
        tmp_path / "training.parquet",
        [{"id": "0", "messages": turns, "last": last} for last in (False, True, True)],
    )
    context = context_of(tmp_path, tmp_path, {"seed": file(tmp_path, "seed", rows(9))}, "sl_cai")
    config = smoke("sl_cai.helpful_ratio=2", "sl_cai.limit=null").sl_cai
    drawn, counts = training_rows(config, context)
    assert counts["revisions"] == 2 and counts["instructions"] == 4 and counts["not_drawn"] == 5
    assert [tags["source"] for _, tags in drawn] == ["seed"] * 4 + ["revisions"] * 2


def test_what_people_called_bad_is_left_out_and_what_they_wrote_is_trained_on(tmp_path: Path):
    asking = [{"role": "user", "content": "Hi"}]
    texts = {"0": "Good.", "1": "Bad.", "2": "Wrong.", "3": "Nobody said anything."}
    write_rows(
        tmp_path / "training.parquet",
        [
            {"id": id, "messages": [*asking, {"role": "assistant", "content": text}], "last": True}
            for id, text in texts.items()
        ],
    )
    verdicts = [("0", "good", None), ("1", "bad", None), ("2", "edit", "Right."), ("9", "bad", "")]
    said = [
        {"kind": "revision", "id": id, "prompt": asking, "revision": texts.get(id, "Another's.")}
        | {"verdict": verdict, "edited": edited, "reviewer": "ann"}
        for id, verdict, edited in verdicts
    ]
    data = {
        "seed": file(tmp_path, "seed", rows(9)),
        "people": replace(file(tmp_path, "people", said), format="verdicts"),
    }
    context = replace(context_of(tmp_path, tmp_path, data, "sl_cai"), verdicts=["people"])
    config = smoke("sl_cai.helpful_ratio=1", "sl_cai.limit=null").sl_cai
    drawn, counts = training_rows(config, context)
    revisions = [dialogue[-1] for dialogue, tags in drawn if tags["source"] == "revisions"]
    assert [one.content for one in revisions] == ["Good.", "Right.", "Nobody said anything."]
    assert all(one.trained for one in revisions)
    counted = {name: counts[name] for name in ("called_bad", "edited", "verdicts_unused")}
    assert counted == {"called_bad": 1, "edited": 1, "verdicts_unused": 1}
    # one helpful row for each revision that is left
    assert counts["instructions"] == 3 and counts["read"] == 9 + 4
    audit = Audit(**counts, **SHORT)
    (note,) = Summary("sl_cai", audit, 0, 0, None).notes()
    assert "1 that they called bad were left out, and in place of 1 a person's own text" in note
    assert Summary("sl_cai", replace(audit, called_bad=0, edited=0), 0, 0, None).notes() == []
    untouched, _ = training_rows(config, replace(context, verdicts=[]))
    assert sum(tags["source"] == "revisions" for _, tags in untouched) == 4


def audited(folder: Path, model: Path, mine: list[Any], *overrides: str) -> tuple[SftConfig, Audit]:
    context = context_of(folder, model, {"seed": file(folder, "seed", mine)})
    config = settings("sft.limit=null", *overrides)
    tokenized = tokenized_rows(config, context)
    audit = tokenized.audit
    assert len(tokenized.rows) == audit.rows - audit.dropped
    return config, audit


def test_the_audit_is_the_same_for_the_same_rows(tiny_model: Path, tmp_path: Path):
    one, again = (audited(tmp_path, tiny_model, rows(6)) for _ in range(2))
    assert one == again and one[1].texts["tags"] == {"task": {"Is": 6}}
    one[1].refuse_losses(one[0], "sft")


def test_a_stage_without_trained_tokens_is_refused(tiny_model: Path, tmp_path: Path):
    config, audit = audited(tmp_path, tiny_model, rows(6), "sft.max_length=8", "sft.max_lost=1")
    with pytest.raises(
        CaiError, match=r"sft: no trained token is left in 6 rows; raise sft.max_length \(now 8\)"
    ):
        audit.refuse_losses(config, "sft")


@pytest.mark.parametrize(
    ("bad", "most", "said"),
    [
        ([{"foo": 1}], 0.25, None),
        (
            [{"foo": 1}] * 2,
            0.25,
            "40% of the rows are lost, and sft.max_lost is 0.25: of 5 read, 2 do not fit",
        ),
        ([{"prompt": "No answer?"}] * 3, 0.25, "50% of the rows are lost"),
        (rows(3, "word " * 200), 0.4, "of 6 drawn, 3 keep no trained token"),
        (
            [{"foo": 1}] * 3 + rows(3, "word " * 200),
            0.6,
            "67% of the rows are lost",
        ),  # a third, then half
    ],
)
def test_more_losses_than_configured_are_refused(
    tiny_model: Path, tmp_path: Path, bad: list[Any], most: float, said: str | None
):
    config, audit = audited(tmp_path, tiny_model, [*rows(3), *bad], f"sft.max_lost={most}")
    if said is None:
        audit.refuse_losses(config, "sft")
    else:
        with pytest.raises(CaiError) as caught:
            audit.refuse_losses(config, "sft")
        assert said in str(caught.value)


def test_curves_are_kept_beside_what_the_stage_makes(
    make_context: Callable[..., Context], tmp_path: Path
):
    """TensorBoard's files hold times, so that they can't be part of the output."""
    data = {"seed": file(tmp_path, "seed", rows(6))}
    context = make_context(
        "sft", data=data, scratch=tmp_path / "scratch", report_to=["tensorboard"]
    )
    run(settings("sft.validation=0", "sft.args.num_train_epochs=1"), tmp_path / "work", context)
    found = [path.parent for path in tmp_path.rglob("events.out.tfevents.*")]
    assert found == [tmp_path / "logs"] and (tmp_path / "work/model").is_dir()


@pytest.mark.slow
def test_qlora_tunes_an_adapter_on_four_bits(
    make_context: Callable[..., Context], tiny_model: Path, tmp_path: Path
):
    """bitsandbytes on a CPU: the base is in four bits while it is tuned.

    What is published is the whole model with the adapter merged, in the base's own precision."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tmp_path / "wide"
    shutil.copytree(tiny_model, wide)
    config = LlamaConfig.from_pretrained(
        tiny_model, hidden_size=128, intermediate_size=128, head_dim=64
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(wide)  # four bits come in blocks of 64
    context = make_context(
        "sft", data={"seed": file(tmp_path, "seed", rows(12))}, scratch=tmp_path / "scratch"
    )
    context = replace(context, model=ModelConfig("wide", "path", str(wide)))
    bits = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: float32}"
    args = ("sft.args.num_train_epochs=6", "sft.args.learning_rate=3e-3")
    section = settings(f"sft.quantization={bits}", "sft.validation=0.25", *args)
    quantization = quantization_config("sft.quantization", section.quantization or {})
    quantised = load_model(str(wide), "float32", "cpu", quantization=quantization)
    assert {str(m.weight.dtype) for n, m in quantised.named_modules() if n.endswith("_proj")} == {
        "torch.uint8"
    }
    run(section, tmp_path / "work", context)
    history = json.loads((tmp_path / "work/history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "work/model")
    expected = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(wide), str(tmp_path / "work/adapter")
    )
    expected = expected.merge_and_unload()
    assert all(
        torch.equal(a, b) for a, b in zip(merged.parameters(), expected.parameters(), strict=True)
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(
        merged.state_dict()[name], LlamaForCausalLM.from_pretrained(wide).state_dict()[name]
    )


@pytest.mark.slow
def test_memory_is_bounded_by_what_is_drawn(tmp_path: Path):
    with (tmp_path / "seed.jsonl").open("w") as out:
        for number in range(100_000):
            out.write(
                json.dumps({"prompt": f"Is it {number}?", "completion": f"{number} " * 150}) + "\n"
            )
    assert (tmp_path / "seed.jsonl").stat().st_size > 90_000_000
    data = {"seed": DataConfig(kind="file", path=str(tmp_path / "seed.jsonl"))}
    tracemalloc.start()
    drawn, counts = training_rows(settings("sft.limit=500"), context_of(tmp_path, tmp_path, data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 500 and counts["not_drawn"] == 99_500
    assert peak < 10_000_000  # 500 rows of 1 kB, and what reads them


def test_the_rounds_of_a_prompt_are_all_held_out_or_all_trained_on(
    tmp_path: Path, tiny_model: Path
):
    revised = [
        {
            "id": f"{n}",
            "messages": [
                {"role": "user", "content": f"Prompt number {n}"},
                {"role": "assistant", "content": f"Answer {n} of round {round}."},
            ],
            "last": round == 3,
        }
        for n in range(10)
        for round in range(4)
    ]
    write_rows(tmp_path / "training.parquet", revised)
    context = context_of(tmp_path, tiny_model, {}, "sl_cai")
    config = SftConfig("base", [], revisions="all", validation=0.25)
    tokenized = tokenized_rows(config, context)
    trained, audit = tokenized.rows, tokenized.audit
    texts = tokenized.tokenizer.batch_decode(list(trained["input_ids"]))
    prompts = [text.partition("Prompt number ")[2][:1] for text in texts]
    assert audit.held_out == 8 and len(trained) == 40
    assert not set(prompts[:8]) & set(prompts[8:]) and len(set(prompts[:8])) == 2


def test_duplicates_are_left_out_by_choice_and_counted(tmp_path: Path):
    row = {"prompt": "Is it 1?", "completion": "It is 1."}
    sets = {"one": file(tmp_path, "one", [row, *rows(3)]), "two": file(tmp_path, "two", [row])}
    context = context_of(tmp_path, tmp_path, sets)
    plain = SftConfig("base", ["one", "two"])
    for config, duplicates in ((plain, 0), (replace(plain, dedupe="exact"), 2)):
        dialogues, counts = training_rows(config, context)
        assert (counts["duplicates"], len(dialogues)) == (duplicates, 5 - duplicates)
        assert counts["read"] == 5
