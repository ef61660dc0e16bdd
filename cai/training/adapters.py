"""DPO that trains an earlier stage's adapter further, in place of a fresh one."""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import AutoConfig

from cai.errors import CaiError
from cai.models.load import load_model

# largest relative logit error that merging an adapter may cause
MERGE_ERROR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}


class NamedModel(NamedTuple):
    """A stage's model."""

    stage: str
    path: str


def load_continued(
    start: NamedModel,
    policy: NamedModel,
    adapter: Path,
    dtype: str,
    attention: str | None,
    device: str,
) -> PeftModel:
    """The policy as its adapter, trainable, on the model that the adapter belongs to (`start`).

    trl copies the adapter (as "ref") where that is the reference. Raises CaiError where `start`
    with the adapter is not the policy.
    """
    base = load_model(start.path, dtype, device, attention)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    with torch.no_grad():
        tokens = torch.arange(32, device=device)[None]  # any tokens will do
        published = load_model(policy.path, dtype, device)
        logits = published(tokens).logits.float()
        difference = model(tokens).logits.float() - logits
        error = (difference.norm() / logits.norm()).item()
    saved_dtype = str(AutoConfig.from_pretrained(policy.path).dtype).removeprefix("torch.")
    if not error <= max(MERGE_ERROR[dtype], MERGE_ERROR.get(saved_dtype, 0.0)):
        raise CaiError(
            f"dpo.adapter=continued: {start.stage} with {policy.stage}'s adapter is not the "
            f"{policy.stage} model (their scores differ by {error:.1%}), so it has another base; "
            "take dpo=lora"
        )
    return model
