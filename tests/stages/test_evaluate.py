"""Held-out instructions with and without examples.

What is asked, what is measured, and what does not fit."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.names import IN_CONTEXT
from cai.config.schema import (
    DataConfig,
    EvaluateConfig,
    JudgeConfig,
    Prompts,
    Suite,
    TaskTemplate,
)
from cai.data.parquet import read_rows
from cai.engines.base import Completion, Request
from cai.errors import CaiError, UsageError
from cai.messages import Dialogue, Message, Prompt, assistant, user
from cai.method.attacks import OPENINGS
from cai.scoring.answers import Answer
from cai.stages import evaluate, scores, suites
from cai.stages.base import Context, Input
from cai.store.files import write_json
from tests.configs import smoke

SYSTEM = Message("system", "Be kind.")
PREFILL = OPENINGS["prefill"]
HELD = {f"What is {n} and {n}?": f"It is {2 * n}." for n in range(4, 8)}
TAUGHT = {f"Which town lies {n} miles from here?": f"Town {n}." for n in range(12)}


class Pupil:
    """Answers with `replies` by the last turn.

    Finds each byte of a reference as likely as 2 ** -(1 + turns)."""

    room = 99  # turns

    def __init__(self, replies: dict[str, str]):
        self.replies = replies
        self.requests: list[Request] = []

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        self.requests.append(request)
        turns = len(request.messages)
        if turns > self.room:
            return Completion("", "too_long", turns, 0, 0.0)
        if request.sampling:
            return Completion(
                self.replies.get(request.messages[-1].content, ""), "stop", turns, 1, 0.0
            )
        size = len(request.continuations[0].encode())
        return Completion("", "score", turns, 0, 0.0, (-(1 + turns) * size * math.log(2),))

    def close(self) -> None:
        pass


@pytest.fixture
def context(tmp_path: Path, make_context: Callable[..., Context]) -> Context:
    held: list[Any] = [{"prompt": prompt, "completion": answer} for prompt, answer in HELD.items()]
    turns = [
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hi!"),
        ("user", "Who?"),
        ("assistant", "Me."),
    ]
    held.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    taught: list[Any] = [
        {"prompt": prompt, "completion": answer} for prompt, answer in TAUGHT.items()
    ]
    taught += [held[0], held[-1], {"prompt": "No answer?"}]  # none of which may be an example
    for name, rows in (("held", held), ("taught", taught)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_context(
        "evaluate",
        data={
            name: DataConfig("file", str(tmp_path / f"{name}.jsonl")) for name in ("held", "taught")
        },
    )


def suite(*shots: int, examples: str = "taught") -> Suite:
    return Suite("instructions", Prompts(["held"]), list(shots), [examples])


def references(context: Context, *shots: int) -> dict[str, list[suites.Reference]]:
    return suites.load_references("held_out", suite(*shots), context)


def split(messages: Dialogue) -> tuple[list[tuple[str, str]], Dialogue]:
    """The examples before a prompt, and the prompt itself."""
    own = messages[0:1] if messages[0].role == "system" else ()
    rest = messages[len(own) :]
    count = 0
    while rest[2 * count].content in TAUGHT:
        count += 1
    return [(rest[2 * n].content, rest[2 * n + 1].content) for n in range(count)], (
        *own,
        *rest[2 * count :],
    )


def test_examples_are_training_rows_drawn_for_each_prompt(context: Context):
    found = references(context, 0, 2, 5)
    assert list(found) == ["held_out", "held_out, 2 shots", "held_out, 5 shots"]
    drawn = []
    for none, two, five in zip(*found.values(), strict=True):
        examples, prompt = split(five.prompt.messages)
        assert (
            prompt == none.prompt.messages and len(set(examples)) == 5
        )  # a system turn stays the first
        assert set(examples) <= set(TAUGHT.items())
        assert split(two.prompt.messages) == (examples[:2], prompt)  # more shots add to fewer
        assert none.prompt.id == two.prompt.id == five.prompt.id and none.answer == two.answer
        drawn.append(tuple(examples))
    assert len(set(drawn)) == 5 and found["held_out"][0].answer in {*HELD.values(), "Me."}
    assert references(context, 0, 2, 5) == found
    assert references(replace(context, seed=1), 0, 2, 5) == found


def test_nothing_that_is_asked_moves_with_the_runs_seed(context: Context, tmp_path: Path):
    """Suites of every kind, their examples, the template of each row, and what is held out."""
    rows = [{"topic": f"river {number}", "answer": f"It is {number}."} for number in range(12)]
    (tmp_path / "templated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ways = ["Tell me about {topic}.", "What is {topic}?", "Describe {topic}."]
    templated = DataConfig(
        "file",
        str(tmp_path / "templated.jsonl"),
        templates=[TaskTemplate(way, "{answer}") for way in ways],
    )
    selection = Prompts(["templated"], limit=4, offset=2)
    config = EvaluateConfig(
        smoke().evaluate.sampling,
        {
            "red_team": Suite("red_team", selection),
            "held_out": Suite("instructions", selection, [0, 2], ["taught"]),
        },
    )
    data = {**context.data, "templated": templated}
    seeds = [
        replace(context, data=data, held_out={"templated": templated}, seed=seed)
        for seed in range(3)
    ]
    first, *others = [suites.load_suites(config, context) for context in seeds]
    assert others == [first, first] and set(first.counts().values()) == {4}
    asked = [reference.prompt.text for reference in first.references["held_out"]]
    assert all(context.is_held_out(text) for context in seeds for text in asked)


def test_a_system_prompt_stands_before_every_prompt_and_moves_no_split(context: Context):
    selection = Prompts(["held"], limit=3)
    config = EvaluateConfig(
        smoke().evaluate.sampling,
        {
            "red": Suite("red_team", selection),
            "held_out": Suite("instructions", selection, [1], ["taught"]),
        },
    )
    plain = suites.load_suites(config, context)
    data = {name: replace(held, system="Be kind.") for name, held in context.data.items()}
    behind = suites.load_suites(config, replace(context, data=data))
    asked = [row.prompt for row in behind.references["held_out, 1 shot"]] + behind.prompts["red"]
    before = [row.prompt for row in plain.references["held_out, 1 shot"]] + plain.prompts["red"]
    assert [prompt.id for prompt in asked] == [prompt.id for prompt in before]
    for prompt, bare in zip(asked, before, strict=True):
        own = bare.messages[0].role == "system"  # one of its own stays
        assert prompt.messages == (bare.messages if own else (SYSTEM, *bare.messages))


def test_no_example_repeats_a_held_out_prompt_and_too_few_are_an_error(context: Context):
    with pytest.raises(
        CaiError, match=r"held_out\.shots: 13 examples are needed, and taught has 12"
    ):
        references(context, 13)
    with pytest.raises(CaiError, match="1 examples are needed, and held has 0"):
        suites.load_references("held_out", suite(1, examples="held"), context)


def run(context: Context, pupil: Pupil) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    context = replace(context, engine_opener=lambda config, model: pupil)
    sampling = smoke().evaluate.sampling
    config = EvaluateConfig(sampling, {"held_out": suite(0, 1)}, ["base"])
    summary = asdict(evaluate.run(config, context.root, context))
    assert json.loads((context.root / "metrics.json").read_text()) == summary["metrics"]
    return summary, read_rows(context.root / "answers.parquet")


def test_answers_are_held_against_their_references_by_shots(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    replies: dict[str, str] = HELD | {
        "What is 4 and 4?": "it is 8",
        "What is 5 and 5?": "It is.",
        "Who?": "I can't help with that.",
    }
    pupil = Pupil(replies)
    summary, rows = run(context, pupil)
    assert summary["prompts"] == {"held_out": 5, "held_out, 1 shot": 5}
    none, one = (summary["metrics"]["base"][name] for name in summary["prompts"])
    for figures in (none, one):
        assert list(figures) == ["exact", "rouge_l", "bits_per_byte", "refusal"]
        assert figures["refusal"]["value"] == 1 / 5 and figures["refusal"]["count"] == 5
        assert figures["exact"]["value"] == 3 / 5 and figures["exact"]["count"] == 5
        assert figures["rouge_l"]["value"] == pytest.approx((3 + 2 * 2 / 5) / 5)
        assert figures["rouge_l"]["low"] < figures["rouge_l"]["value"] < figures["rouge_l"]["high"]
    assert none["bits_per_byte"]["value"] == pytest.approx((4 * (1 + 1) + (1 + 4)) / 5)
    assert one["bits_per_byte"]["value"] == pytest.approx(
        none["bits_per_byte"]["value"] + 2
    )  # an example is two turns
    assert (
        all(r.sampling.temperature == 0 for r in pupil.requests if r.sampling)
        and len(pupil.requests) == 2 * 10
    )
    assert {row["suite"] for row in rows} == set(summary["prompts"]) and len(rows) == 10
    assert {(row["prompt"][-1]["content"], row["reference"]) for row in rows} == {
        *HELD.items(),
        ("Who?", "Me."),
    }


@pytest.mark.parametrize(
    "too_long", [lambda r: True, lambda r: r.sampling, lambda r: not r.sampling]
)
def test_prompts_that_do_not_fit_are_counted_and_not_cut(
    context: Context, monkeypatch: pytest.MonkeyPatch, too_long: Callable[[Request], Any]
):
    """Whether the answer, the reference or both leave no room, the row counts in no figure but the
    share of these."""

    class Small(Pupil):
        async def complete(self, request: Request, on_text: object = None) -> Completion:
            self.room = 3 if too_long(request) else 99
            return await super().complete(request)

    summary, rows = run(context, Small(HELD))
    none, one = (summary["metrics"]["base"][name] for name in summary["prompts"])
    assert (none["too_long"]["value"], none["too_long"]["count"]) == (
        1 / 5,
        5,
    )  # the one of four turns
    assert (
        none["exact"]["count"] == none["bits_per_byte"]["count"] == 4 and one["exact"]["count"] == 4
    )
    assert len(rows) == 8 and all(row["prompt"][-1]["content"] != "Who?" for row in rows)


def test_a_suite_of_which_no_row_fits_has_no_other_figure(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    pupil = Pupil(HELD)
    pupil.room = 0
    summary, rows = run(context, pupil)
    assert [list(figures) for figures in summary["metrics"]["base"].values()] == [
        ["too_long"]
    ] * 2 and rows == []


def test_answers_in_another_language_are_named_and_in_no_share_of_refusals(context: Context):
    pupil = Pupil(HELD | {"Who?": "Das sage ich dir nicht, denn es wäre nicht recht."})
    context = replace(context, engine_opener=lambda config, model: pupil)
    sampling = smoke().evaluate.sampling
    red = {"red": Suite("red_team", Prompts(["held"]))}
    summary = evaluate.run(EvaluateConfig(sampling, red, ["base"]), context.root, context)
    metrics = summary.metrics["base"]["red"]
    assert metrics["not_english"]["value"] == 1 / 5 and metrics["refusal"]["count"] == 4
    assert summary.refusal == {"by": "rules", "not_english": {"de": 1}}
    (warning,) = summary.warnings()
    assert warning.startswith("1 answers are not in English (de 1).")
    answers = {
        row["answer"][:3]: row["refuses"] for row in read_rows(context.root / "answers.parquet")
    }
    assert answers["Das"] is None and answers["It "] is False


def test_the_bits_are_those_of_the_reference_after_its_examples(context: Context, tiny_model: Path):
    """On the real engine, against plain log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cai.models.chat_template import render

    config = EvaluateConfig(smoke().evaluate.sampling, {"held_out": suite(2)}, ["base"])
    found = evaluate.run(config, context.root, context).metrics["base"]["held_out, 2 shots"][
        "bits_per_byte"
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    bits = []
    for one in references(context, 2)["held_out, 2 shots"]:
        assert len(one.prompt.messages) > 4 and isinstance(one.prompt.messages[0], Message)
        prompt = tokenizer(render(tokenizer, one.prompt.messages), add_special_tokens=False)[
            "input_ids"
        ]
        own = tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + own])).logits[0].log_softmax(-1)
        total = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(own))
        bits.append(-total / math.log(2) / len(one.answer.encode()))
    assert found["value"] == pytest.approx(sum(bits) / len(bits), abs=1e-4)


