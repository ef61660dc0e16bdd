"""What the guards see in a log. That they end a training, with its best checkpoint: test_soft_dpo.py."""

import json
from typing import Any

from cai.composing import compose
from cai.config import Guards
from cai.training.guards import WINDOW, signs


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
    assert compose([]).dpo.guards == Guards(chosen_floor=-5.0, falling=2, stop=False)
