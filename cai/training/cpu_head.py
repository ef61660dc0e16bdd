"""A faster training step where there is no Triton, as on a CPU.

There trl's output layer also scores prompts and padding, multiplies by the vocabulary a second time
in the backward pass, and makes some ten passes over each tile of scores. Plain torch scores the
trained tokens alone, which costs less. And short rows need not go through the layers at the length
of the longest one (docs/performance.md has the measurements).
"""

import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

Inputs = Mapping[str, Any]  # a model's arguments, by name

# what trl may ask for of each token, beside its log-probability
TOKEN_METRICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")

# settings of models that change their scores after the output layer
SCORE_SETTINGS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)

# arguments that only trl's own layer serves
TRL_ARGUMENTS = {"shift_labels", "num_items_in_batch", "output_router_logits"}

# float32 scores held at once, a quarter of a gigabyte; more of them are computed twice
MAX_SCORES = 2**26

# a row goes through the layers with a longer one if it has this share of its length
SIMILAR_LENGTH = 0.8


def install_lean_head(
    model: PreTrainedModel | PeftModel, metrics: tuple[str, ...] = TOKEN_METRICS
) -> None:
    """Puts the lean layer before the one that trl has fused into `model`, or into its base model.

    Both answer `model(..., labels=labels, fused_lm_head=True)` with trl's FusedCausalLMOutput.
    trl's own serves accelerators with Triton, sharded models, the router loss of mixtures of
    experts, and models that change their scores afterwards.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config.get_text_config()
    changes_scores = any(getattr(config, name, None) not in (None, 1) for name in SCORE_SETTINGS)
    has_router_loss = getattr(config, "output_router_logits", False)
    if changes_scores or has_router_loss or base.device.type not in ("cpu", "mps"):
        return
    trl_forward = getattr(base.forward, "trl_forward", base.forward)  # may be installed already

    @functools.wraps(type(base).forward)  # transformers reads its signature
    def forward(
        self: PreTrainedModel,
        *args: object,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **named: object,
    ) -> Any:
        if fused_lm_head and labels is not None and not args and not _is_sharded(self):
            # peft passes every argument on, also those that are None
            inputs = {name: value for name, value in named.items() if value is not None}
            if not TRL_ARGUMENTS & inputs.keys():
                return _score_labels(self, labels, inputs | {"use_cache": False}, metrics)
        return trl_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **named)

    base.forward = types.MethodType(forward, base)
    forward.trl_forward = trl_forward  # pyright: ignore[reportAttributeAccessIssue]


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether FSDP2 or ZeRO-3 holds the weights in shards.

    All processes gather shards at once, and here each process may run the layers another number of
    times.
    """
    return any(
        type(weights).__name__ == "DTensor" or hasattr(weights, "ds_id")
        for weights in model.parameters()
    )


def _score_labels(
    model: PreTrainedModel, labels: Tensor, inputs: Inputs, metrics: tuple[str, ...]
) -> FusedCausalLMOutput:
    """The mean loss, and for each token but a row's first its log-probability and `metrics`.

    `labels` is (rows, tokens); results are (rows, tokens - 1), and 0 where the label is -100.
    """
    targets = labels[:, 1:]
    is_trained = targets != -100
    indices = torch.arange(targets.numel(), device=targets.device).view_as(targets)
    group_states: list[Tensor] = []
    group_indices: list[Tensor] = []
    for rows, group_inputs in _group_by_length(inputs):
        states = model.base_model(**group_inputs).last_hidden_state[:, :-1]
        mask = is_trained[rows, : states.shape[1]]
        group_states.append(states[mask])
        group_indices.append(indices[rows, : states.shape[1]][mask])
    trained_states, trained_indices = torch.cat(group_states), torch.cat(group_indices)
    head = cast(torch.nn.Linear, model.get_output_embeddings())
    trained_targets = targets.flatten()[trained_indices]
    scored = _score_tokens(trained_states, head.weight, head.bias, trained_targets, metrics)
    # scatter keeps a batch without a trained token connected to the model
    results: Any = {
        name: values.new_zeros(targets.numel())
        .scatter(0, trained_indices, values)
        .view(targets.shape)
        for name, values in scored.items()
    }
    loss = -results["log_probs"].sum() / is_trained.sum().clamp(min=1)
    return FusedCausalLMOutput(loss=loss, label_mask=is_trained, **results)


def _group_by_length(
    inputs: Inputs,
) -> Sequence[tuple[slice | list[int], Inputs]]:
    """A batch in groups of rows of similar length, each without the padding that it needs no more.

    The batch stays whole if it has arguments that can't be split, or padding on the left.
    """
    whole = [(slice(None), inputs)]
    if inputs.keys() != {"input_ids", "attention_mask", "use_cache"}:
        return whole
    ids, mask = inputs["input_ids"], inputs["attention_mask"]  # both (rows, tokens)
    lengths = mask.sum(1).tolist()
    if mask.dim() != 2 or not all(
        bool(row[:length].all()) for row, length in zip(mask, lengths, strict=True)
    ):
        return whole
    longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    groups = [[longest_first[0]]]
    for row in longest_first[1:]:
        if lengths[row] < SIMILAR_LENGTH * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    parts = []
    for rows in groups:
        end = lengths[rows[0]]
        cut = {"input_ids": ids[rows, :end], "attention_mask": mask[rows, :end]}
        parts.append((rows, {**inputs, **cut}))
    return parts


def _score_tokens(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, metrics: tuple[str, ...]
) -> dict[str, Tensor]:
    """Each token's log-probability and metrics, (tokens,), in blocks of at most MAX_SCORES scores.

    `states` is (tokens, hidden units), `weight` (vocabulary, hidden units), `bias` (vocabulary,),
    `targets` (tokens,).
    """
    block = max(1, MAX_SCORES // len(weight))  # tokens
    if len(targets) <= block:
        return _score_block(states, weight, bias, targets, metrics)
    # a checkpoint computes the scores again in the backward pass, instead of holding them
    scored: list[dict[str, Tensor]] = []
    for part, part_targets in zip(states.split(block), targets.split(block), strict=True):
        inputs = (part, weight, bias, part_targets, metrics)
        scored.append(
            checkpoint(_score_block, *inputs, use_reentrant=False, preserve_rng_state=False)
        )
    return {name: torch.cat([results[name] for results in scored]) for name in scored[0]}


def _score_block(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, metrics: tuple[str, ...]
) -> dict[str, Tensor]:
    scores = torch.nn.functional.linear(states, weight, bias).float()  # (tokens, vocabulary)
    # log_softmax adds up the vocabulary one number after the other, which loses small ones on a
    # CPU: 2e-5 of SmolLM2's loss
    log_total = scores.logsumexp(-1)
    results = {"log_probs": scores.gather(1, targets[:, None])[:, 0] - log_total}
    with torch.no_grad():
        if "entropy" in metrics:
            probabilities = (scores - log_total[:, None]).exp_()
            results["entropy"] = log_total - probabilities.mul_(scores).sum(-1)
        if "log_sum_sq_probs" in metrics:
            results["log_sum_sq_probs"] = (2 * scores).logsumexp(-1) - 2 * log_total
        if "mean_logits" in metrics:
            results["mean_logits"] = scores.mean(-1)
        if "is_top1" in metrics:
            results["is_top1"] = scores.argmax(-1) == targets
    return results
