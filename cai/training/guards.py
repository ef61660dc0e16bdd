"""Signs that preference training goes wrong, read from the log: nothing is generated for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cai.config import Guards

WINDOW = 10  # logged steps over which the noise of single batches is averaged


def signs(log: Sequence[Mapping[str, Any]], guards: Guards) -> list[str]:
    """What is wrong, in sentences, each with the first step at which it shows; `log` is trl's log_history.

    chosen_floor: DPO widens the margin even while both answers become unlikely (Pal et al. 2024); the mean reward of
    the chosen answers, over held-out pairs or the last steps' batches, tells. falling: the held-out margin shrinks.
    """
    said = []
    if guards.chosen_floor is not None:
        batches = [(entry["step"], entry["rewards/chosen"]) for entry in log if "rewards/chosen" in entry]
        means = [
            (batches[end - 1][0], math.fsum(value for _, value in batches[end - WINDOW : end]) / WINDOW)
            for end in range(WINDOW, len(batches) + 1)
        ]
        held = [(entry["step"], entry["eval_rewards/chosen"]) for entry in log if "eval_rewards/chosen" in entry]
        low = sorted((step, value) for step, value in [*means, *held] if value < guards.chosen_floor)
        if low:
            said.append(
                f"At step {low[0][0]} the chosen answers' reward was {low[0][1]:.2f}, below {guards.chosen_floor}: the "
                "model unlearns good answers together with bad ones; lower the learning rate, or raise beta."
            )
    margins = [(entry["step"], entry["eval_rewards/margins"]) for entry in log if "eval_rewards/margins" in entry]
    run = 0
    for (_, before), (step, after) in pairwise(margins if guards.falling is not None else ()):
        run = run + 1 if after < before else 0
        if run == guards.falling:
            said.append(
                f"At step {step} the reward margin of held-out pairs had fallen {run} times in a row: "
                "what is learned no longer carries over; train for fewer steps, or on more pairs."
            )
            break
    return said


def watch(guards: Guards, say: Callable[[str], None]) -> Any:
    """A trainer callback that says each sign once and, where configured, ends training.

    It keeps nothing to itself: a resumed run has the same log. trl then loads the best checkpoint, where pairs are held
    out for choosing it.
    """
    from transformers import TrainerCallback

    said: set[str] = set()

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for sign in signs(state.log_history, guards):
                if sign not in said:
                    said.add(sign)
                    say(sign)
                control.should_training_stop |= guards.stop

    return Watch()
