"""Turn markers of a chat template that cai set: new tokens, their embeddings, and training them."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cai.config.types import Arguments
from cai.messages import Message
from cai.models.chat_template import CAI_PREFIX, MARKER, SAMPLE, apply_template


def adopt_markers(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Adds the template's markers that the vocabulary lacks as special tokens. Returns their ids.

    A template that the model brought is left as it is: where its markers are plain text, the model
    has learnt them so.
    """
    if CAI_PREFIX not in (tokenizer.chat_template or ""):
        return []
    texts = [apply_template(tokenizer, SAMPLE, add_generation_prompt=True)]
    texts.append(apply_template(tokenizer, (Message("system", "Be brief."), *SAMPLE)))
    vocabulary = tokenizer.get_vocab()
    missing: list[str] = []
    for marker in MARKER.findall("\n".join(texts)):
        if marker not in vocabulary and marker not in missing:
            missing.append(marker)
    if missing:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
    return cast(list[int], tokenizer.convert_tokens_to_ids(missing))


def embed_markers(model: PreTrainedModel, marker_ids: list[int]) -> None:
    """Sets the markers' embeddings to the mean of all others (Hewitt 2021).

    The vocabulary grows where it must.
    """
    if not marker_ids:
        return
    if max(marker_ids) >= len(cast(torch.nn.Embedding, model.get_input_embeddings()).weight):
        model.resize_token_embeddings(max(marker_ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(torch.nn.Embedding, layer).weight  # (vocabulary, hidden units)
            weight[marker_ids] = weight[: min(marker_ids)].mean(0)


def train_markers(
    model: PreTrainedModel, marker_ids: list[int], lora_settings: Arguments
) -> Arguments:
    """Arguments of peft.LoraConfig that train the markers too: an adapter leaves embeddings alone.

    Rows of an untied output layer stay as they are: markers stand before turns, where no token is
    trained.
    """
    embeddings = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embeddings)
    name = path.rpartition(".")[2]
    trained_modules = [
        *(lora_settings.get("modules_to_save") or ()),
        *(lora_settings.get("target_modules") or ()),
    ]
    if not marker_ids or name in trained_modules:
        return lora_settings
    return {"trainable_token_indices": {name: marker_ids}} | lora_settings


def restore_head_bias(model: PreTrainedModel) -> None:
    """Gives the output layer the attribute `bias`, which trl reads.

    peft's wrapper around an output layer that shares the markers' embeddings lacks it.
    """
    head = cast(Any, model.get_output_embeddings())
    if not hasattr(head, "bias"):
        head.bias = head.original_module.bias
