"""What training gained on a few rows, and how much of it the published folder keeps.

Published weights may be of another number format than the trained ones, and an adapter is merged
into them. Both round. A small update can vanish: so the folder is loaded as it will be served, and
measured on the same rows.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer

from cai.config.schema import EngineConfig
from cai.models.load import load_model, pick_device
from cai.training.kept_gain import KeptGain
from cai.training.trainer import is_sharded

Score = Callable[[PreTrainedModel], float]

ROWS = 16  # rows or pairs that are measured


class Probe:
    """Scores the model before and after training, and then what was published.

    A `score` takes a model, in eval mode and without gradients. Where the training is sharded, or
    in another process than the first, nothing is measured: no process holds the whole model.
    """

    def __init__(self, trainer: Trainer, metric: str, rows: int, held_out: bool, score: Score):
        self.metric, self.rows, self.held_out, self.score = metric, rows, held_out, score
        first = int(os.environ.get("RANK", "0")) == 0
        self._measures = first and bool(rows) and not is_sharded(trainer)
        self.start = self._measure_training(trainer)
        self.trained = 0.0

    def measure_trained(self, trainer: Trainer) -> None:
        """To be called after training, before the model is merged or saved."""
        self.trained = self._measure_training(trainer)

    def measure_published(self, folder: Path, engine: EngineConfig) -> KeptGain | None:
        """What the folder keeps of the gain, loaded as `engine` would serve it."""
        if not self._measures:
            return None
        model = load_model(str(folder), engine.dtype, pick_device(engine.device), engine.attention)
        scores = (self.start, self.trained, self._measure(model))
        return KeptGain(self.metric, *scores, rows=self.rows, held_out=self.held_out)

    def _measure_training(self, trainer: Trainer) -> float:
        # in the arithmetic of training, where weights may be of two formats
        with trainer.accelerator.autocast():
            return self._measure(trainer.accelerator.unwrap_model(trainer.model))

    def _measure(self, model: Any) -> float:
        if not self._measures:
            return 0.0
        was_training = model.training
        model.eval()
        with torch.no_grad():
            score = self.score(model)
        model.train(was_training)
        return score


def loss_probe(trainer: Trainer, rows: Dataset, held_out: bool) -> Probe:
    """The mean loss of the trained tokens of tokenised rows, in nats a token, less is better."""
    chosen: Any = rows.select(range(min(ROWS, len(rows)))).to_list()

    def score(model: PreTrainedModel) -> float:
        total = tokens = 0.0
        for row in chosen:
            labels = torch.tensor(row["labels"], device=model.device)[1:]
            logits = _logits(model, row["input_ids"])
            total += cross_entropy(logits, labels, reduction="sum").item()
            tokens += (labels != -100).sum().item()
        return -total / max(tokens, 1)

    return Probe(trainer, "loss", len(chosen), held_out, score)


def margin_probe(
    trainer: Trainer,
    pairs: Any,
    held_out: bool,
    beta: float,
    max_length: int | None,
) -> Probe:
    """beta times how much likelier the chosen answers are than the rejected ones, in nats a pair.

    What the score gains is the reward margin over the model that training starts at.
    """
    chosen_pairs = pairs.select(range(min(ROWS, len(pairs)))).to_list()

    def score(model: PreTrainedModel) -> float:
        total = 0.0
        for pair in chosen_pairs:
            for name, sign in (("chosen_ids", 1), ("rejected_ids", -1)):
                ids = [*pair["prompt_ids"], *pair[name]][:max_length]
                answer = len(pair["prompt_ids"])
                logits = _logits(model, ids)[answer - 1 :]
                targets = torch.tensor(ids[answer:], device=model.device)
                total -= sign * cross_entropy(logits, targets, reduction="sum").item()
        return beta * total / len(chosen_pairs)

    return Probe(trainer, "reward margin", len(chosen_pairs), held_out, score)


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The float32 logits of every token but the first, (tokens - 1, vocabulary)."""
    token_ids = torch.tensor([ids], device=model.device)
    return model(input_ids=token_ids, use_cache=False).logits[0, :-1].float()
