"""What the guards see in a log. That they end a training, with its best checkpoint: test_soft_dpo.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.composing import compose
from cai.config import Guards
from cai.training.guards import LENGTH, REPETITIVE, WINDOW, answer, signs, watch
from cai.training.model import load_model, load_tokenizer


def batches(*values: float) -> list[dict[str, Any]]:
    return [{"step": step, "rewards/chosen": value} for step, value in enumerate(values, 1)]


def evaluations(*margins: float) -> list[dict[str, Any]]:
    return [{"step": 10 * n, "eval_rewards/margins": margin} for n, margin in enumerate(margins, 1)]


def test_a_single_batch_is_noise_but_a_mean_below_the_floor_is_not():
    floor = Guards(chosen_floor=-1.0)
    assert signs(batches(*[0.0] * (WINDOW - 1), -9.0), floor) == []
    assert signs(batches(*[-9.0] * (WINDOW - 1)), floor) == []  # too few to tell
    (said,) = signs(batches(*[0.0] * WINDOW, *[-2.0] * WINDOW), floor)
    # the mean of the last ten passes -1 with the sixth -2
    assert said.startswith(f"At step {WINDOW + 6} the chosen answers' reward was -1.20, below -1.0:")
    assert signs(batches(*[-9.0] * 50), Guards(chosen_floor=None)) == []


def test_held_out_pairs_need_no_window():
    (said,) = signs([{"step": 4, "eval_rewards/chosen": -1.5}], Guards(chosen_floor=-1.0))
    assert said.startswith("At step 4 the chosen answers' reward was -1.50")


def test_a_margin_that_falls_twice_in_a_row_is_a_sign():
    assert signs(evaluations(0.1, 0.5, 0.4, 0.6, 0.5), Guards()) == []
    (said,) = signs(evaluations(0.1, 0.5, 0.4, 0.3, 0.2), Guards())
    assert said.startswith("At step 40 the reward margin of held-out pairs had fallen 2 times in a row")
    assert signs(evaluations(0.5, 0.4, 0.3), Guards(falling=None)) == []
    assert len(signs([*evaluations(0.5, 0.4), *batches(*[-9.0] * WINDOW)], Guards(falling=1))) == 2


def test_a_resumed_run_sees_the_same_signs():
    """The log comes back from the checkpoint's trainer_state.json; nothing is kept beside it."""
    log = [*evaluations(0.5, 0.4, 0.3), *batches(*[-9.0] * WINDOW)]
    assert signs(json.loads(json.dumps(log)), Guards()) == signs(log, Guards()) != []


def test_the_shipped_guards_only_warn():
    assert compose([]).dpo.guards == Guards(
        chosen_floor=-5.0, falling=2, prompts=4, new_tokens=48, longer=2.0, repetitive=0.5, stop=False
    )


def texts(*figures: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"step": 5 * n, LENGTH: length, REPETITIVE: share} for n, (length, share) in enumerate(figures)]


def test_answers_are_held_against_those_before_training():
    assert signs(texts((100, 0.75), (199, 0.75), (20, 0.0)), Guards()) == []  # repetitive before already
    (said,) = signs(texts((100, 0.0), (199, 0.5), (250, 0.5), (300, 0.0)), Guards())
    assert said.startswith("At step 10 answers to held-out prompts had 250 characters on average, and 100 before")
    (said,) = signs(texts((100, 0.25), (100, 0.5), (100, 0.75)), Guards())
    assert said.startswith("At step 10 75% of the answers to held-out prompts went round in circles, and 25% before")
    assert signs(texts((1, 0.0), (999, 1.0)), Guards(longer=None, repetitive=None)) == []
    assert len(signs(texts((0, 0.0), (999, 1.0)), Guards())) == 2  # silent before training


def test_a_batch_of_greedy_answers_is_each_ones_own(tiny_model: Path):
    model, tokenizer = load_model(str(tiny_model), "float32", "cpu"), load_tokenizer(str(tiny_model))
    prompts = [
        tuple(tokenizer(text)["input_ids"]) for text in ("Name a river.", "What is a good way to keep bread fresh?")
    ]
    model.train()
    together = answer(model, tokenizer, prompts, 20)
    assert model.training and together == answer(model, tokenizer, prompts, 20)
    assert together == [text for prompt in prompts for text in answer(model, tokenizer, [prompt], 20)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in together]
    assert together[0] != together[1] and 0 < max(lengths) <= 40


@pytest.mark.parametrize("stop", [False, True])
def test_growing_answers_are_said_and_end_training_where_asked(stop: bool):
    """The first answers come before the first step, the others with each evaluation; a resumed log has the first."""
    words = iter([["one"], ["one two"], ["one two three"]])
    said: list[str] = []
    callback = watch(Guards(longer=2.5, stop=stop), said.append, lambda model: next(words))
    state, control = SimpleNamespace(global_step=0, log_history=[]), SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(None, state, control)
    for step in (5, 10):
        assert said == []
        state.global_step = step
        callback.on_train_begin(None, state, control)  # resumed
        callback.on_evaluate(None, state, control)
    assert [entry["step"] for entry in state.log_history] == [0, 5, 10]
    assert len(said) == 1 and said[0].startswith("At step 10 answers to held-out prompts had 13 characters")
    assert control.should_training_stop == stop
