"""A given chat template's markers: new tokens of the vocabulary, their embeddings, and training them."""

import contextlib
from typing import Any

from cai.models.chat_template import GIVEN, MARKER, SAMPLE


def adopt_markers(tokenizer: Any) -> list[int]:
    """Adds the markers that a given template writes and the vocabulary lacks, as special tokens, and returns their ids.

    A template that the model brought is left as it is: where its markers are plain text, the model has learnt them so.
    """
    from jinja2 import TemplateError

    if GIVEN not in tokenizer.chat_template:
        return []
    texts = [tokenizer.apply_chat_template(SAMPLE, tokenize=False, add_generation_prompt=True)]
    with contextlib.suppress(TemplateError):  # some know no system message
        system = {"role": "system", "content": "Be brief."}
        texts.append(tokenizer.apply_chat_template([system, *SAMPLE], tokenize=False))
    written = dict.fromkeys(marker for text in texts for marker in MARKER.findall(text))
    missing = [marker for marker in written if marker not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
    return tokenizer.convert_tokens_to_ids(missing)


def embed_markers(model: Any, added: list[int]) -> None:
    """Gives adopted markers the mean of all other embeddings (Hewitt 2021), where need be in a larger vocabulary."""
    import torch

    if not added:
        return
    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[added] = layer.weight[: min(added)].mean(0)


def training_markers(model: Any, added: list[int], peft: dict[str, Any]) -> dict[str, Any]:
    """peft.LoraConfig's arguments, which train adopted markers too: an adapter leaves embeddings as they are.

    Rows of an untied output layer stay: the markers stand before turns, where nothing is learnt.
    """
    name = next(
        name for name, module in model.named_modules() if module is model.get_input_embeddings()
    )
    name = name.rpartition(".")[2]
    trained = [*(peft.get("modules_to_save") or ()), *(peft.get("target_modules") or ())]
    return (
        peft if not added or name in trained else {"trainable_token_indices": {name: added}} | peft
    )


def pass_bias_on(model: Any) -> None:
    """trl reads the bias of the output layer, which peft's wrapper around one that is tied to markers lacks."""
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = head.original_module.bias
