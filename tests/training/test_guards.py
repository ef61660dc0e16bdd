"""What the guards see in a log. That they end training is tested in test_soft_dpo.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.schema import Guards
from cai.models.load import load_model, load_tokenizer
from cai.training.guards import (
    LENGTH,
    REPETITIVE,
    WINDOW,
    GuardCallback,
    find_blind_spots,
    find_warnings,
    generate_answers,
)


def batches(*values: float) -> list[dict[str, Any]]:
    return [{"step": step, "rewards/chosen": value} for step, value in enumerate(values, 1)]


def evaluations(*margins: float) -> list[dict[str, Any]]:
    return [{"step": 10 * n, "eval_rewards/margins": margin} for n, margin in enumerate(margins, 1)]


def test_a_single_batch_is_noise_but_a_mean_below_the_floor_is_not():
    floor = Guards(chosen_floor=-1.0)
    assert find_warnings(batches(*[0.0] * (WINDOW - 1), -9.0), floor) == []
    assert find_warnings(batches(*[-9.0] * (WINDOW - 1)), floor) == []  # too few to tell
    (said,) = find_warnings(batches(*[0.0] * WINDOW, *[-2.0] * WINDOW), floor)
    # the mean of the last ten passes -1 with the sixth -2
    assert said.startswith(
        f"At step {WINDOW + 6} the chosen answers' reward was -1.20, below -1.0:"
    )
    assert find_warnings(batches(*[-9.0] * 50), Guards(chosen_floor=None)) == []


def test_held_out_pairs_need_no_window():
    (said,) = find_warnings([{"step": 4, "eval_rewards/chosen": -1.5}], Guards(chosen_floor=-1.0))
    assert said.startswith("At step 4 the chosen answers' reward was -1.50")


def test_a_margin_that_falls_twice_in_a_row_is_a_sign():
    assert find_warnings(evaluations(0.1, 0.5, 0.4, 0.6, 0.5), Guards()) == []
    (said,) = find_warnings(evaluations(0.1, 0.5, 0.4, 0.3, 0.2), Guards())
    assert said.startswith(
        "At step 40 the reward margin of held-out pairs had fallen 2 times in a row"
    )
    assert find_warnings(evaluations(0.5, 0.4, 0.3), Guards(falling=None)) == []
    assert (
        len(find_warnings([*evaluations(0.5, 0.4), *batches(*[-9.0] * WINDOW)], Guards(falling=1)))
        == 2
    )


def test_a_resumed_run_sees_the_same_signs():
    """The log comes back from the checkpoint's trainer_state.json; nothing is kept beside it."""
    log = [*evaluations(0.5, 0.4, 0.3), *batches(*[-9.0] * WINDOW)]
    assert (
        find_warnings(json.loads(json.dumps(log)), Guards()) == find_warnings(log, Guards()) != []
    )


def test_the_shipped_guards_only_warn():
    assert compose([]).dpo.guards == Guards(
        chosen_floor=-5.0,
        falling=2,
        prompts=4,
        new_tokens=128,
        longer=2.0,
        shorter=0.5,
        repetitive=0.5,
        stop=False,
    )


def texts(*figures: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"step": 5 * n, LENGTH: length, REPETITIVE: share}
        for n, (length, share) in enumerate(figures)
    ]


def test_answers_are_held_against_those_before_training():
    assert (
        find_warnings(texts((100, 0.75), (199, 0.75), (50, 0.0)), Guards()) == []
    )  # repetitive before already
    (said,) = find_warnings(texts((100, 0.0), (199, 0.5), (250, 0.5), (300, 0.0)), Guards())
    assert said.startswith(
        "At step 10 answers to held-out prompts had 250 tokens on average, and 100 before"
    )
    assert "the judge prefers longer answers" in said
    (said,) = find_warnings(texts((100, 0.0), (50, 0.0), (49, 0.0), (1, 0.0)), Guards())
    assert said.startswith(
        "At step 10 answers to held-out prompts had 49 tokens on average, and 100 before"
    )
    assert "the judge prefers shorter answers" in said
    (said,) = find_warnings(texts((100, 0.25), (100, 0.5), (100, 0.75)), Guards())
    assert said.startswith(
        "At step 10 75% of the answers to held-out prompts went round in circles, and 25% before"
    )
    assert (
        find_warnings(
            texts((5, 0.0), (999, 1.0), (0, 0.0)),
            Guards(longer=None, shorter=None, repetitive=None),
        )
        == []
    )
    assert len(find_warnings(texts((0, 0.0), (999, 1.0)), Guards())) == 2  # silent before training


