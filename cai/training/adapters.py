"""DPO that trains an earlier stage's adapter further, in place of a fresh one."""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel

from cai.config.schema import EngineConfig
from cai.errors import CaiError
from cai.models.load import load_model

# largest relative logit error that merging an adapter may cause
MERGE_ERROR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}


class NamedModel(NamedTuple):
    """A stage's model."""

    stage: str
    path: str


def load_continued(
    start: NamedModel, policy: NamedModel, adapter: Path, engine: EngineConfig, device: str
) -> PeftModel:
    """The policy as its adapter, trainable, on the model that the adapter belongs to (`start`).

    trl copies the adapter (as "ref") where that is the reference. Raises CaiError where `start`
    with the adapter is not the policy.
    """
    base = load_model(start.path, engine.dtype, device, engine.attention)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    with torch.no_grad():
        tokens = torch.arange(32, device=device)[None]  # any tokens will do
        published = load_model(policy.path, engine.dtype, device)
        logits = published(tokens).logits.float()
        difference = model(tokens).logits.float() - logits
        error = (difference.norm() / logits.norm()).item()
    if not error <= MERGE_ERROR[str(model.dtype).removeprefix("torch.")]:
        raise CaiError(
            f"dpo.adapter=continued: {start.stage} with {policy.stage}'s adapter is not the "
            f"{policy.stage} model (their scores differ by {error:.1%}), so it has another base; "
            "take dpo=lora"
        )
    return model
