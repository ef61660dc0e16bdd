"""A prompt beyond a context is counted as that in revise, label and evaluate, and in no rate."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cai.config.schema import DataConfig, EngineConfig, EvaluateConfig, Helpful, Prompts, Suite
from cai.data.parquet import read_rows
from cai.engines.base import Completion, OnText, Request
from cai.engines.scripted import ScriptedEngine
from cai.stages import evaluate, label, revise
from cai.stages.base import Context, Input
from tests.configs import smoke

LONG = "Tell me all of it. " * 20  # two of nine prompts
PROMPTS = [f"Tell me about river {n}." for n in range(7)] + [LONG + "Now.", LONG + "Soon."]
PRINCIPLE = {"id": "p", "critique": "Criticise.", "revision": "Revise.", "comparison": "Compare."}


class Narrow(ScriptedEngine):
    """An engine with room for so many characters."""

    def __init__(self, config: EngineConfig, model: str, room: int = 300):
        super().__init__(config, model)
        self.room = room

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        if sum(len(message.content) for message in request.messages) > self.room:
            return Completion("", "too_long", 0, 0, 0.0)
        return await super().complete(request)


@pytest.fixture
def context(tmp_path: Path, make_context: Callable[..., Context]) -> Context:
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS))
    rows = [
        {"prompt": prompt, "chosen": "Yes.", "rejected": "No.", "completion": "It is long."}
        for prompt in PROMPTS
    ]
    (tmp_path / "answered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "law.yaml").write_text(yaml.safe_dump({"principles": [PRINCIPLE]}))
    names = ("mine", "answered")
    return make_context(
        "revise",
        data={name: DataConfig("file", str(tmp_path / f"{name}.jsonl")) for name in names},
        constitution=str(tmp_path / "law.yaml"),
        inputs={name: Input(str(tmp_path), name) for name in ("sft", "sl_cai", "revise")},
        engine_opener=Narrow,
    )


def test_revise_revises_no_prompt_beyond_the_context(context: Context):
    config = smoke().revise
    helpful = Helpful(Prompts(["mine"]))
    config = dataclasses.replace(
        config, prompts=Prompts(["mine"]), rounds=2, gates=["empty"], helpful=helpful, exemplars=0
    )
    summary = revise.run(config, context.root, context)
    assert (summary.prompts, summary.too_long, summary.rounds_too_long) == (9, 2, 0)
    assert (summary.helpful, summary.helpful_too_long, summary.helpful_left_out) == (7, 2, 0)
    assert {name: row.drawn for name, row in summary.rounds.items()} == {"1": 7, "2": 7}
    assert summary.gates == {} and ("prompts beyond the model's context", "2") in summary.lines()


@pytest.mark.parametrize("room", [108, 120])  # of a critique, of a revision
def test_a_round_that_leaves_the_critic_no_room_fails_no_gate(context: Context, room: int):
    config = smoke().revise
    config = dataclasses.replace(
        config, prompts=Prompts(["mine"]), rounds=1, gates=["empty"], exemplars=0, form="chat"
    )
    talk = "And before that? " * 4
    (context.root / "mine.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p}) for p in (*PROMPTS[:7], talk))
    )

    def narrow(config: EngineConfig, model: str) -> Narrow:
        return Narrow(config, model, room)

    summary = revise.run(config, context.root, dataclasses.replace(context, engine_opener=narrow))
    rows = read_rows(context.root / "revisions.parquet")
    gated = [row["steps"][0]["gates"] for row in rows if row["steps"][0]["gates"]]
    assert gated == [["too_long"]] and summary.rounds_too_long == 1
    assert summary.rounds["1"].drawn == 7 and summary.gates == {} and summary.kept == 7


def test_label_pairs_no_prompt_beyond_the_policys_context(context: Context):
    config = smoke().label
    shown = Prompts(["answered"])
    config = dataclasses.replace(
        config, prompts=Prompts(["mine"]), calibrate=shown, demonstrations=shown, answers=2
    )

    def roomy(config: EngineConfig, model: str) -> Narrow:
        return Narrow(config, model, 370 if "sl_cai" in model else 1 << 20)

    inputs = {"sl_cai": Input(str(context.root / "sl_cai"), "sl_cai"), "sft": context.inputs["sft"]}
    context = dataclasses.replace(context, stage="label", inputs=inputs, engine_opener=roomy)
    numbers = label.run(config, context.root, context).numbers
    assert (numbers["prompts"], numbers["prompt_too_long"], numbers["identical"]) == (9, 2, 0)
    assert (numbers["demonstrations"], numbers["demonstrations_too_long"]) == (7, 2)
    assert (numbers["judged"], numbers["too_long"], numbers["labelled_too_long"]) == (7, 0, 0)


def test_rules_and_a_narrow_judge_count_them_too(context: Context):
    config = smoke().label
    chosen, answered = Prompts(["mine"]), Prompts(["answered"])
    ruled = dataclasses.replace(config, prompts=chosen, kind="rule", demonstrations=answered)
    numbers = label.run(ruled, context.root, context).numbers
    assert (numbers["prompt_too_long"], numbers["none_good"]) == (2, 7)
    judged = dataclasses.replace(
        config, prompts=Prompts(["mine"], 1), calibrate=Prompts(["answered"]), demonstrations=None
    )

    def narrow_judge(config: EngineConfig, model: str) -> Narrow:
        return Narrow(config, model, 450)

    narrow = dataclasses.replace(context, engine_opener=narrow_judge)
    summary = label.run(judged, context.root, narrow)
    assert summary.numbers["labelled_too_long"] == 2
    assert summary.judge and summary.judge.metrics["accuracy"]["count"] == 7


def test_evaluate_scores_no_prompt_beyond_the_context(context: Context):
    sampling = smoke().evaluate.sampling
    suites = {"red": Suite("red_team", Prompts(["mine"]))}
    config = EvaluateConfig(sampling, suites, ["base"], seeds=2)
    summary = evaluate.run(config, context.root, context)
    red = summary.metrics["base"]["red"]
    assert (red["too_long"]["value"], red["too_long"]["count"]) == (2 / 9, 9)
    assert red["refusal"]["count"] == red["degenerate"]["count"] == 7
    assert red["degenerate"]["value"] == 0
    assert len(read_rows(context.root / "answers.parquet")) == 14