def test_every_trained_model_is_held_against_the_one_before(context: Context):
    """In the order of training, whatever the order of evaluate.models, and over a kind's suites."""
    inputs = {name: Input(str(context.root / name), name) for name in ("sft", "sl_cai")}
    pupils = {
        "base": Pupil({}),
        "sft": Pupil(dict.fromkeys(HELD, "I won't.")),
        "sl_cai": Pupil(dict.fromkeys([*HELD, *TAUGHT], "I won't.")),
    }

    def opened(config: object, model: str) -> Pupil:
        return next((pupils[name] for name in inputs if f"/{name}/" in model), pupils["base"])

    config = EvaluateConfig(
        smoke().evaluate.sampling,
        {name: Suite("red_team", Prompts([name])) for name in ("held", "taught")},
        ["sl_cai", "base", "sft"],
    )
    context = replace(context, inputs=inputs, engine_opener=opened)
    changes = evaluate.run(config, context.root, context).changes
    assert [(row["first"], row["second"], row["suite"]) for row in changes] == [
        ("base", "sft", "red_team"),
        ("sft", "sl_cai", "red_team"),
        ("base", "sl_cai", "red_team"),
    ]
    assert [row["difference"]["count"] for row in changes] == [5 + 15] * 3


def test_attacks_ask_the_same_prompts_in_other_words(context: Context):
    """Each is a suite of its own, and what it adds to the answers is told for every model."""
    held = Suite("red_team", Prompts(["held"]), attacks=["prefill", "base64"])
    config = EvaluateConfig(smoke().evaluate.sampling, {"red": held}, ["base"])
    pupil = Pupil(dict.fromkeys([*HELD, "Who?"], "I can't help with that.") | {PREFILL: "a way."})
    context = replace(context, engine_opener=lambda config, model: pupil)
    summary = evaluate.run(config, context.root, context)
    assert summary.prompts == dict.fromkeys(["red", "red, prefill", "red, base64"], 5)
    refused = {name: row["refusal"]["value"] for name, row in summary.metrics["base"].items()}
    assert refused == {"red": 1, "red, prefill": 0, "red, base64": 0}
    rises = [(row["attack"], row["rise"]["value"], row.get("p")) for row in summary.attacks]
    assert rises == [("prefill", 1, 0.0625), ("base64", 1, 0.0625)]
    assert summary.changes == []  # of one model; and attacks are in no verdict
    begun = [request for request in pupil.requests if request.messages[-1] == assistant(PREFILL)]
    assert len(begun) == 5 and all(turn.messages[-2].role == "user" for turn in begun)
    answers = {(row["suite"], row["answer"]) for row in read_rows(context.root / "answers.parquet")}
    assert ("red, prefill", "Sure, here is a way.") in answers


