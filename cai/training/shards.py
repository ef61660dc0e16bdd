"""Training in shards: the first process loads the model, and each gets its part of it.

accelerate hands the parts round when training starts (fsdp2_load_full_state_dict). Until then the
other processes have a model without weights, so that neither their memory nor a GPU's has to hold
all of it. transformers' own loader gives every process all weights.
"""

import os

import torch
from accelerate import init_empty_weights
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from cai.models.load import load_model
from cai.models.source import adapter_base, split_revision


def are_asked_for() -> bool:
    """Whether `accelerate launch` has asked for FSDP, or for DeepSpeed's ZeRO-3."""
    zero = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and zero == "3"
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" or deepspeed


def are_handed_round() -> bool:
    """Whether accelerate takes all weights from the first process: FSDP2, unless told not to."""
    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    second = os.environ.get("FSDP_VERSION") == "2"
    return second and all(os.environ.get(name, "").lower() == "true" for name in names)


def load_to_train(
    model: str,
    dtype: str,
    device: str,
    attention: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """`load_model`, but for shards that are handed round: those are in the host's memory.

    Quantised weights can't be handed round, and an adapter is merged on the device.
    """
    whole = quantization is not None or adapter_base(model) is not None
    if whole or device == "cpu" or not are_handed_round():  # accelerate shards on no CPU
        return load_model(model, dtype, device, attention, quantization)
    if os.environ.get("RANK", "0") == "0":
        return load_model(model, dtype, "cpu", attention)
    name, revision = split_revision(model)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    with init_empty_weights():  # what is no weight, such as frequencies of positions, is computed
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    assert isinstance(model, PreTrainedModel)
    _give_room(model)
    return model


def _give_room(model: PreTrainedModel) -> None:
    """Gives each weight an address of its own, by which accelerate finds it in the optimizer.

    On the meta device all have the same. Room that nothing is written to takes no memory.
    """
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            room = torch.empty_like(weight, device="cpu")
            setattr(module, name, Parameter(room, weight.requires_grad))
    model.tie_weights()  # that was undone as each weight was emptied
