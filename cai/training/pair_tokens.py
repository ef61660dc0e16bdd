"""The tokens of preference pairs: each answer with its end of turn, as sft trains answers."""

from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from cai.data.prompts import UnfitRows
from cai.messages import Dialogue, assistant, from_dicts
from cai.models.loss_mask import training_tokens

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")  # what trl's collator reads


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_length: int | None, cut_end: bool
) -> tuple[Dataset, UnfitRows]:
    """The pairs with TOKEN_COLUMNS and `length`, the tokens of the longer half up to `max_length`.

    Left out are those that the chat template refuses, which are given back, and with `cut_end`
    those whose prompt alone fills `max_length`. trl's own tokens have a line break behind the end
    of turn, and an end of turn behind answers that ran into their limit.
    """
    places: list[int] = []
    tokens: dict[str, list[Any]] = {name: [] for name in (*TOKEN_COLUMNS, "length")}
    refused = UnfitRows()
    pairs: list[Any] = rows.to_list()
    for place, row in enumerate(pairs):
        try:
            ids = pair_tokens(tokenizer, row)
        except ValueError as error:
            refused.add(f"pair {place + 1}", str(error))
            continue
        if max_length and cut_end and len(ids[0]) >= max_length:
            continue
        places.append(place)
        for name, values in zip(TOKEN_COLUMNS, ids, strict=True):
            tokens[name].append(values)
        length = len(ids[0]) + max(len(ids[1]), len(ids[2]))
        tokens["length"].append(min(length, max_length or length))
    fitting = rows.select(places)
    for name, values in tokens.items():
        fitting = fitting.add_column(name, values)
    return fitting, refused


def pair_tokens(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt and of both answers, which begin where their rows differ.

    Raises ValueError, with the template's words, where it refuses one.
    """
    prompt = tuple(replace(turn, trained=False) for turn in from_dicts(row["prompt"]))
    chosen, chosen_start = _answer(tokenizer, prompt, row, "chosen")
    rejected, rejected_start = _answer(tokenizer, prompt, row, "rejected")
    start = min(chosen_start, rejected_start)
    # a token may hold the template's end and an answer's beginning
    start = next((n for n in range(start) if chosen[n] != rejected[n]), start)
    return chosen[:start], chosen[start:], rejected[start:]


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Dialogue, row: dict[str, Any], side: str
) -> tuple[list[int], int]:
    """Prompt and answer up to what is trained last, and where the answer begins."""
    answer = assistant(row[side][0]["content"])
    ids, labels = training_tokens(tokenizer, (*prompt, answer))
    trained = [place for place, label in enumerate(labels) if label != -100]
    if not trained:
        raise ValueError(f"no token of the {side} answer can be trained")
    stop = trained[-1] + 1
    if not row.get(f"{side}_ended", True):
        stop -= 1  # the end of turn
    return ids[:stop], trained[0]
