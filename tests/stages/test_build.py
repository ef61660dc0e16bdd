"""The build stage with a teacher that is told what to write.

Filters, rounds, order, resume, and the way to sft."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.schema import BuildConfig, DataConfig, Prompts
from cai.data.parquet import read_rows
from cai.engines.base import Completion, Request, RequestFailed
from cai.errors import CaiError
from cai.stages import build
from cai.stages.base import Context, Input
from cai.stages.training_rows import training_rows
from tests.configs import smoke

SEEDS = [f"Please tell me all about river number {n}." for n in range(12)]
HELD = "Which of these towns lies nearest to the sea?"
MINE = ["Is it going to rain?", "How do I mend a bicycle?", HELD]


def fresh(number: int) -> str:
    """An instruction that has next to nothing in common with another number's."""
    return " ".join(f"{word}{number}" for word in ("write", "some", "lines", "on", "topic"))


class Teacher:
    """Writes the list that `lists` gives for the n-th list request.

    Answers each instruction with `answer`."""

    def __init__(
        self,
        lists: Callable[[int, Request], str],
        answer: Callable[[str], Completion] | None = None,
    ):
        self.lists, self.answer = lists, answer
        self.asked: list[str] = []  # last turns
        self.wait: Callable[[int], float] = lambda n: 0.0
        self.most = 1 << 30  # completions before it breaks
        self.numbers: dict[str, int] = {}  # of list requests, by what they ask

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        text = request.messages[-1].content
        self.asked.append(text)
        place = len(self.asked)
        if place > self.most:
            raise KeyboardInterrupt
        listing = text.startswith("Here is a list")
        number = self.numbers.setdefault(text, len(self.numbers)) if listing else 0
        await asyncio.sleep(self.wait(place))
        if listing:
            return Completion(self.lists(number, request), "stop", 1, 1, 0.0)
        return (
            self.answer(text)
            if self.answer
            else Completion(f"An answer to: {text}", "stop", 1, 1, 0.0)
        )

    def close(self) -> None:
        pass


