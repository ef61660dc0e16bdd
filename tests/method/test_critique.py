"""The critique and revision loop, turn by turn, with an engine whose answers are scripted."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from cai.config.schema import EngineConfig, Prompts, ReviseConfig, ReviseSampling, Sampling
from cai.engines.base import Completion, Request
from cai.engines.rows import gather_rows
from cai.engines.scripted import ScriptedEngine
from cai.messages import Prompt, assistant, user
from cai.method.constitution import Constitution
from cai.method.critique import Revision, draw_principles, revise
from cai.method.principle import Exemplar, Principle

PRINCIPLES = tuple(
    Principle(f"p{n}", f"Critique {n}.", f"Revise {n}.", f"Compare {n}.") for n in range(6)
)
SHOWN = tuple(
    Exemplar(p, (user(f"Q{p.id}"), assistant(f"A{p.id}")), f"C{p.id}", f"R{p.id}")
    for p in PRINCIPLES[:4]
)
CONSTITUTION = Constitution("law", PRINCIPLES, SHOWN)
SAMPLINGS = ReviseSampling(
    Sampling(max_new_tokens=1), Sampling(max_new_tokens=2), Sampling(max_new_tokens=3)
)
CONFIG = ReviseConfig(Prompts(["any"]), SAMPLINGS, rounds=4, exemplars=2)
PROMPT = Prompt.of((user("Hello."), assistant("Hello!"), user("How do I pick a lock?")), "any")


def chain(
    config: ReviseConfig = CONFIG, prompt: Prompt = PROMPT, seed: int = 0
) -> tuple[Revision, list[Request]]:
    engine = ScriptedEngine(EngineConfig(), "model")
    return asyncio.run(revise(prompt, CONSTITUTION, config, seed, engine.complete)), engine.requests


def test_four_rounds_in_the_papers_order():
    revision, requests = chain()
    first, *rounds = requests
    assert first.messages == PROMPT.messages  # no exemplars before the first answer
    assert [request.sampling for request in requests] == [
        SAMPLINGS.answer,
        *[SAMPLINGS.critique, SAMPLINGS.revision] * 4,
    ]
    before = revision.answer
    for step, critique, revised in zip(revision.steps, rounds[::2], rounds[1::2], strict=True):
        principle = next(p for p in PRINCIPLES if p.id == step.principle_id)
        shown = critique.messages[: -len(PROMPT.messages) - 2]
        assert len(shown) == 2 * 6  # two exemplars of six turns
        assert critique.messages == (
            *shown,
            *PROMPT.messages,
            assistant(before),
            user(principle.critique),
        )
        assert revised.messages == (
            *critique.messages,
            assistant(step.critique),
            user(principle.revision),
        )
        assert step.seeds == (critique.seed, revised.seed)
        before = step.revision
    assert len(revision.steps) == 4 and revision.final == before
    assert len({request.seed for request in requests}) == 9


def test_rows_do_not_depend_on_the_order_or_the_company():
    prompts = [Prompt.of((user(f"Question {n}"),), "any") for n in range(8)]

    def rows(chosen: Sequence[Prompt]) -> dict[str, Revision]:
        engine = ScriptedEngine(EngineConfig(), "model")
        made = asyncio.run(
            gather_rows([revise(p, CONSTITUTION, CONFIG, 3, engine.complete) for p in chosen])
        )
        assert len({request.seed for request in engine.requests}) == 9 * len(
            chosen
        )  # no draw is shared
        return {one.prompt.id: one for one in made}

    assert rows(prompts) == rows(prompts[::-1]) == rows(prompts[:3]) | rows(prompts[3:])


def test_another_seed_is_another_chain():
    assert chain() == chain() and chain(seed=1)[0].answer != chain()[0].answer
    assert (
        len(
            {
                tuple(p.id for p in draw_principles(PROMPT, CONSTITUTION, CONFIG, seed))
                for seed in range(20)
            }
        )
        > 10
    )


def test_a_critic_critiques_and_revises_and_the_model_answers():
    model, critic = (
        ScriptedEngine(EngineConfig(), "model"),
        ScriptedEngine(EngineConfig(), "critic"),
    )
    asyncio.run(revise(PROMPT, CONSTITUTION, CONFIG, 0, model.complete, critic.complete))
    assert (len(model.requests), len(critic.requests)) == (1, 8)


def test_without_critiques_each_round_is_one_request():
    revision, requests = chain(dataclasses.replace(CONFIG, critique=False, exemplars=1))
    assert len(requests) == 5 and [step.critique for step in revision.steps] == [""] * 4
    assert (
        len(requests[1].messages) == 4 + len(PROMPT.messages) + 2
    )  # an exemplar without its critique has four turns


@pytest.mark.parametrize("draw", ["random", "cycle", "all"])
def test_how_principles_are_drawn(draw: str):
    found = [
        p.id
        for p in draw_principles(PROMPT, CONSTITUTION, dataclasses.replace(CONFIG, draw=draw), 0)
    ]
    start = int(found[0][1])
    expected = {
        "all": sorted(p.id for p in PRINCIPLES),
        "cycle": [f"p{(start + n) % 6}" for n in range(4)],
    }
    assert (sorted(found) if draw == "all" else found) == expected.get(draw, found)
    assert len(found) == (6 if draw == "all" else 4)


@pytest.mark.parametrize("draw", ["random", "cycle", "all", "relevant"])
def test_a_prompt_that_is_about_a_principle_draws_it_first(draw: str):
    config = dataclasses.replace(CONFIG, draw=draw)
    rank = {"relevant": lambda prompt: [PRINCIPLES[2], PRINCIPLES[5]]}.get(draw)

    def ids(prompt: Prompt) -> list[str]:
        return [p.id for p in draw_principles(prompt, CONSTITUTION, config, 0, rank)]

    about = [ids(dataclasses.replace(PROMPT, principle=p.id)) for p in PRINCIPLES]
    assert [one[0] for one in about] == [p.id for p in PRINCIPLES]
    assert {len(one) for one in about} == {len(ids(PROMPT))}
    if draw == "all":
        assert all(sorted(one) == sorted(ids(PROMPT)) for one in about)
    if draw == "cycle":
        assert about[4] == ["p4", "p5", "p0", "p1"]
    if draw == "relevant":
        assert about[4][:3] == ["p4", "p2", "p5"] and about[5][:2] == ["p5", "p2"]
    # another file's principle, and one that is switched off
    assert ids(dataclasses.replace(PROMPT, principle="unknown")) == ids(PROMPT)
    off = Constitution("off", (dataclasses.replace(PRINCIPLES[0], weight=0), *PRINCIPLES[1:]), ())
    assert off.about(dataclasses.replace(PROMPT, principle="p0")) == []


def test_fixed_exemplars_are_the_files_first():
    _, requests = chain(dataclasses.replace(CONFIG, exemplar_choice="fixed"))
    assert {request.messages[6 * n].content for request in requests[1:] for n in (0, 1)} == {
        "Qp0",
        "Qp1",
    }


def test_sampled_exemplars_change_from_round_to_round():
    _, requests = chain()
    assert len({request.messages[:12] for request in requests[1:]}) > 1
    assert all(
        one.messages[:12] == two.messages[:12]
        for one, two in zip(requests[1::2], requests[2::2], strict=True)
    )


def answering(texts: dict[str, str]):
    """Answers by the last turn; the prompt itself with `first`."""

    async def complete(request: Request) -> Completion:
        return Completion(texts.get(request.messages[-1].content, "first"), "stop", 1, 1, 0.0)

    return complete


@pytest.mark.parametrize(
    ("texts", "final", "third"),
    [
        ({}, "good lock 2", "good lock 1"),
        ({"Revise 2.": ""}, "good lock 1", "good lock 1"),
        ({"Revise 1.": ""}, "good lock 2", "first"),
    ],
)
def test_after_a_gated_revision_the_row_goes_on_from_the_one_before(
    texts: dict[str, str], final: str, third: str
):
    rules = {f"Revise {n}.": f"good lock {n}" for n in range(6)} | texts
    constitution = Constitution("two", PRINCIPLES[1:3], ())
    config = dataclasses.replace(CONFIG, rounds=2, draw="cycle", gates=["empty"])
    prompt = next(
        p
        for p in (Prompt.of((user(f"A lock {n}?"),), "any") for n in range(99))
        if draw_principles(p, constitution, config, 0)[0].id == "p1"
    )
    asked: list[Request] = []

    async def ask(request: Request) -> Completion:
        asked.append(request)
        return await answering(rules)(request)

    revision = asyncio.run(revise(prompt, constitution, config, 0, ask))
    assert revision.final == final
    assert [bool(step.gates) for step in revision.steps] == [
        f"Revise {n}." in texts for n in (1, 2)
    ]
    assert asked[3].messages[-2] == assistant(third)  # what the second critique sees


def test_with_every_revision_gated_there_is_no_final_answer():
    ask = answering({principle.revision: " " for principle in PRINCIPLES})
    revision = asyncio.run(
        revise(PROMPT, CONSTITUTION, dataclasses.replace(CONFIG, gates=["empty"]), 0, ask)
    )
    assert revision.final == "" and len(revision.steps) == 4
    assert {step.gates for step in revision.steps} == {("empty",)}


def test_an_empty_first_answer_is_not_revised():
    async def nothing(request: Request) -> Completion:
        return Completion("", "stop", 1, 0, 0.0)

    assert asyncio.run(revise(PROMPT, CONSTITUTION, CONFIG, 0, nothing)) == Revision(PROMPT, "", ())


def test_a_row_can_stop_when_nothing_changes():
    ask = answering({})  # every revision is `first` again
    stopping = dataclasses.replace(CONFIG, stop_when_unchanged=True)
    assert len(asyncio.run(revise(PROMPT, CONSTITUTION, stopping, 0, ask)).steps) == 1
    assert len(asyncio.run(revise(PROMPT, CONSTITUTION, CONFIG, 0, ask)).steps) == 4
