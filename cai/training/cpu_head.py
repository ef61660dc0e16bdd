"""A model in training where there is no Triton, as on a CPU: no work for padding, nor for tokens that are not trained.

trl's output layer then scores prompts and padding too, multiplies by the vocabulary a second time on the way back, and
makes some ten passes over each tile of scores. Plain torch does the same for the trained tokens, for less. And where a
row stands beside a longer one, it need not go through the layers at its length (docs/performance.md has the figures).
"""

import functools
import types
from typing import Any

METRICS = (
    "entropy",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
)  # what trl may ask for beside log-probabilities

SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)

ELSEWHERE = {
    "shift_labels",
    "num_items_in_batch",
    "output_router_logits",
}  # arguments that trl's own way is left to

SCORES = (
    2**26
)  # float32 numbers at once, a quarter of a gigabyte: of more tokens, the scores are computed twice

ALIKE = 0.8  # of the longest row's length: so long rows go through the layers with it


def lean_head(model: Any, metrics: tuple[str, ...] = METRICS) -> None:
    """Puts the lean layer before the one that trl has fused into `model` (or into what peft has wrapped).

    Both answer `model(..., labels=labels, fused_lm_head=True)` with trl's FusedCausalLMOutput. trl's own stays on
    accelerators with Triton, on shards, for experts' router loss and where a model changes its scores afterwards.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1) for name in SCALES)
    if (
        scaled
        or getattr(config, "output_router_logits", False)
        or base.device.type not in ("cpu", "mps")
    ):
        return
    fused = getattr(base.forward, "fused", base.forward)  # the head may be there already

    @functools.wraps(type(base).forward)  # transformers reads its signature
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **named: Any
    ) -> Any:
        if fused_lm_head and labels is not None and not args and not _sharded(self):
            given = {
                name: value for name, value in named.items() if value is not None
            }  # peft passes every argument on
            if not ELSEWHERE & given.keys():
                return _output(self, labels, given | {"use_cache": False}, metrics)
        return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **named)

    lean: Any = forward
    lean.fused = fused
    base.forward = types.MethodType(lean, base)


def _sharded(model: Any) -> bool:
    """FSDP2's and ZeRO-3's shards are gathered by all processes at once, and these have batches of their own."""
    return any(
        type(one).__name__ == "DTensor" or hasattr(one, "ds_id") for one in model.parameters()
    )


def _output(model: Any, labels: Any, given: dict[str, Any], metrics: tuple[str, ...]) -> Any:
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    targets = labels[:, 1:]
    trained = targets != -100
    places = torch.arange(targets.numel(), device=targets.device).view_as(targets)
    states, where = [], []
    for rows, inputs in _alike(given):
        hidden = model.base_model(**inputs).last_hidden_state[:, :-1]
        ours = trained[rows, : hidden.shape[1]]
        states.append(hidden[ours])
        where.append(places[rows, : hidden.shape[1]][ours])
    hidden, found = torch.cat(states), torch.cat(where)
    head = model.get_output_embeddings()
    figures = _scored(hidden, head.weight, head.bias, targets.flatten()[found], metrics)
    # scatter keeps a batch without a trained token connected to the model
    whole = {
        name: x.new_zeros(targets.numel()).scatter(0, found, x).view(targets.shape)
        for name, x in figures.items()
    }
    loss = -whole["log_probs"].sum() / trained.sum().clamp(min=1)
    return FusedCausalLMOutput(loss=loss, label_mask=trained, **whole)


def _alike(given: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """A batch in groups of rows that are alike in length, without the padding that they need no more."""
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    whole = [(slice(None), given)]
    if ids is None or mask is None or given.keys() != {"input_ids", "attention_mask", "use_cache"}:
        return whole
    lengths = mask.sum(1).tolist()
    if mask.dim() != 2 or not all(
        bool(row[:length].all()) for row, length in zip(mask, lengths, strict=True)
    ):
        return whole  # padding on the left
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    groups = [[order[0]]]
    for row in order[1:]:
        if lengths[row] < ALIKE * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    cut = [(rows, lengths[rows[0]]) for rows in groups]
    return [
        (rows, given | {"input_ids": ids[rows, :end], "attention_mask": mask[rows, :end]})
        for rows, end in cut
    ]


def _scored(
    hidden: Any, weight: Any, bias: Any, targets: Any, metrics: tuple[str, ...]
) -> dict[str, Any]:
    """Each token's figures, shape (tokens,): `hidden` is (tokens, hidden units), `targets` (tokens,)."""
    import torch
    from torch.utils.checkpoint import checkpoint

    rows = max(1, SCORES // len(weight))
    if len(targets) <= rows:
        return _figures(hidden, weight, bias, targets, metrics)
    parts: list[Any] = [
        checkpoint(_figures, *part, metrics, use_reentrant=False, preserve_rng_state=False)
        for part in (
            (h, weight, bias, t)
            for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
        )
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(
    hidden: Any, weight: Any, bias: Any, targets: Any, metrics: tuple[str, ...]
) -> dict[str, Any]:
    import torch

    scores = torch.nn.functional.linear(hidden, weight, bias).float()
    # log_softmax sums the vocabulary one number after the other: on a CPU small ones are lost, 2e-5 of SmolLM2's loss
    total = scores.logsumexp(-1)
    found = {"log_probs": scores.gather(1, targets[:, None])[:, 0] - total}
    with torch.no_grad():
        if "entropy" in metrics:
            found["entropy"] = total - (scores - total[:, None]).exp_().mul_(scores).sum(-1)
        if "log_sum_sq_probs" in metrics:
            found["log_sum_sq_probs"] = (2 * scores).logsumexp(-1) - 2 * total
        if "mean_logits" in metrics:
            found["mean_logits"] = scores.mean(-1)
        if "is_top1" in metrics:
            found["is_top1"] = scores.argmax(-1) == targets
    return found