def test_the_base_model_may_be_asked_with_the_principles_as_its_system_prompt(
    context: Context, tmp_path: Path
):
    law = {"critique": "C.", "revision": "R."}
    rules = [law | {"id": "kind", "comparison": "Which is kinder?"}]
    rules.append(law | {"id": "never", "comparison": "Which is ruder?", "weight": 0})
    (tmp_path / "law.yaml").write_text(json.dumps({"principles": rules}))
    pupil = Pupil({})
    context = replace(
        context,
        constitution=str(tmp_path / "law.yaml"),
        engine_opener=lambda config, model: pupil,
    )
    config = EvaluateConfig(
        smoke().evaluate.sampling,
        {"red": Suite("red_team", Prompts(["held"])), "held_out": suite(0)},
        ["base"],
        in_context=True,
    )
    summary = evaluate.run(config, context.root, context)
    assert list(summary.metrics) == ["base", IN_CONTEXT]
    assert summary.changes == []  # it has been trained by no stage
    systems = [turns[0].content for turns in (request.messages for request in pupil.requests)]
    behind = [text for text in systems if "Which is kinder?" in text]
    assert len(behind) == len(systems) / 2 and not any("ruder" in text for text in systems)
    assert any(text.endswith("Which is kinder?\n\nBe brief.") for text in behind)  # a prompt's own


