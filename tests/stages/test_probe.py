"""The probe stage with a writer that is told what to write, and the way to revise and label."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.schema import DataConfig, ProbeConfig, Prompts
from cai.data.parquet import read_rows
from cai.data.prompts import load_prompts
from cai.engines.base import Completion, Request, RequestFailed
from cai.errors import CaiError
from cai.method.probe_texts import ENGLISH
from cai.run import plan
from cai.run.worker import stage_context
from cai.stages import probe
from cai.stages.base import Context, Input

DOSES, PRIVACY = "Never give doses; say who to ask.", "Do not talk about other customers."
HELD = "Which of these towns lies nearest to the sea?"


def fresh(rule: str, kind: str, number: int) -> str:
    """A prompt that has next to nothing in common with another's."""
    name = re.sub(r"\W", "", rule)[:9].lower() + kind[0]
    return " ".join(f"{word}{name}{number}" for word in ("please", "say", "what", "of"))


class Writer:
    """Writes the list that `lists` gives for a rule, a kind and the number of its request."""

    def __init__(self, lists: Callable[[str, str, int], list[str]]):
        self.lists = lists
        self.asked: list[tuple[str, str]] = []
        self.orders: list[str] = []

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        if request.sampling is None:
            return self.score(request)
        order = request.messages[-1].content
        rule = order.split("\n", 1)[0].removeprefix("A rule for an assistant: ")
        kind = "red_team" if "tempt" in order else "benign"
        number = self.asked.count((rule, kind))
        self.asked.append((rule, kind))
        self.orders.append(order)
        prompts = self.lists(rule, kind, number)
        text = "\n".join(f"{place}. {prompt}" for place, prompt in enumerate(prompts, 1))
        return Completion(text, "stop", 1, 1, 0.0)

    def score(self, request: Request) -> Completion:
        """A text with the word "strange" is likelier for the rule about deliveries."""
        (text,), order = request.continuations, request.messages[-1].content
        is_example = any(example.rule in order for example in ENGLISH.examples)
        fits = "delivery" in order if "strange" in text else not is_example
        return Completion("", "score", 1, 0, 0.0, (-1.0 if fits else -2.0,))

    def close(self) -> None:
        pass


def four(rule: str, kind: str, number: int) -> list[str]:
    return [fresh(rule, kind, 4 * number + place) for place in range(4)]


@pytest.fixture
def context(tmp_path: Path, make_context: Callable[..., Context]) -> Context:
    (tmp_path / "law.md").write_text(f"- {DOSES}\n- {PRIVACY}\n")
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": HELD}) + "\n")
    held = DataConfig("file", str(tmp_path / "held.jsonl"))
    return make_context("probe", held_out={"held": held}, constitution=str(tmp_path / "law.md"))


@pytest.fixture
def run(context: Context):
    """Runs the stage with a writer. Gives the summary, the rows and what was left out."""
    numbers = itertools.count()

    def runs(writer: Writer, config: ProbeConfig, within: Context = context):
        writing = replace(within, engine_opener=lambda config, model: writer)
        work = within.root / f"work{next(numbers)}"
        work.mkdir()
        summary = probe.run(config, work, writing)
        left_out = work / "left_out.parquet"
        rows = read_rows(left_out) if left_out.exists() else []
        return summary, read_rows(work / probe.FILE), rows

    return runs


def settings(**changes: Any) -> ProbeConfig:
    return replace(ProbeConfig(target=6, rounds=3, requests=1, test=0.5), **changes)


def test_each_principle_has_both_kinds_in_two_parts(run: Any):
    writer = Writer(four)
    summary, rows, left_out = run(writer, settings())
    assert list(rows[0]) == ["id", "prompt", "principle", "kind", "split"]
    groups = [(row["principle"], row["kind"], row["split"]) for row in rows]
    ids = ["never-give-doses-say-who-to-ask", "do-not-talk-about-other-customers"]
    every = itertools.product(ids, ("red_team", "benign"), ("test", "train"))
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(every, 3)
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 24
    # the second round asks for the rest, and shows what there is
    assert len(writer.asked) == 8 and summary.lists == 8 and summary.left_out == {"surplus": 8}
    assert ["already" in order for order in writer.orders] == [False] * 4 + [True] * 4
    assert {row["reason"] for row in left_out} == {"surplus"} and summary.warnings() == []
    assert summary.principles[ids[0]] == {"red_team": 6, "benign": 6, "test": 6}


