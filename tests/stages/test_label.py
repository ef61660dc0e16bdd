"""The label stage on the tiny model.

Which pairs there are, what stands on them, and what is said of the judge."""

import asyncio
import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from cai.config.compose import compose
from cai.config.schema import (
    DataConfig,
    Harmless,
    Human,
    LabelConfig,
    ModelConfig,
    Prompts,
    Sampling,
)
from cai.data.parquet import read_rows, write_rows
from cai.data.prompts import load_prompts
from cai.engines.base import Completion, Request
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_rows
from cai.errors import CaiError, UsageError
from cai.messages import Message, as_dicts, from_dicts
from cai.method import preferences
from cai.method.judgement import option_probability
from cai.method.preferences import PreferencePair
from cai.scoring.judge import accuracy_metrics
from cai.stages import label, pairs
from cai.stages.base import Context, Input
from cai.text import words
from tests.configs import smoke

COUNT = 10
ASKED = "Tell me about river 7."
SETS = {"mine": "Tell me about river {}.", "labelled": "Is {} a good number?"}


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path, make_context: Callable[..., Context]) -> Context:
    rows = [SETS["mine"].format(n) for n in range(COUNT)]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    known = [
        {"prompt": SETS["labelled"].format(n), "chosen": "Yes, it is.", "rejected": "No."}
        for n in range(6)
    ]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, known)))
    rules = [
        {
            "id": f"p{n}",
            "critique": "Criticise.",
            "revision": "Revise.",
            "comparison": f"Compare {n}.",
        }
        for n in range(4)
    ]
    rules[3] |= {"positive": "Be kind.", "negative": "Be rude."}
    (tmp_path / "law.yaml").write_text(yaml.safe_dump({"principles": rules}))
    for name in ("sft", "sl_cai", "revise"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tiny_model)
    return make_context(
        "label",
        data={name: DataConfig("file", str(tmp_path / f"{name}.jsonl")) for name in SETS},
        constitution=str(tmp_path / "law.yaml"),
        inputs={name: Input(str(tmp_path / name), name) for name in ("sft", "sl_cai", "revise")},
    )


def settings(**changes: Any) -> LabelConfig:
    base = smoke().label
    return dataclasses.replace(base, **({"prompts": Prompts(["mine"])} | changes))


