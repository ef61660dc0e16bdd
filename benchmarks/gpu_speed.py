"""Parts of benchmarks/gpu.py on tensors and random weights: attention, and a training step."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

from cai.engines.prefix_cache import shared_attention
from cai.training.memory import GIB, Tuning, forecast, read_shape

Rows = Iterator[Mapping[str, Any]]

# Qwen2.5-7B's, and one of its form for --small
SHAPE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
SMALL_SHAPE = {
    "hidden_size": 112,
    "intermediate_size": 592,
    "num_hidden_layers": 2,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "vocab_size": 512,
}


def milliseconds(work: Callable[[], object], device: str, times: int = 20) -> float:
    """The median of several runs, after three that do not count."""
    taken = []
    for _ in range(times + 3):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        taken.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(taken[3:]), 3)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def attention(device: str, small: bool, model: Sequence[str]) -> Rows:
    """Of SmolLM2-135M's heads and of Qwen2.5-7B's."""
    rows, shared_tokens, own_tokens = (4, 64, 16) if small else (64, 512, 64)
    for heads, key_heads, width in ((9, 3, 64), (28, 4, 128)):
        torch.manual_seed(0)
        query = 2 * torch.randn(rows, heads, 1, width, device=device)
        own = [torch.randn(rows, key_heads, own_tokens, width, device=device) for _ in "kv"]
        shared = [torch.randn(1, key_heads, shared_tokens, width, device=device) for _ in "kv"]
        for dtype in (torch.bfloat16, torch.float32):
            typed = query.to(dtype)
            keys, values = (states.to(dtype) for states in own)
            typed_shared = tuple(states.to(dtype) for states in shared)
            keys.shared = typed_shared  # pyright: ignore[reportAttributeAccessIssue]
            whole = joined(typed_shared, (keys, values))
            expected = by_sdpa(typed.double(), *(states.double() for states in whole))

            def by_cai(typed=typed, keys=keys, values=values) -> Tensor:
                return shared_attention(torch.nn.Module(), typed, keys, values, None)[0]

            def by_torch(typed=typed, whole=whole) -> Tensor:
                return by_sdpa(typed, *whole)

            yield {
                "case": f"{rows} rows, {heads} heads, {str(dtype).removeprefix('torch.')}",
                "cai ms": milliseconds(by_cai, device),
                "sdpa ms": milliseconds(by_torch, device),
                "cai error": relative_error(by_cai(), expected),
                "sdpa error": relative_error(by_torch(), expected),
            }


def joined(shared: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
    """Keys and values with the shared tokens repeated in each row."""
    return [
        torch.cat([first.expand(len(rest), -1, -1, -1), rest], dim=-2)
        for first, rest in zip(shared, own, strict=True)
    ]


def by_sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, keys, values, enable_gqa=True).transpose(1, 2)


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float(f"{((output.double() - expected).norm() / expected.norm()).item():.1e}")


def step(device: str, small: bool, model: Sequence[str]) -> Rows:
    """bfloat16 weights, a float32 adapter, bfloat16 autocast."""
    length, rank = (64, 4) if small else (2048, 64)
    shape: dict[str, Any] = SMALL_SHAPE if small else SHAPE
    config = Qwen2Config(**shape, max_position_embeddings=4096)
    room = torch.cuda.mem_get_info()[0] if device == "cuda" else None
    sizes = [rows for rows in (4, 2, 1) if room is None or expects(config, rows, length) < room]
    if not sizes:
        needed = expects(config, 1, length) / GIB
        yield {"case": "LoRA", "left out": f"one row would need {needed:.1f} GiB"}
        return
    rows = sizes[0]
    with torch.device(device):
        tuned: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    add_fused_lm_head(tuned, outputs=("log_probs", "entropy", "is_top1"))
    lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(tuned, lora).train()
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=device == "cuda")
    ids = torch.randint(10, 500, (rows, length), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    def train_step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = tuned(**inputs, fused_lm_head=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for checkpointing in (True, False):
        if checkpointing:
            tuned.gradient_checkpointing_enable({"use_reentrant": False})
            tuned.enable_input_require_grads()
        else:
            tuned.gradient_checkpointing_disable()
        expected = expects(config, rows, length, rank, checkpointing) / GIB
        kind = "with" if checkpointing else "without"
        yield {
            "case": f"{rows} rows of {length} tokens, {kind} checkpointing",
            **measure_step(train_step, device, rows * length),
            "forecast GiB": round(expected, 1),
        }


def measure_step(train_step: Callable[[], None], device: str, tokens: int) -> dict[str, Any]:
    if device != "cuda":
        return {"tokens/s": round(1e3 * tokens / milliseconds(train_step, device, 2))}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        speed = round(1e3 * tokens / milliseconds(train_step, device, 4))
    except torch.OutOfMemoryError:
        return {"tokens/s": "out of memory"}
    return {"tokens/s": speed, "peak GiB": round(torch.cuda.max_memory_allocated() / GIB, 1)}


def expects(
    config: Qwen2Config, rows: int, length: int, rank: int = 64, checkpointing: bool = True
) -> float:
    """cai's forecast of the step, in bytes."""
    shape = read_shape(config.to_dict())
    assert shape is not None
    lora = {"r": rank, "target_modules": "all-linear"}
    known = {"weight_bytes": 2, "attention": "sdpa", "checkpointing": checkpointing}
    return forecast(shape, Tuning(rows=rows, tokens=length, lora=lora, **known)).total
