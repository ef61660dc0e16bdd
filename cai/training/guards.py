"""Signs that preference training goes wrong, read from the log, which holds figures of a few greedy answers too."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cai.config.schema import Guards
from cai.text import repeats

LENGTH, REPETITIVE = (
    "answers/tokens",
    "answers/repetitive",
)  # of a log's entries: a mean and a share

WINDOW = 10  # logged steps over which the noise of single batches is averaged


def signs(log: Sequence[Mapping[str, Any]], guards: Guards) -> list[str]:
    """What is wrong, in sentences, each with the first step at which it shows; `log` is trl's log_history.

    chosen_floor: DPO widens the margin even while both answers become unlikely (Pal et al. 2024); the mean reward of
    the chosen answers, over held-out pairs or the last steps' batches, tells. falling: the held-out margin shrinks.
    longer, shorter, repetitive: answers grow (Park et al. 2024), shrink, or go round in circles, against those before
    training.
    """
    said = []
    if guards.chosen_floor is not None:
        batches = [
            (entry["step"], entry["rewards/chosen"]) for entry in log if "rewards/chosen" in entry
        ]
        means = [
            (
                batches[end - 1][0],
                math.fsum(value for _, value in batches[end - WINDOW : end]) / WINDOW,
            )
            for end in range(WINDOW, len(batches) + 1)
        ]
        held = [
            (entry["step"], entry["eval_rewards/chosen"])
            for entry in log
            if "eval_rewards/chosen" in entry
        ]
        low = sorted(
            (step, value) for step, value in [*means, *held] if value < guards.chosen_floor
        )
        if low:
            said.append(
                f"At step {low[0][0]} the chosen answers' reward was {low[0][1]:.2f}, below {guards.chosen_floor}: the "
                "model unlearns good answers together with bad ones; lower the learning rate, or raise beta."
            )
    margins = [
        (entry["step"], entry["eval_rewards/margins"])
        for entry in log
        if "eval_rewards/margins" in entry
    ]
    run = 0
    for (_, before), (step, after) in pairwise(margins if guards.falling is not None else ()):
        run = run + 1 if after < before else 0
        if run == guards.falling:
            said.append(
                f"At step {step} the reward margin of held-out pairs had fallen {run} times in a row: "
                "what is learned no longer carries over; train for fewer steps, or on more pairs."
            )
            break
    first, *later = [entry for entry in log if LENGTH in entry] or [{}]
    long = [
        e
        for e in later
        if guards.longer is not None and e[LENGTH] > guards.longer * max(1, first[LENGTH])
    ]
    short = [
        e
        for e in later
        if guards.shorter is not None and e[LENGTH] < guards.shorter * first[LENGTH]
    ]
    for found, word in ((long, "longer"), (short, "shorter")):
        if found:
            said.append(
                f"At step {found[0]['step']} answers to held-out prompts had {found[0][LENGTH]:.0f} tokens on average, "
                f"and {first[LENGTH]:.0f} before training: length is what is learned; see whether the judge prefers "
                f"{word} answers, raise beta, or lower the learning rate."
            )
    most = guards.repetitive
    circling = [
        e for e in later if most is not None and e[REPETITIVE] > max(most, first[REPETITIVE])
    ]
    if circling:
        said.append(
            f"At step {circling[0]['step']} {circling[0][REPETITIVE]:.0%} of the answers to held-out prompts went "
            f"round in circles, and {first[REPETITIVE]:.0%} before training; lower the learning rate, or raise beta."
        )
    return said


def unseen(log: Sequence[Mapping[str, Any]], guards: Guards, sharded: bool) -> list[str]:
    """What these guards can't see, in sentences: a guard that is off without a word would pass for a good sign."""
    first = next((entry for entry in log if LENGTH in entry), None)
    if not guards.prompts or guards.longer is guards.shorter is guards.repetitive is None:
        return []
    if first is None:
        why = (
            "the shards of a model do not generate"
            if sharded
            else "no pair is held out (dpo.validation)"
        )
        return [f"The guards see no growing, shrinking or repetitive answers, since {why}."]
    if guards.longer is not None and first[LENGTH] * guards.longer >= guards.new_tokens:
        return [
            f"The guards see no growing answers: before training they had {first[LENGTH]:.0f} tokens of at most "
            f"{guards.new_tokens}, which leaves no room for {guards.longer:g} times as many; raise "
            "dpo.guards.new_tokens."
        ]
    return []


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[tuple[str, int]]:
    """Greedy answers to tokenised prompts, each with its number of tokens, at most `new_tokens`; nothing is drawn."""
    import torch

    padded = tokenizer.pad(
        {"input_ids": list(map(list, prompts))}, padding_side="left", return_tensors="pt"
    )
    batch = padded.to(model.device)
    training = model.training
    model.eval()
    plain: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    plain |= {"repetition_penalty": 1.0, "use_cache": True, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        found = model.generate(**batch, max_new_tokens=new_tokens, **plain)
    model.train(training)
    new = found[:, batch["input_ids"].shape[1] :]
    counts = (new != tokenizer.pad_token_id).sum(dim=1).tolist()
    return list(zip(tokenizer.batch_decode(new, skip_special_tokens=True), counts, strict=True))


def watch(
    guards: Guards,
    say: Callable[[str], None],
    answers: Callable[[Any], list[tuple[str, int]]] | None = None,
    sharded: bool = False,
) -> Any:
    """A trainer callback that says what it can't see, then each sign once and, where configured, ends training.

    `answers` gives a model's to a few held-out prompts, with their tokens; their figures join the log. The callback
    keeps nothing to itself: a resumed run has the same log. trl then loads the best checkpoint, if pairs are held out
    for choosing it.
    """
    from transformers import TrainerCallback

    said: set[str] = set()

    def note(state: Any, model: Any) -> None:
        if answers is not None:
            texts, tokens = zip(*answers(model), strict=True)
            length, circling = sum(tokens) / len(texts), sum(map(repeats, texts)) / len(texts)
            state.log_history.append(
                {"step": state.global_step, LENGTH: length, REPETITIVE: circling}
            )

    class Watch(TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if not state.global_step:  # a resumed log has it
                note(state, model)
            for blindness in unseen(state.log_history, guards, sharded):
                say(blindness)

        def on_evaluate(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            note(state, model)
            self.on_log(args, state, control)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for sign in signs(state.log_history, guards):
                if sign not in said:
                    said.add(sign)
                    say(sign)
                control.should_training_stop |= guards.stop

    return Watch()