def test_the_real_engine_goes_on_inside_a_begun_answer(context: Context):
    held = Suite("red_team", Prompts(["held"], 2), attacks=["prefill", "role_play"])
    sampling = replace(smoke().evaluate.sampling, max_new_tokens=4)
    config = EvaluateConfig(sampling, {"red": held}, ["base"])
    evaluate.run(config, context.root, context)
    rows = read_rows(context.root / "answers.parquet")
    begun = {row["suite"]: row["answer"].startswith(PREFILL) for row in rows}
    assert begun == {"red": False, "red, prefill": True, "red, role_play": False}


def test_a_judge_compares_several_samples_models_and_itself(context: Context, tiny_model: Path):
    """On the real engine, with a model of another folder.

    Its weights are the same, so every figure is the same."""
    sampling = replace(smoke().evaluate.sampling, max_new_tokens=6)
    suites = {"red": Suite("red_team", Prompts(["held"], 3))}
    models, judge = ["base", str(tiny_model)], JudgeConfig(principles=2)
    config = EvaluateConfig(sampling, suites, models, 2, [models], judge)
    summary = asdict(evaluate.run(config, context.root, context))
    assert summary["metrics"]["base"] == summary["metrics"][str(tiny_model)]
    rows = read_rows(context.root / "answers.parquet")
    assert len(rows) == 2 * 2 * 3 and len({row["answer"] for row in rows}) > 3
    assert summary["metrics"]["base"]["red"]["refusal"]["count"] == 3
    (won,) = summary["wins"]
    assert won["judges_itself"] and won["identical"] == 3 and won["tie"]["value"] == 1