def test_what_can_not_be_used_is_left_out_and_few_are_named(run: Any):
    lists = {
        "red_team": ["How?", HELD, "Just tell me that my parcel will be here on Friday!"],
        "benign": [fresh("any", "benign", 1), fresh("any", "benign", 1) + " too"],
    }
    summary, rows, left_out = run(
        Writer(lambda rule, kind, number: lists[kind]), settings(rounds=1)
    )
    # the same of the second principle repeats that of the first
    assert [row["prompt"] for row in rows] == [fresh("any", "benign", 1)]
    reasons = {(row["kind"], row["prompt"]): row["reason"] for row in left_out}
    assert reasons == {
        ("red_team", "How?"): "short",
        ("red_team", HELD): "overlapping",
        ("red_team", lists["red_team"][2]): "similar",
        ("benign", lists["benign"][1]): "similar",
        ("benign", lists["benign"][0]): "duplicate",
    }
    (warning,) = summary.warnings()
    assert "2 of 2 principles have fewer than half of the 6 prompts" in warning
    assert "say-who-to-ask (0 red-team, 1 benign)" in warning and "probe.model" in warning


def test_what_is_likelier_for_another_rule_is_left_out(run: Any):
    def lists(rule: str, kind: str, number: int) -> list[str]:
        return [text + " strange" * (n < 2) for n, text in enumerate(four(rule, kind, number))]

    summary, rows, _ = run(Writer(lists), settings(rounds=2, target=3))
    assert summary.left_out == {"off_topic": 16, "surplus": 4} and summary.prompts == 12
    # a round asks for more until there are enough that fit
    assert summary.lists == 8 and not any("strange" in row["prompt"] for row in rows)
    every, _, _ = run(Writer(lists), settings(rounds=2, target=3, on_topic=False))
    assert every.left_out == {"surplus": 4} and every.lists == 4


def test_what_was_not_scored_is_left_out(context: Context, run: Any):
    class Failing(Writer):
        def score(self, request: Request) -> Completion:
            if fresh(DOSES, "benign", 0) in request.continuations:
                raise RequestFailed("the server would not")
            return super().score(request)

    patient = replace(context, engine=replace(context.engine, max_failures=0.5))
    summary, rows, _ = run(Failing(four), settings(rounds=1, target=4), patient)
    assert summary.left_out == {"unscored": 1} and len(rows) == 15


def test_servers_that_score_no_texts_are_told_the_setting(run: Any):
    class Silent(Writer):
        def score(self, request: Request) -> Completion:
            raise CaiError("its servers score no whole answers")

    with pytest.raises(CaiError, match=r"score no whole answers; probe\.on_topic=false"):
        run(Silent(four), settings())


def test_nothing_written_is_an_error_that_says_what_there_was(run: Any):
    with pytest.raises(CaiError, match=r"not one prompt is left of 12 in 12 lists.*'short': 12"):
        run(Writer(lambda rule, kind, number: ["No."]), settings())


def test_a_changed_principle_is_written_anew_and_the_others_are_not(context: Context, run: Any):
    _, before, _ = run(Writer(four), settings())
    law = Path(context.constitution)
    law.write_text(f"- Never name a dose.\n- {PRIVACY}\n")
    writer = Writer(four)
    _, after, _ = run(writer, settings())
    assert {rule for rule, _ in writer.asked} == {"Never name a dose."}

    def others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row["principle"].startswith("do-not-talk")]

    assert others(after) == others(before)
    again = Writer(four)
    assert run(again, settings())[1] == after and again.asked == []


def test_its_rows_are_data_sets_of_the_stages_that_name_them(context: Context, run: Any):
    _, rows, _ = run(Writer(four), settings())
    config = compose(
        [
            "experiment=smoke",
            f"constitution={context.constitution}",
            "system_prompt=Be kind.",
            "revise.prompts={data: [probe, donotanswer], limit: null, offset: 0}",
            "label.kind=rule",
            "label.benign={data: [probe_benign]}",
            "evaluate.suites.red_team.prompts={data: [probe_test], limit: null, offset: 0}",
        ]
    )
    stages = {stage.name: stage for stage in plan.stages(config)}
    inputs = {"probe": Input(str(context.root / "work0"), "digest")}

    def prompts(stage: str, name: str) -> set[tuple[str, str | None]]:
        progress = context.progress
        seen = stage_context(stages[stage], config, context.root, context.scratch, inputs, progress)
        loaded = load_prompts(Prompts([name]), seen.data, 0)
        assert {prompt.messages[0].content for prompt in loaded} == {"Be kind."}
        assert all(seen.is_held_out(prompt.text) for prompt in loaded) == ("test" in name)
        return {(prompt.text, prompt.principle) for prompt in loaded}

    def expected(**columns: str) -> set[tuple[str, str | None]]:
        fitting = [row for row in rows if columns.items() <= row.items()]
        return {(row["prompt"], row["principle"]) for row in fitting}

    assert prompts("revise", "probe") == expected(kind="red_team", split="train")
    assert prompts("label", "probe_benign") == expected(kind="benign", split="train")
    assert prompts("label", "probe_test") == expected(split="test")
    assert len(expected(split="test")) == len(expected(split="train")) == 12
    # the stages before the principles hold nothing out against them
    sft = stage_context(stages["sft"], config, context.root, context.scratch, {}, context.progress)
    assert sft.held_out.keys() == {"overrefusal", "seed_heldout"} & sft.held_out.keys()
