"""Warns where preference training goes wrong, by its log and by a few greedy answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState

from cai.config.schema import Guards
from cai.models.chat_template import stop_ids
from cai.text import repeats

Log = Sequence[Mapping[str, float]]  # trl's log_history

# in the log: the greedy answers' mean number of tokens, and the share that repeat themselves
LENGTH, REPETITIVE = "answers/tokens", "answers/repetitive"

WINDOW = 10  # logged steps in a mean, since single batches are noisy


def find_warnings(log: Log, guards: Guards) -> list[str]:
    """What goes wrong, in sentences, each with the first step at which it shows."""
    warnings = [
        _low_reward(log, guards.chosen_floor),
        _falling_margin(log, guards.falling),
        *_changed_lengths(log, guards),
        _repetition(log, guards.repetitive),
    ]
    return [warning for warning in warnings if warning is not None]


def _low_reward(log: Log, floor: float | None) -> str | None:
    """DPO widens the margin even while both answers become unlikely (Pal et al. 2024).

    The chosen answers' mean reward shows it, over held-out pairs or the last steps' batches.
    """
    if floor is None:
        return None
    rewards = _read(log, "eval_rewards/chosen")
    batches = _read(log, "rewards/chosen")
    for end in range(WINDOW, len(batches) + 1):
        window = batches[end - WINDOW : end]
        last_step, _ = window[-1]
        rewards.append((last_step, math.fsum(reward for _, reward in window) / WINDOW))
    low_rewards = [(step, reward) for step, reward in rewards if reward < floor]
    if not low_rewards:
        return None
    step, reward = min(low_rewards)
    return (
        f"At step {step} the chosen answers' reward was {reward:.2f}, below {floor}: the model "
        "unlearns good answers together with bad ones; lower the learning rate, or raise beta."
    )


def _falling_margin(log: Log, limit: int | None) -> str | None:
    """The margin of held-out pairs falls at `limit` evaluations in a row."""
    falls = 0
    for (_, before), (step, after) in pairwise(_read(log, "eval_rewards/margins")):
        falls = falls + 1 if after < before else 0
        if falls == limit:
            return (
                f"At step {step} the reward margin of held-out pairs had fallen {falls} times in a "
                "row: what is learned no longer carries over; train for fewer steps, or on more "
                "pairs."
            )
    return None


def _changed_lengths(log: Log, guards: Guards) -> list[str]:
    """Answers grow (Park et al. 2024) or shrink, compared with those before training."""
    lengths = _read(log, LENGTH)
    if not lengths:
        return []
    (_, first_length), *later = lengths
    longest = math.inf if guards.longer is None else guards.longer * max(1, first_length)
    shortest = -math.inf if guards.shorter is None else guards.shorter * first_length
    changes = {
        "longer": [(step, length) for step, length in later if length > longest],
        "shorter": [(step, length) for step, length in later if length < shortest],
    }
    return [
        f"At step {entries[0][0]} answers to held-out prompts had {entries[0][1]:.0f} tokens on "
        f"average, and {first_length:.0f} before training: length is what is learned; see whether "
        f"the judge prefers {change} answers, raise beta, or lower the learning rate."
        for change, entries in changes.items()
        if entries
    ]


def _repetition(log: Log, limit: float | None) -> str | None:
    """A larger share of the answers than before training, and than `limit`, repeat themselves."""
    shares = _read(log, REPETITIVE)
    if limit is None or not shares:
        return None
    (_, first_share), *later = shares
    for step, share in later:
        if share > max(limit, first_share):
            return (
                f"At step {step} {share:.0%} of the answers to held-out prompts went round in "
                f"circles, and {first_share:.0%} before training; lower the learning rate, or "
                "raise beta."
            )
    return None


def _read(log: Log, metric: str) -> list[tuple[float, float]]:
    """The metric's values, each with its step."""
    return [(entry["step"], entry[metric]) for entry in log if metric in entry]


def find_blind_spots(log: Log, guards: Guards, sharded: bool) -> list[str]:
    """What these guards can't see, in sentences: else silence would pass for a good sign."""
    limits = (guards.longer, guards.shorter, guards.repetitive)
    if not guards.prompts or all(limit is None for limit in limits):
        return []
    lengths = _read(log, LENGTH)
    if not lengths:
        reason = "no pair is held out (dpo.validation)"
        if sharded:
            reason = "the shards of a model do not generate"
        return [f"The guards see no growing, shrinking or repetitive answers, since {reason}."]
    _, first_length = lengths[0]
    if guards.longer is not None and first_length * guards.longer >= guards.new_tokens:
        return [
            f"The guards see no growing answers: before training they had {first_length:.0f} "
            f"tokens of at most {guards.new_tokens}, which leaves no room for {guards.longer:g} "
            "times as many; raise dpo.guards.new_tokens."
        ]
    return []


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
) -> list[tuple[str, int]]:
    """Greedy answers to tokenised prompts, of at most `new_tokens`, each with its tokens' number.

    No random number is drawn, so training does not change by it.
    """
    padded = tokenizer.pad(
        {"input_ids": [list(prompt_ids) for prompt_ids in prompts]},
        padding_side="left",
        return_tensors="pt",
    )
    batch = padded.to(model.device)
    generate: Any = model.generate  # which transformers declares as a module
    was_training = model.training
    model.eval()
    with torch.no_grad():
        sequences = generate(
            **batch,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stop_ids(tokenizer, model.generation_config.eos_token_id),
        )
    model.train(was_training)
    answer_ids = sequences[:, batch["input_ids"].shape[1] :]  # (prompts, new tokens)
    lengths = (answer_ids != tokenizer.pad_token_id).sum(dim=1).tolist()
    texts = tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
    return list(zip(texts, lengths, strict=True))


class GuardCallback(TrainerCallback):
    """Says what the guards can't see, then each warning once. With `stop` it also ends training.

    `generate` gives the model's answers to a few held-out prompts, with their numbers of tokens.
    Their metrics go into the log, and nothing else is remembered: a resumed run has the same log.
    After an early end trl loads the best checkpoint, if pairs are held out for choosing it.
    """

    def __init__(
        self,
        guards: Guards,
        say: Callable[[str], object],
        generate: Callable[[PreTrainedModel], list[tuple[str, int]]] | None = None,
        sharded: bool = False,
    ):
        self.guards, self.say, self.generate, self.sharded = guards, say, generate, sharded
        self.reported: set[str] = set()

    def on_train_begin(self, args, state, control, model=None, **_):
        if not state.global_step:  # a resumed run has these answers in its log
            self._log_answers(state, model)
        for blind_spot in find_blind_spots(state.log_history, self.guards, self.sharded):
            self.say(blind_spot)

    def on_evaluate(self, args, state, control, model=None, **_):
        self._log_answers(state, model)
        self.on_log(args, state, control)

    def on_log(self, args, state, control, **_):
        for warning in find_warnings(state.log_history, self.guards):
            if warning not in self.reported:
                self.reported.add(warning)
                self.say(warning)
            control.should_training_stop |= self.guards.stop

    def _log_answers(self, state: TrainerState, model: Any) -> None:
        if self.generate is None:
            return
        texts, lengths = zip(*self.generate(model), strict=True)
        state.log_history.append(
            {
                "step": state.global_step,
                LENGTH: sum(lengths) / len(texts),
                REPETITIVE: sum(repeats(text) for text in texts) / len(texts),
            }
        )