OFF = Guards(longer=None, shorter=None, repetitive=None)


@pytest.mark.parametrize(
    ("log", "guards", "sharded", "said"),
    [
        (texts((63, 0.0), (128, 0.0)), Guards(), False, None),
        (
            texts((64, 0.0)),
            Guards(),
            False,
            "they had 64 tokens of at most 128, which leaves no room for 2 times as many",
        ),
        (texts((128, 0.0)), Guards(longer=None), False, None),  # shrinking and repetition show
        ([], Guards(), True, "since the shards of a model do not generate."),
        ([], Guards(), False, "since no pair is held out (dpo.validation)."),
        ([], Guards(prompts=0), True, None),
        ([], OFF, True, None),
    ],
)
def test_what_the_guards_can_not_see_is_said(
    log: list[Any], guards: Guards, sharded: bool, said: str | None
):
    found = find_blind_spots(log, guards, sharded)
    assert len(found) == 1 and said in found[0] if said else found == []
    heard: list[str] = []
    state = SimpleNamespace(global_step=5, log_history=log)
    GuardCallback(guards, heard.append, sharded=sharded).on_train_begin(
        None, state, SimpleNamespace()
    )
    assert heard == found  # before the first step, and it ends no training


def test_a_batch_of_greedy_answers_is_each_ones_own(tiny_model: Path):
    model, tokenizer = (
        load_model(str(tiny_model), "float32", "cpu"),
        load_tokenizer(str(tiny_model)),
    )
    prompts = [
        tuple(tokenizer(text)["input_ids"])
        for text in ("Name a river.", "What is a good way to keep bread fresh?")
    ]
    model.train()
    together = generate_answers(model, tokenizer, prompts, 20)
    assert model.training and together == generate_answers(model, tokenizer, prompts, 20)
    assert together == [
        text for prompt in prompts for text in generate_answers(model, tokenizer, [prompt], 20)
    ]
    assert together[0] != together[1] and all(
        text and 0 < tokens <= 20 for text, tokens in together
    )
    model.generation_config.eos_token_id = found_at(
        model, prompts[0], 2
    )  # so that one ends early, and is padded
    early, other = generate_answers(model, tokenizer, prompts, 20)
    assert early[1] <= 3 < other[1]


def found_at(model: Any, prompt: tuple[int, ...], place: int) -> int:
    """The token that the model's greedy answer has there."""
    import torch

    ids = torch.tensor([prompt])
    return model.generate(ids, max_new_tokens=place + 1, do_sample=False)[
        0, len(prompt) + place
    ].item()


@pytest.mark.parametrize("stop", [False, True])
def test_growing_answers_are_said_and_end_training_where_asked(stop: bool):
    """The first answers come before the first step, the others with each evaluation.

    A resumed log has the first already.
    """
    words = iter([[("one", 3), ("a", 1)], [("one two", 5)], [("one two three", 13)]])
    said: list[str] = []
    callback = GuardCallback(Guards(longer=2.5, stop=stop), said.append, lambda model: next(words))
    state, control = (
        SimpleNamespace(global_step=0, log_history=[]),
        SimpleNamespace(should_training_stop=False),
    )
    callback.on_train_begin(None, state, control)
    for step in (5, 10):
        assert said == []
        state.global_step = step
        callback.on_train_begin(None, state, control)  # resumed
        callback.on_evaluate(None, state, control)
    assert [entry["step"] for entry in state.log_history] == [0, 5, 10]
    assert len(said) == 1 and said[0].startswith(
        "At step 10 answers to held-out prompts had 13 tokens"
    )
    assert control.should_training_stop == stop
