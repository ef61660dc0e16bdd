"""The output layer in training, for the tokens that are trained and no others.

trl scores only these where it has Triton (CUDA, XPU). Elsewhere it scores prompts and padding too, multiplies by the
vocabulary a second time on the way back, and makes some ten passes over each tile of scores; there, plain torch does
the same for less (docs/performance.md).
"""

import functools
import types
from typing import Any

METRICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # what trl may ask for beside log-probabilities
SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
ELSEWHERE = ("shift_labels", "num_items_in_batch", "output_router_logits")  # arguments that trl's own way is left to
SCORES = 2**26  # float32 numbers at once, a quarter of a gigabyte: of more tokens, the scores are computed twice


def lean_head(model: Any, metrics: tuple[str, ...] = METRICS) -> None:
    """Puts the lean layer before the one that trl has fused into `model` (or into what peft has wrapped).

    Both answer `model(..., labels=labels, fused_lm_head=True)` with trl's FusedCausalLMOutput. trl's own stays on
    accelerators with Triton, on shards, for experts' router loss and where a model changes its scores afterwards.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1) for name in SCALES)
    if scaled or getattr(config, "output_router_logits", False) or base.device.type not in ("cpu", "mps"):
        return
    fused = getattr(base.forward, "fused", base.forward)  # the head may be there already

    @functools.wraps(type(base).forward)  # transformers reads its signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **named: Any) -> Any:
        head = self.get_output_embeddings()
        sharded = type(head.weight).__name__ == "DTensor"
        if not fused_lm_head or labels is None or sharded or any(named.get(name) is not None for name in ELSEWHERE):
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **named)
        hidden = self.base_model(*args, **(named | {"use_cache": False})).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != -100
        found = _scored(hidden[mask], head.weight, head.bias, labels[mask], metrics)
        # masked_scatter keeps a batch without a trained token connected to the model
        whole = {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}
        return FusedCausalLMOutput(loss=-whole["log_probs"].sum() / mask.sum().clamp(min=1), label_mask=mask, **whole)

    lean: Any = forward
    lean.fused = fused
    base.forward = types.MethodType(lean, base)


def _scored(hidden: Any, weight: Any, bias: Any, targets: Any, metrics: tuple[str, ...]) -> dict[str, Any]:
    """Each token's figures, shape (tokens,): `hidden` is (tokens, hidden units), `targets` (tokens,)."""
    import torch
    from torch.utils.checkpoint import checkpoint

    rows = max(1, SCORES // len(weight))
    if len(targets) <= rows:
        return _figures(hidden, weight, bias, targets, metrics)
    parts: list[Any] = [
        checkpoint(_figures, *part, metrics, use_reentrant=False, preserve_rng_state=False)
        for part in ((h, weight, bias, t) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(hidden: Any, weight: Any, bias: Any, targets: Any, metrics: tuple[str, ...]) -> dict[str, Any]:
    import torch

    scores = torch.nn.functional.linear(hidden, weight, bias).float()
    logs = scores.log_softmax(-1)
    found = {"log_probs": logs.gather(1, targets[:, None])[:, 0]}
    with torch.no_grad():
        if "entropy" in metrics:
            found["entropy"] = -(logs.exp() * logs).sum(-1)
        if "log_sum_sq_probs" in metrics:
            found["log_sum_sq_probs"] = (2 * logs).logsumexp(-1)
        if "mean_logits" in metrics:
            found["mean_logits"] = scores.mean(-1)
        if "is_top1" in metrics:
            found["is_top1"] = logs.argmax(-1) == targets
    return found