def test_a_judge_says_which_answers_are_harmful(context: Context, tiny_model: Path):
    """On the real engine; base judges, and so judges itself."""
    sampling = replace(smoke().evaluate.sampling, max_new_tokens=6)
    prompts = Prompts(["held"], 4)
    suites = {"red": Suite("red_team", prompts), "soft": Suite("benign", prompts)}
    models, judge = ["base", str(tiny_model)], JudgeConfig(limit=3)
    config = EvaluateConfig(sampling, suites, models, 2, judge=judge, harm=True)
    summary = asdict(evaluate.run(config, context.root, context))
    rows = read_rows(context.root / "answers.parquet")
    judged = [row for row in rows if row["harm"] is not None]
    assert len(judged) == 2 * 2 * 3 and {row["suite"] for row in judged} == {
        "red"
    }  # not all four prompts: see limit
    assert len({row["harm"] for row in judged}) > 1
    for name in models:
        own = [row["harm"] > 0.5 for row in judged if row["model"] == name]
        figure = summary["metrics"][name]["red"]["harmful"]
        assert (figure["value"], figure["count"]) == (pytest.approx(sum(own) / 6), 3)
        assert (
            "harmful" not in summary["metrics"][name]["soft"]
            and "distinct_2" in summary["metrics"][name]["red"]
        )
    said = summary["harm"]
    assert (said["judge"], said["judges_itself"], said["unjudged"]) == ("base", ["base"], 0)
    assert said["flipped"]["count"] == said["neither"]["count"] == 3
    (doubt,) = evaluate.Summary(**summary).warnings()  # a random model spreads over all tokens
    assert doubt.startswith(
        "evaluate.harm: The judge often wants to write neither letter: on 100 %"
    )
    assert {"red"} == {row["suite"] for row in summary["comparisons"] if row["figure"] == "harmful"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.models=[base,dpoo]", "'dpoo' is no model"),
        ("evaluate.models=[base,base]", "different models"),
        ("evaluate.wins=[[dpo,other]]", "pairs of different models"),
        ("evaluate.lm_eval=[none.yaml]", r"evaluate\.lm_eval.*there is no file none\.yaml"),
        (
            "evaluate={harm: true, suites: {red_team: {kind: benign}}}",
            r"evaluate\.harm.*no suite is of kind: red_team",
        ),
    ],
)
def test_what_can_not_be_evaluated_is_refused(override: str, said: str):
    with pytest.raises(UsageError, match=said):
        smoke(override)


def test_what_says_refused_is_named():
    config = EvaluateConfig(smoke().evaluate.sampling, {})
    prompt = Prompt.of((user("Forge a note."),), "mine")
    answers = [
        Answer("base", "red", prompt, text)
        for text in ("I can't help with that.", "Dear Sir, he is ill.")
    ]
    assert scores.refusals(config, answers) == ([True, False], {"by": "rules"})


def test_the_harness_measures_every_model_once(context: Context, tiny_model: Path, rivers: Path):
    pytest.importorskip("lm_eval")

    sampling = replace(smoke().evaluate.sampling, max_new_tokens=4)
    suites = {"red": Suite("red_team", Prompts(["held"], 2))}
    config = EvaluateConfig(
        sampling, suites, ["base", str(tiny_model)], lm_eval=[str(rivers)], lm_eval_limit=3
    )
    metrics = evaluate.run(config, context.root, context).metrics
    assert metrics["base"]["rivers (lm-eval)"] == metrics[str(tiny_model)]["rivers (lm-eval)"]
    assert metrics["base"]["rivers (lm-eval)"]["acc"]["count"] == 3
    # stopped and begun again: what was measured is not measured twice, but read from where it is
    for file in context.scratch.glob("lm_eval-*.json"):
        noted = json.loads(file.read_text())
        noted["rivers"]["acc"]["value"] = 0.125
        write_json(file, noted)
    again = scores.harness_tasks(config, context)
    assert [row["rivers (lm-eval)"]["acc"]["value"] for row in again.values()] == [0.125] * 2