def listed(*texts: str) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 9))


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path, make_context: Callable[..., Context]) -> Context:
    sets = {"seed": SEEDS, "held": [HELD], "mine": MINE}
    for name, texts in sets.items():
        rows = [{"prompt": text, "completion": "Yes."} for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {name: DataConfig("file", str(tmp_path / f"{name}.jsonl")) for name in sets}
    config = smoke("model=path", f"model.path={tiny_model}")
    return make_context(
        "build",
        engine=replace(config.engine, max_failures=0.5),
        data=data,
        held_out={"held": data["held"]},
    )


def settings(**changes: Any) -> BuildConfig:
    return replace(BuildConfig(target=10, rounds=3, requests=4), **changes)


@pytest.fixture
def run(context: Context):
    """Runs the stage with a teacher.

    Gives the summary, the rows and what was left out (instruction -> reason)."""
    numbers = itertools.count()

    def runs(teacher: Teacher, config: BuildConfig, within: Context = context):
        teaching = replace(within, engine_opener=lambda config, model: teacher)
        work = within.root / f"work{next(numbers)}"
        work.mkdir()
        summary = asdict(build.run(config, work, teaching))
        left_out = (
            read_rows(work / "left_out.parquet") if (work / "left_out.parquet").exists() else []
        )
        return (
            summary,
            read_rows(work / "instructions.parquet"),
            {r["instruction"]: r["reason"] for r in left_out},
        )

    return runs


def of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def test_every_item_is_kept_or_left_out_with_its_reason(run: Any):
    near = SEEDS[0].replace("Please", "Kindly")  # 7 of 8 words
    lists = [
        listed(
            fresh(1),
            near,
            "Too short.",
            "Describe what this image shows us.",
            HELD,
            fresh(1) + " too",
        ),
        "I would rather not.",
        listed(fresh(2), "long " * 151, fresh(3)),
        listed(fresh(4), fresh(5), fresh(6)),
    ]
    summary, rows, left_out = run(Teacher(lambda n, _: lists[n]), settings(target=5, rounds=1))
    assert of(rows) == [fresh(n) for n in range(1, 6)]  # in the order of the requests
    assert left_out == {
        near: "similar",
        "Too short.": "short",
        "Describe what this image shows us.": "not_text",
        HELD: "overlapping",
        fresh(1) + " too": "similar",
        ("long " * 151).strip(): "long",
        fresh(6): "surplus",
    }
    reasons = {"long": 1, "not_text": 1, "overlapping": 1, "short": 1, "similar": 2, "surplus": 1}
    counts = {"lists": 4, "unread": 1, "parsed": 12, "distilled": 0}
    assert summary == counts | {"left_out": reasons, "built": 5, "failed": 0}
    assert rows[0] == {
        "id": rows[0]["id"],
        "source": "self_instruct",
        "messages": [
            {"role": "user", "content": fresh(1)},
            {"role": "assistant", "content": f"An answer to: {fresh(1)}"},
        ],
    }


def test_later_rounds_show_what_earlier_ones_built_and_end_at_the_target(run: Any):
    teacher = Teacher(lambda n, _: listed(fresh(2 * n), fresh(2 * n + 1)))
    summary, rows, _ = run(teacher, settings(target=12, rounds=9))
    asked = [text for text in teacher.asked if text.startswith("Here is a list")]
    assert (
        len(asked) == summary["lists"] == 8 and len(rows) == 12
    )  # 8 after a round, the rest in the next
    shown = [[line for line in text.splitlines() if line[:1].isdigit()] for text in asked]
    assert all(len(one) == 8 for one in shown)
    own = [sum("topic" in line for line in one) for one in shown]
    assert own == [0] * 4 + [2] * 4
    assert not any(HELD in text for text in asked)


def test_the_rounds_are_bounded(run: Any):
    teacher = Teacher(lambda n, _: listed(fresh(1)))
    summary, rows, _ = run(teacher, settings(rounds=3))
    assert summary["lists"] == 12 and len(rows) == 1 and summary["left_out"] == {"similar": 11}


def test_the_order_in_which_answers_come_decides_nothing(
    context: Context, run: Any, tmp_path_factory: Any
):
    results = []
    for wait in (lambda n: 0.0, lambda n: 0.02 / n, lambda n: 0.001 * (n * 7 % 5)):
        # each list depends on its request alone, and collides with others'
        teacher = Teacher(
            lambda _, request: listed(*(fresh((request.seed + k) % 14) for k in range(5)))
        )
        teacher.wait = wait
        within = replace(context, root=tmp_path_factory.mktemp("fresh"))  # a ledger of its own
        results.append(run(teacher, settings(), within))
    assert results[0] == results[1] == results[2]
    assert results[0][0]["left_out"].keys() == {"similar", "surplus"} and len(results[0][1]) == 10
    other = run(
        teacher, settings(), replace(context, seed=1, root=tmp_path_factory.mktemp("fresh"))
    )
    assert other[1] != results[0][1]


@pytest.mark.filterwarnings("ignore:coroutine")  # those that the kill left waiting
@pytest.mark.parametrize("most", [1, 3, 6, 9, 13])
def test_a_run_that_was_killed_asks_only_for_the_rest(
    most: int, context: Context, run: Any, tmp_path_factory: Any
):
    def teacher() -> Teacher:
        return Teacher(
            lambda _, request: listed(*(fresh((request.seed + k) % 40) for k in range(3)))
        )

    whole = teacher()
    expected = run(
        whole, settings(rounds=2), replace(context, root=tmp_path_factory.mktemp("whole"))
    )
    assert len(whole.asked) == 14
    first, second = teacher(), teacher()
    first.most = most
    first.wait = lambda n: 0.002 * n  # so that completions are committed one by one
    with pytest.raises(KeyboardInterrupt):
        run(first, settings(rounds=2))
    ledger = context.ledger()
    committed = sum(int(str(row["completions"])) for row in ledger.cost())
    ledger.close()
    assert (committed > 0) == (most > 4)  # the first round's four are asked at once
    assert run(second, settings(rounds=2)) == expected
    assert len(second.asked) == len(whole.asked) - committed and set(second.asked) <= set(
        whole.asked
    )
    again = teacher()
    assert (
        run(again, settings(rounds=2)) == expected and again.asked == []
    )  # every completion is in the ledger


def test_answers_that_are_no_use_are_left_out(run: Any):
    answers = {
        fresh(1): Completion("", "stop", 1, 1, 0.0),
        fresh(2): Completion("It is", "length", 1, 1, 0.0),
        fresh(3): Completion("and so on " * 30, "stop", 1, 1, 0.0),
        fresh(4): Completion("Fine.", "stop", 1, 1, 0.0),
    }
    teacher = Teacher(lambda n, _: listed(*answers), answers.__getitem__)
    summary, rows, left_out = run(teacher, settings(target=4, rounds=1, requests=1))
    assert of(rows) == [fresh(4)] and summary["built"] == 1
    assert left_out == {
        fresh(1): "answer_empty",
        fresh(2): "answer_cut_off",
        fresh(3): "answer_repetitive",
    }


def test_the_last_item_of_a_list_that_was_cut_off_is_left_out(run: Any):
    class Hasty(Teacher):
        async def complete(self, request: Request, on_text: object = None) -> Completion:
            found = await super().complete(request)
            return replace(found, finish_reason="length") if found.text.startswith("9.") else found

    _, rows, left_out = run(
        Hasty(lambda n, _: listed(fresh(n), "Write a long")), settings(rounds=1)
    )
    assert of(rows) == [fresh(n) for n in range(4)] and left_out == {"Write a long": "cut_off"}


def test_given_prompts_are_distilled_and_held_out_ones_are_not(run: Any):
    teacher = Teacher(lambda n, _: "")
    summary, rows, left_out = run(teacher, settings(target=0, prompts=Prompts(["mine"])))
    assert sorted(of(rows)) == sorted(MINE[:2]) and {row["source"] for row in rows} == {"mine"}
    assert (summary["lists"], summary["distilled"], left_out) == (0, 2, {HELD: "overlapping"})
    assert sorted(teacher.asked) == sorted(MINE[:2])


def test_what_no_engine_answers_is_in_failed(context: Context, run: Any):
    def answer(text: str) -> Completion:
        if text == fresh(1):
            raise RequestFailed("the server would not")
        return Completion("Fine.", "stop", 1, 1, 0.0)

    summary, rows, _ = run(Teacher(lambda n, _: listed(fresh(n)), answer), settings(rounds=1))
    assert of(rows) == [fresh(0), fresh(2), fresh(3)] and summary["failed"] == 1
    (failed,) = read_rows(context.root / "work0" / "failed.parquet")
    assert (
        failed["prompt"] == [{"role": "user", "content": fresh(1)}]
        and failed["reason"] == "the server would not"
    )


def test_nothing_built_is_an_error_that_says_what_there_was(run: Any):
    with pytest.raises(CaiError, match=r"not one row is left of 0 instructions in 12 lists"):
        run(Teacher(lambda n, _: "No."), settings())
    with pytest.raises(
        CaiError, match=r"build\.data: no seed instruction in held that no suite holds"
    ):
        run(Teacher(lambda n, _: "No."), settings(data=["held"]))


def test_sft_reads_the_rows_as_one_of_its_sets(context: Context, run: Any):
    _, rows, _ = run(Teacher(lambda n, _: listed(fresh(n))), settings(rounds=1))
    after = replace(
        context, stage="sft", inputs={"build": Input(str(context.root / "work0"), "digest")}
    )
    tuned = compose(["experiment=smoke", "sft.data=[seed,built]", "sft.limit=null"]).sft
    drawn, counts = training_rows(tuned, after)
    assert counts["sources"] == {"seed": len(SEEDS), "built": 4}
    assert {d[0].content for d, tags in drawn if tags["source"] == "built"} == set(of(rows))
    weighted = compose(
        [
            "experiment=smoke",
            "sft.data=[seed,built]",
            "sft.limit=8",
            "+sft.weights={built: 1, seed: 3}",
        ]
    )
    assert training_rows(weighted.sft, after)[1]["sources"] == {"seed": 6, "built": 2}
