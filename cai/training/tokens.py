"""The tokens that supervised training sees, and whether packed rows stay apart in a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cai.data.audit import length_metrics
from cai.data.prompts import UnfitRows
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.messages import Dialogue
from cai.models.loss_mask import token_rows


def tokenize_dialogues(
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    max_length: int,
    places: Sequence[str] = (),
    cut: Sequence[bool] = (),
) -> tuple[Dataset, JsonObject]:
    """A dataset of input_ids and labels (the answers alone), and the audit's counts and lengths.

    A row over `max_length` tokens is cut at its end. One without a trained token is left out, and
    so is a dialogue that the chat template refuses. Under a template that renders earlier turns
    otherwise, each answer of a dialogue is a row of its own (`split` counts such dialogues).
    `places` say where each dialogue is from; without them, its number does. `cut` says which
    dialogues end in an answer that ran into its limit: its end of turn is not trained.
    """
    rows: list[dict[str, list[int]]] = []
    refused, counts = UnfitRows(), TokenCounts()
    for place, dialogue in enumerate(dialogues):
        try:
            dialogue_rows = token_rows(tokenizer, dialogue)
        except ValueError as error:
            refused.add(places[place] if places else f"row {place + 1}", str(error))
            continue
        counts.split += len(dialogue_rows) > 1
        if cut and cut[place]:
            last_labels = dialogue_rows[-1][1]
            last_labels[_turn_ends(last_labels)[-1]] = -100
        for ids, labels in dialogue_rows:
            counts.add(labels, max_length)
            if any(label != -100 for label in labels[:max_length]):
                rows.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return Dataset.from_list(rows), {
        "rows": len(dialogues),
        "refused": refused.count,
        "refused_first": refused.examples,
        "split": counts.split,
        "truncated": counts.truncated,
        "lost_end_of_turn": counts.lost_ends,
        "dropped": counts.dropped,
        "trained_tokens": counts.trained_tokens,
        "lengths": length_metrics(counts.lengths),
    }


@dataclass
class TokenCounts:
    """What becomes of the rows when they are cut."""

    lengths: list[int] = field(default_factory=list)  # before the cut
    split: int = 0  # dialogues of several rows
    truncated: int = 0
    lost_ends: int = 0  # ends of turn that are cut off
    dropped: int = 0  # rows without a trained token
    trained_tokens: int = 0

    def add(self, labels: Sequence[int], max_length: int) -> None:
        """Counts one row; -100 labels what is not trained."""
        trained = sum(label != -100 for label in labels[:max_length])
        self.lengths.append(len(labels))
        self.truncated += len(labels) > max_length
        self.lost_ends += sum(index >= max_length for index in _turn_ends(labels))
        self.trained_tokens += trained
        self.dropped += not trained


def _turn_ends(labels: Sequence[int]) -> list[int]:
    """Where trained turns end: at their last trained token, whichever token the template writes."""
    return [
        index
        for index, (label, next_label) in enumerate(pairwise([*labels, -100]))
        if label != -100 and next_label == -100
    ]


def check_packing(model: PreTrainedModel, key: str) -> None:
    """Raises CaiError where packed rows see each other: a row's logits follow the row before it.

    Whether they do depends on the attention's implementation and the model's code, so the model
    itself is tried.
    """
    length, vocabulary = 8, model.config.get_text_config().vocab_size
    token_ids = torch.arange(3 * length, device=model.device).remainder(vocabulary)
    first, second, row = token_ids.view(3, length)
    was_training = model.training
    model.eval()
    after_first = _logits_after(model, first, row)
    after_second = _logits_after(model, second, row)
    model.train(was_training)
    if not torch.allclose(after_first, after_second, atol=1e-3, rtol=1e-3):
        raise CaiError(
            f"{key}: packed rows would see each other in this model with attention "
            f"'{model.config._attn_implementation}'; set engine.attention=flash_attention_2, "
            "or leave packing out and set train_sampling_strategy=group_by_length"
        )


@torch.no_grad()
def _logits_after(
    model: PreTrainedModel, earlier_row: torch.Tensor, row: torch.Tensor
) -> torch.Tensor:
    """The logits of `row`, (tokens, vocabulary), packed behind an equally long `earlier_row`."""
    positions = torch.arange(len(row), device=row.device).repeat(2)[None]
    packed = torch.cat((earlier_row, row))[None]
    outputs = model(input_ids=packed, position_ids=positions, use_cache=False)
    return outputs.logits[0, len(row) :]
