"""What draws the tokens of a transformers batch, and what ends a stretch of its decoding."""

import random
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from cai.config.schema import Sampling

ENDED_SHARE = 1 / 8  # of a batch's rows: when so many have ended, they leave the batch


class SeededSampler(LogitsProcessor):
    """Draws each row's token with that row's own generator, and leaves only this token possible.

    One uniform number for each row and step is inverted through the cumulative distribution, in
    vocabulary order. So a row's tokens don't depend on what else is in the batch (but for the
    rounding of batched arithmetic).
    """

    def __init__(self, sampling: Sampling, seeds: list[int]):
        self.sampling = sampling
        # S311: this samples, it keeps no secret
        self.generators = [random.Random(seed) for seed in seeds]  # noqa: S311

    def select_rows(self, places: list[int]) -> None:
        """Goes on with these rows alone."""
        self.generators = [self.generators[place] for place in places]

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """`scores`: logits (rows, vocabulary). Returns 0 for each row's token, else -inf."""
        logits = scores.float() / self.sampling.temperature
        token_ids = None  # (rows, top_k) of the logits; None: all, in vocabulary order
        if self.sampling.top_k:
            logits, token_ids = logits.topk(min(self.sampling.top_k, logits.shape[-1]))
        probabilities = logits.softmax(-1)
        if self.sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            # the first token always stays
            ordered[ordered.cumsum(-1) - ordered >= self.sampling.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        if token_ids is not None:  # back to vocabulary order
            token_ids, order = token_ids.sort()
            probabilities = probabilities.gather(-1, order)
        # Apple's GPUs have no float64, so the CPU draws for them
        where = torch.device("cpu") if scores.device.type == "mps" else scores.device
        cumulative = probabilities.to(where).double().cumsum(-1)
        draws = [[generator.random()] for generator in self.generators]
        uniform = torch.tensor(draws, dtype=torch.float64, device=where)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=cumulative.shape[-1] - 1).to(scores.device)
        if token_ids is not None:
            chosen = token_ids.gather(-1, chosen)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


class EnoughRowsEnded(StoppingCriteria):
    """Stops when so many rows have ended that the others are faster without them."""

    def __init__(self, stop_ids: Tensor, start: int):
        self.stop_ids, self.start = stop_ids, start  # rows may end from this column on

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        ended = torch.isin(input_ids[:, self.start :], self.stop_ids).any(1)
        return torch.full_like(ended, bool(ended.float().mean() >= ENDED_SHARE))