def run(context: Context, config: LabelConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work = context.root / f"work{len(list(context.root.glob('work*')))}"
    work.mkdir()
    summary = label.run(config, work, context)
    judge = {}
    if summary.judge:
        reliability = {"labelled": summary.judge.labelled, "warnings": summary.judge.warnings}
        judge = {"judge": summary.judge.metrics | reliability}
    numbers = summary.numbers | {"pairs": summary.pairs} | judge
    return numbers, read_rows(work / "pairs.parquet")


def asked(context: Context) -> dict[str, int]:
    """Model digest -> completions so far."""
    ledger = Ledger(context.root / "ledger.sqlite")
    found = {str(row["model"]): int(str(row["completions"])) for row in ledger.cost()}
    ledger.close()
    return found


def revised(context: Context, count: int = 5) -> None:
    """revisions.parquet with a good last revision, a gated one after a good one, no good one, no
    change, and no answer."""
    prompts = load_prompts(Prompts(["mine"], count), context.data, 0)
    chains = [
        ("First.", [("Second.", []), ("Third, and last.", [])]),
        ("First.", [("Second.", []), ("Third, and last.", ["echo"])]),
        ("First.", [("Second.", ["echo"]), ("Third.", ["echo"])]),
        ("First.", [("FIRST", [])]),
        ("", [("Second.", [])]),
    ]
    rows = []
    for number, prompt in enumerate(prompts):
        answer, steps = chains[number % 5]
        shared = {"critique": "c", "seeds": [1, 2], "tokens": 3}
        steps = [
            shared | {"principle": f"p{n}", "revision": r, "gates": g}
            for n, (r, g) in enumerate(steps)
        ]
        row = {
            "id": prompt.id,
            "source": "mine",
            "about": "harm",
            "prompt": as_dicts(prompt.messages),
            "answer": answer,
        }
        rows.append(row | {"steps": steps, "final": ""})
    write_rows(context.root / "revise" / "revisions.parquet", rows)


def test_the_row_holds_what_the_feedback_was(context: Context):
    summary, rows = run(context, settings(principles=2))
    assert summary["prompts"] == COUNT == summary["identical"] + len(rows) and len(rows) > COUNT / 2
    for row in rows:
        assert row["kind"] == "feedback" and 0.5 <= row["probability"] <= 1
        assert (
            len(set(row["principles"])) == len(row["logprobs"]) == 2 and len(set(row["seeds"])) == 2
        )
        orders = [
            (option_probability(*one[0][0]), 1 - option_probability(*one[1][0]))
            for one in row["logprobs"]
        ]  # from the raw scores back to the label
        assert row["orders"] == pytest.approx(
            [sum(order) / 2 for order in zip(*orders, strict=True)]
        )
        certain = sum(row["orders"]) / 2
        assert row["probability"] == pytest.approx(max(certain, 1 - certain))
        letters = [[sum(math.exp(x) for x in order[0]) for order in one] for one in row["logprobs"]]
        assert row["letters"] == pytest.approx(
            [sum(order) / 2 for order in zip(*letters, strict=True)]
        )
    again, same = run(context, settings(principles=2))
    assert (again, same) == (summary, rows)
    figures = summary["judge"]
    assert {"flipped", "agreement", "entropy", "probability"} <= set(
        figures
    ) and "accuracy" not in figures
    assert figures["flipped"]["count"] == summary["judged"] == len(rows)


def test_revisions_need_no_judge_and_no_answers(context: Context):
    revised(context)
    only = dataclasses.replace(context, inputs={"revise": context.inputs["revise"]})
    summary, rows = run(only, settings(kind="revision"))
    expected = {"revised_prompts": 5, "unrevised": 3, "pairs": 2, "revisions": 2, "failed": 0}
    assert summary == expected
    assert asked(context) == {}
    found = [
        (row["chosen"][0]["content"], row["rejected"][0]["content"], row["principles"])
        for row in rows
    ]
    assert found == [("Third, and last.", "First.", ["p1"]), ("Second.", "First.", ["p0"])]
    assert [row["about"] for row in rows] == ["harm", "harm"]
    assert all(row["probability"] == 1 and row["orders"] == row["logprobs"] == [] for row in rows)


def test_both_kinds_at_a_ratio(context: Context):
    revised(context, COUNT)
    summary, rows = run(context, settings(kind="mixed", ratio=0.4, limit=5))
    kinds = [row["kind"] for row in rows]
    assert (kinds.count("feedback"), kinds.count("revision")) == (3, 2)
    assert (summary["pairs"], summary["revisions"]) == (5, 2)


def test_of_several_answers_each_is_compared_with_each(context: Context):
    summary, rows = run(context, settings(answers=4, max_similarity=1.0))
    per_prompt = summary["judged"] / (COUNT - summary["identical"])
    assert 1 < per_prompt <= 6
    assert len(rows) == COUNT - summary["identical"] and len({row["id"] for row in rows}) == len(
        rows
    )


def test_near_equal_and_uncertain_pairs_are_counted(context: Context):
    loose, _ = run(context, settings())
    with pytest.raises(CaiError, match=r"no preference pair is left.*label\.max_similarity"):
        run(context, settings(max_similarity=0.0))  # every answer is like the first
    strict, rows = run(context, settings(min_margin=0.01))
    assert loose["uncertain"] == 0 < strict["uncertain"] == loose["pairs"] - strict["pairs"]
    assert strict["judged"] == loose["judged"] and min(row["probability"] for row in rows) >= 0.51


def test_pairs_on_which_the_judge_wants_neither_letter_are_dropped_and_counted(context: Context):
    loose, rows = run(context, settings())
    assert loose["no_letter"] == 0 and loose["judge"]["letters"]["count"] == 2 * loose["judged"]
    middle = sorted(min(row["letters"]) for row in rows)[len(rows) // 2]
    strict, lettered = run(context, settings(min_letters=middle))
    assert lettered == [row for row in rows if min(row["letters"]) >= middle] != rows
    assert strict["no_letter"] == len(rows) - len(lettered) and strict["uncertain"] == 0
    assert strict["judge"] == loose["judge"]  # over every comparison
    neither = loose["judge"]["neither"]
    assert neither["value"] == sum(p < 0.1 for row in rows for p in row["letters"]) / 2 / len(rows)
    assert any("neither letter" in text for text in loose["judge"]["warnings"])


def test_chains_of_thought_stay_within_the_clamp(context: Context):
    thought = Sampling(max_new_tokens=4)
    summary, rows = run(context, settings(thoughts=2, thought=thought, thought_clamp=0.51))
    assert all(0.49 <= order <= 0.51 for row in rows for order in row["orders"])
    assert all(len(order) == 2 for row in rows for one in row["logprobs"] for order in one)
    judge = context.model_digest("sft")
    assert (
        asked(context)[judge] == summary["judged"] * 2 * 2 * 2
    )  # two orders, two thoughts, each with its answer


def test_another_model_can_be_the_judge(context: Context, tiny_model: Path):
    only = dataclasses.replace(context, inputs={"sl_cai": context.inputs["sl_cai"]})
    summary, _ = run(only, settings(model=ModelConfig("other", "path", str(tiny_model))))
    other = context.model_digest("base")
    assert asked(context) == {
        context.model_digest("sl_cai"): 2 * COUNT,
        other: 2 * summary["judged"],
    }


def test_a_later_rounds_answers_are_the_newest_models(context: Context):
    inputs = {
        name: context.inputs["sft" if name == "sft" else "sl_cai"] for name in ("sft", "dpo2")
    }
    summary, _ = run(dataclasses.replace(context, inputs=inputs, round=3), settings())
    policy, judge = context.model_digest("sl_cai"), context.model_digest("sft")
    assert asked(context) == {policy: 2 * COUNT, judge: 2 * summary["judged"]}


def test_the_judge_is_held_against_labelled_pairs(context: Context):
    """A random model's six verdicts can't exclude chance, and it is called that.

    The labelled pairs are not trained on."""
    plain, rows = run(context, settings())
    summary, same = run(context, settings(calibrate=Prompts(["labelled"])))
    assert same == rows and summary["judged"] == plain["judged"]
    figures = summary["judge"]
    assert figures["accuracy"]["count"] == 6 and figures["labelled"] == ["labelled"]
    assert sum(one["right"]["count"] for one in figures["bins"]) == 6
    about = [text for text in figures["warnings"] if "labelled pairs (labelled)" in text]
    assert len(about) == (figures["accuracy"]["low"] <= 0.5)


def test_labelled_pairs_do_not_move_with_the_runs_seed(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    """A judge is measured on the same pairs, which stay apart from those that are trained on."""
    measured: list[set[str]] = []

    def note(rated: list[tuple[PreferencePair, str]]) -> dict[str, Any]:
        measured.append({pair.prompt.text for pair, _ in rated})
        return accuracy_metrics(rated)

    monkeypatch.setattr("cai.stages.feedback.accuracy_metrics", note)
    config = settings(
        prompts=Prompts(["mine"], 4),
        calibrate=Prompts(["labelled"], limit=3),
        human=Human(["labelled"], limit=3, offset=3),
    )
    for seed in range(3):
        _, rows = run(dataclasses.replace(context, seed=seed), config)
        trained = {row["prompt"][0]["content"] for row in rows if row["kind"] == "human"}
        assert len(trained) == 3 and not trained & measured[seed]
    assert measured[0] == measured[1] == measured[2] and len(measured[0]) == 3


@pytest.mark.parametrize("kind", ["feedback", "revision", "mixed"])
def test_peoples_pairs_join_every_kind(kind: str, context: Context):
    revised(context, COUNT)
    plain, rows = run(context, settings(kind=kind))
    summary, joined = run(
        context, settings(kind=kind, human=Human(["labelled"], limit=4, probability=0.9))
    )
    human = [row for row in joined if row["kind"] == "human"]
    assert {row["prompt"][0]["content"] for row in human} < {
        SETS["labelled"].format(n) for n in range(6)
    }
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in human] == [
        ("Yes, it is.", "No.")
    ] * 4
    assert all(
        row["probability"] == 0.9 and row["principles"] == row["orders"] == row["seeds"] == []
        for row in human
    )
    others = [row for row in joined if row["kind"] != "human"]
    assert sorted(others, key=str) == sorted(rows, key=str)
    assert summary == plain | {"pairs": plain["pairs"] + 4, "human": 4} | {
        "human_overlapping": 0,
        "human_unfit": 0,
        "decided": 0,
    }
    assert (
        joined[-4:] != human != joined[:4]
    )  # they are spread over the rows, of which dpo holds out the first
    assert (
        run(context, settings(kind=kind, human=Human(["labelled"], limit=4, probability=0.9)))[1]
        == joined
    )
    other = dataclasses.replace(context, seed=1)
    if kind == "revision":
        assert [
            row["kind"] for row in run(other, settings(kind=kind, human=Human(["labelled"])))[1]
        ] != [
            row["kind"] for row in run(context, settings(kind=kind, human=Human(["labelled"])))[1]
        ]


def peoples(context: Context, rows: list[dict[str, Any]]) -> Context:
    """The context with a file of verdicts that prefers what each of the rows has rejected."""
    lines = []
    for row in rows:
        a, b = row["chosen"][0]["content"], row["rejected"][0]["content"]
        line = {"kind": "pair", "id": row["id"], "prompt": row["prompt"], "a": a, "b": b}
        lines.append(line | {"verdict": "b", "reviewer": "ann"})
    file = context.root / "people.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    people = DataConfig("file", str(file), format="verdicts")
    return dataclasses.replace(context, data=dict(context.data) | {"people": people})


def test_a_persons_choice_replaces_the_judges_on_the_same_answers(context: Context):
    _, rows = run(context, settings())
    decided = rows[:3]
    summary, joined = run(peoples(context, decided), settings(human=Human(["people"])))
    assert len(joined) == len(rows)
    assert (summary["human"], summary["decided"]) == (3, 3)
    turned = [row for row in joined if row["kind"] == "human"]
    assert {row["id"]: row["chosen"] for row in turned} == {
        row["id"]: row["rejected"] for row in decided
    }
    others = [row for row in joined if row["kind"] != "human"]
    assert sorted(others, key=str) == sorted(rows[3:], key=str)


def test_the_judge_is_held_against_people_by_principle(context: Context):
    """On its own pairs, which ask nothing anew: a judge that people contradict is doubted."""
    _, rows = run(context, settings())
    before = asked(context)
    summary, same = run(peoples(context, rows), settings(calibrate=Prompts(["people"])))
    assert same == rows and asked(context) == before
    judge = summary["judge"]
    assert (judge["accuracy"]["value"], judge["accuracy"]["count"]) == (0, len(rows))
    drawn = [row["principles"][0] for row in rows]
    assert {name: one["count"] for name, one in judge["principles"].items()} == {
        name: drawn.count(name) for name in sorted(set(drawn))
    }
    assert all(one["value"] == 0 for one in judge["principles"].values())
    assert "The judge is worse than chance" in judge["warnings"][0]


@pytest.mark.parametrize("kind", ["revision", "mixed"])
def test_pairs_of_revisions_heed_what_people_said_of_them(context: Context, kind: str):
    revised(context, COUNT)
    plain, rows = run(context, settings(kind=kind))
    first = next(row for row in rows if row["chosen"][0]["content"] == "Third, and last.")
    second = next(row for row in rows if row["chosen"][0]["content"] == "Second.")
    lines = [
        {"kind": "revision", "id": row["id"], "prompt": row["prompt"], "reviewer": "ann"}
        | {"revision": row["chosen"][0]["content"], "verdict": verdict, "edited": "By a person."}
        for row, verdict in ((first, "bad"), (second, "edit"))
    ]
    said = peoples(context, [])
    (context.root / "people.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    summary, found = run(dataclasses.replace(said, verdicts=["people"]), settings(kind=kind))
    chosen = {row["id"]: row["chosen"][0]["content"] for row in found if row["kind"] == "revision"}
    assert first["id"] not in chosen and chosen[second["id"]] == "By a person."
    assert (summary["called_bad"], summary["edited"]) == (1, 1)
    assert summary["unrevised"] == plain["unrevised"]


def test_peoples_pairs_with_an_evaluation_prompt_are_left_out(context: Context):
    revised(context)
    talk = [("user", "Well, is 3 a good number?"), ("assistant", "It is."), ("user", "Why?")]
    turns = [{"role": role, "content": text} for role, text in talk]
    (context.root / "talk.jsonl").write_text(
        json.dumps({"prompt": turns, "chosen": "So.", "rejected": "No."})
    )
    (context.root / "held.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"Is {n} a good number?"}) for n in (1, 2))
    )
    (context.root / "held2.jsonl").write_text(json.dumps({"prompt": "Well, is 3 a good number?"}))
    sets = {
        name: DataConfig("file", str(context.root / f"{name}.jsonl"))
        for name in ("talk", "held", "held2")
    }
    held_out = {name: sets[name] for name in ("held", "held2")}
    strict = dataclasses.replace(context, data={**context.data, **sets}, held_out=held_out)
    summary, rows = run(strict, settings(kind="revision", human=Human(["labelled", "talk"])))
    human = [row["prompt"] for row in rows if row["kind"] == "human"]
    assert (summary["human"], summary["human_overlapping"]) == (4, 3) and len(human) == 4
    assert all(len(turns) == 1 and turns[0]["content"][3] in "0345" for turns in human)


@pytest.mark.parametrize("kind", ["feedback", "revision"])
def test_demonstrations_are_preferred_to_the_policys_own_answers(
    kind: str, context: Context, monkeypatch: pytest.MonkeyPatch
):
    """A refusal is the rejected answer where there is one among those that were sampled."""
    revised(context, COUNT)
    turns = [[("user", f"Is {n} odd?"), ("assistant", f"Divide {n} by two.")] for n in range(6)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in turns]
    (context.root / "shown.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (context.root / "held.jsonl").write_text(json.dumps({"prompt": "Is 4 odd?"}))
    sets = {
        name: DataConfig("file", str(context.root / f"{name}.jsonl")) for name in ("shown", "held")
    }
    more = dataclasses.replace(
        context, data={**context.data, **sets}, held_out={"held": sets["held"]}
    )
    monkeypatch.setattr(pairs, "refuses", lambda text: hash_of(text) % 3 == 0)
    plain, before = run(more, settings(kind=kind, answers=3))
    summary, joined = run(more, settings(kind=kind, answers=3, demonstrations=Prompts(["shown"])))
    found = [row for row in joined if row["kind"] == "demonstration"]
    assert [row for row in joined if row not in found] != [] and len(joined) == len(before) + len(
        found
    )
    assert {row["prompt"][0]["content"] for row in found} == {
        f"Is {n} odd?" for n in (0, 1, 2, 3, 5)
    }
    assert all(
        row["chosen"][0]["content"] == f"Divide {row['prompt'][0]['content'][3]} by two."
        for row in found
    )
    refused = [row for row in found if hash_of(row["rejected"][0]["content"]) % 3 == 0]
    assert len(refused) >= 2  # of three answers each, most times one
    assert summary == plain | {
        **{
            "demonstrations": 5,
            "demonstrations_refused": len(refused),
            "demonstrations_overlapping": 1,
            "demonstrations_too_long": 0,
        },
        **{"pairs": plain["pairs"] + 5, "failed": 0},
    }
    assert all(
        row["probability"] == 1 and len(row["seeds"]) == 1 and row["orders"] == [] for row in found
    )


def test_a_rule_labels_the_policys_own_answers(context: Context, monkeypatch: pytest.MonkeyPatch):
    """The answers are sampled.

    A random model refuses nothing, so the rule is one that finds refusals in its words."""
    rows = [f"Is {n} odd?" for n in range(COUNT)]
    (context.root / "mild.jsonl").write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    (context.root / "held.jsonl").write_text(
        "\n".join(json.dumps({"prompt": row}) for row in (rows[4], ASKED))
    )
    sets = {
        name: DataConfig("file", str(context.root / f"{name}.jsonl")) for name in ("mild", "held")
    }
    only = {"sl_cai": context.inputs["sl_cai"]}
    more = dataclasses.replace(
        context, data={**context.data, **sets}, held_out={"held": sets["held"]}, inputs=only
    )
    more = dataclasses.replace(
        more, engine=dataclasses.replace(context.engine, batch_rows=64)
    )  # for speed
    monkeypatch.setattr(preferences, "refuses", declines)
    monkeypatch.setattr(preferences, "redirects", lambda text: False)
    sampling = Sampling(max_new_tokens=32, top_k=0, top_p=1.0)
    given = {"kind": "rule", "benign": Harmless(["mild"]), "answers": 4, "sampling": sampling}
    summary, rows = run(more, settings(**given))
    assert asked(context) == {context.model_digest("sl_cai"): 4 * 2 * (COUNT - 1)}  # and no judge
    kinds = {True: "harmless", False: "harmful"}
    for row in rows:
        benign, chosen, rejected = (
            odd(row),
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
        )
        assert declines(rejected) is benign is not declines(chosen)
        assert (row["kind"], row["probability"], row["principles"], row["orders"]) == (
            "rule",
            1,
            [],
            [],
        )
        assert len(set(row["seeds"])) == 2
    found = {kind: sum(kinds[odd(row)] == kind for row in rows) for kind in kinds.values()}
    assert min(found.values()) >= 2
    longer = sum(
        len(words(row["chosen"][0]["content"])) > len(words(row["rejected"][0]["content"]))
        for row in rows
    )
    assert summary == {
        **{
            "prompts": 2 * (COUNT - 1),
            "benign_prompts": COUNT - 1,
            "overlapping": 2,
            "failed": 0,
            "revisions": 0,
            "prompt_too_long": 0,
            "unread": 0,
        },
        **{
            "all_good": summary["all_good"],
            "none_good": 2 * (COUNT - 1) - len(rows) - summary["all_good"],
        },
        **{"pairs": len(rows), "chosen_longer": longer, "cut_off": summary["cut_off"]} | found,
    }
    assert 0 < summary["cut_off"] < 4 * 2 * (COUNT - 1) - len(rows)  # those chosen have ended
    order = [odd(row) for row in rows]
    assert order not in (
        sorted(order),
        sorted(order, reverse=True),
    )  # else dpo would hold out one kind alone
    assert run(more, settings(**given)) == (summary, rows)
    even, as_many = run(more, settings(**given, harmless_share=0.5))
    assert even["harmful"] == even["harmless"] == min(found.values())
    assert {row["id"] for row in as_many} <= {row["id"] for row in rows}
    fewer, first = run(more, settings(**given, limit=3))
    assert first == rows[:3] and (fewer["pairs"], fewer["harmful"] + fewer["harmless"]) == (3, 3)
    alone, harmful = run(more, settings(**given | {"benign": None}))
    assert (
        harmful == [row for row in rows if not odd(row)]
        and alone["benign_prompts"] == alone["harmless"] == 0
    )


def test_a_later_round_labels_the_newest_models_answers_by_rule(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preferences, "refuses", declines)
    later = dataclasses.replace(context, inputs={"dpo": context.inputs["sl_cai"]}, round=2)
    sampling = Sampling(max_new_tokens=32, top_k=0, top_p=1.0)
    summary, rows = run(later, settings(kind="rule", answers=4, sampling=sampling))
    assert (
        asked(context) == {context.model_digest("sl_cai"): 4 * COUNT}
        and summary["pairs"] == len(rows) > 0
    )
    with pytest.raises(
        CaiError, match=r"label\.benign: no prompt is left; see label\.benign\.limit and offset"
    ):
        run(later, settings(kind="rule", benign=Harmless(["mine"], offset=COUNT)))


def test_a_contrast_labels_by_a_principle_and_its_opposite(context: Context):
    """Harmless prompts have a constitution of their own. The scores can be computed again."""
    mild = "\n".join(json.dumps({"prompt": f"Is {n} odd?"}) for n in range(COUNT))
    (context.root / "mild.jsonl").write_text(mild)
    helpful = {"id": "helpful", "critique": "C.", "revision": "R.", "comparison": "Compare."}
    helpful |= {"positive": "Help.", "negative": "Do not help."}
    (context.root / "helpful.yaml").write_text(yaml.safe_dump({"principles": [helpful]}))
    sets = {**context.data, "mild": DataConfig("file", str(context.root / "mild.jsonl"))}
    more = dataclasses.replace(context, data=sets)
    benign = Harmless(["mild"], constitution=str(context.root / "helpful.yaml"))
    changes = {
        "kind": "contrast",
        "answers": 4,
        "benign": benign,
        "surest": 0.5,
        "sampling": Sampling(max_new_tokens=32, top_k=0, top_p=1.0),
    }
    summary, rows = run(more, settings(**changes, calibrate=Prompts(["labelled"])))
    assert summary["pairs"] == len(rows) >= 4
    assert summary["harmful"] == summary["harmless"] == len(rows) / 2
    assert summary["judge"]["accuracy"]["count"] == 6 and "flipped" not in summary["judge"]
    for row in rows:
        assert row["principles"] == (
            ["helpful"] if odd(row) else ["p3"]
        )  # the others have no texts
        assert row["kind"] == "contrast" and row["log_ratio"] > 0 and row["probability"] > 0.5
        assert len(set(row["seeds"])) == 2
    texts = ("Help.", "Do not help.")
    row = next(row for row in rows if odd(row))
    answers = (row["chosen"][0]["content"], row["rejected"][0]["content"])
    turns = from_dicts(row["prompt"])
    with context.models() as open_model:
        model = open_model("sft")
        requests = [
            Request((Message("system", text), *turns), continuations=answers) for text in texts
        ]
        positive, negative = asyncio.run(complete_all(model, requests))
    scores = [a - b for a, b in zip(positive.logprobs, negative.logprobs, strict=True)]
    assert row["log_ratio"] == pytest.approx(scores[0] - scores[1], abs=1e-3)
    assert run(more, settings(**changes, calibrate=Prompts(["labelled"])))[1] == rows
    # with this tau, the pair in the middle is 80 % sure
    tau = median(row["log_ratio"] for row in rows) / math.log(4)
    sure, sure_rows = run(more, settings(**changes, tau=tau, min_margin=0.3))
    assert all(row["probability"] >= 0.8 for row in sure_rows)
    assert 0 < len(sure_rows) < len(rows)
    assert sure["uncertain"] - summary["uncertain"] == len(rows) - len(sure_rows)
    everything, all_rows = run(more, settings(**changes | {"surest": 1.0}))
    assert len(all_rows) > len(rows) and everything["uncertain"] < summary["uncertain"]
    least = min(row["log_ratio"] for row in rows if odd(row))
    assert least == pytest.approx(
        sorted((row["log_ratio"] for row in all_rows if odd(row)), reverse=True)[len(rows) // 2 - 1]
    )


async def complete_all(model: Recorded, requests: list[Request]) -> list[Completion]:
    return await gather_rows([model.complete(request) for request in requests])


def test_a_contrast_needs_both_texts_of_some_principle(tmp_path: Path):
    law = {"id": "p", "critique": "C.", "revision": "R.", "comparison": "Compare."}
    (tmp_path / "law.yaml").write_text(yaml.safe_dump({"principles": [law]}))
    config = compose(
        ["experiment=smoke", "label.kind=contrast", f"constitution={tmp_path / 'law.yaml'}"]
    )
    assert label.STAGE.check is not None
    with pytest.raises(
        UsageError, match=r"constitution=.*law\.yaml: .* 'positive' and a 'negative'"
    ):
        label.STAGE.check(config)
    label.STAGE.check(dataclasses.replace(config, constitution="harmlessness"))
    with pytest.raises(UsageError, match=r"label\.benign\.constitution=honesty"):
        harmless = Harmless(["seed"], constitution="honesty")
        contrast = dataclasses.replace(config.label, benign=harmless)
        label.STAGE.check(dataclasses.replace(config, constitution="harmlessness", label=contrast))


def declines(text: str) -> bool:
    return hash_of(text) % 2 == 0


def odd(row: dict[str, Any]) -> bool:
    return row["prompt"][0]["content"].endswith("odd?")


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
