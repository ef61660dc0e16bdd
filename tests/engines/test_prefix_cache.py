"""Attention to keys that rows share: the same as to keys that each row has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from cai.engines import prefix_cache as cache

ROWS, HEADS, KEY_HEADS, SHARED, OWN, WIDTH = 5, 6, 2, 7, 4, 8


@pytest.mark.parametrize(
    "attend", [cache.attend_by_products, cache.attend_on_cpu], ids=["products", "kernel"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_with_shared_keys_is_plain_attention(
    attend: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
):
    """Both ways: a GPU's is by products, which a CPU can do too."""
    monkeypatch.setattr(cache, "attend_on_cpu", attend)
    generator = torch.Generator().manual_seed(0)
    query, keys, values, key, value = (
        torch.randn(rows, heads, tokens, WIDTH, generator=generator)
        for rows, heads, tokens in [
            (ROWS, HEADS, 1),
            *[(1, KEY_HEADS, SHARED)] * 2,
            *[(ROWS, KEY_HEADS, OWN)] * 2,
        ]
    )
    mask = torch.ones(ROWS, 1, 1, SHARED + OWN, dtype=torch.bool)
    for row in range(ROWS):
        mask[row, ..., SHARED : SHARED + row % OWN] = False  # each row's padding
    whole_keys, whole_values = (
        torch.cat([one.expand(ROWS, -1, -1, -1), own], -2)
        for one, own in ((keys, key), (values, value))
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, whole_keys, whole_values, mask if masked else None, scale=0.3, enable_gqa=True
    )
    key.shared = (keys, values)  # pyright: ignore[reportAttributeAccessIssue]
    found, _ = cache.shared_attention(
        torch.nn.Module(), query, key, value, mask if masked else None, scaling=0.3
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_the_keys_carry_what_rows_share_to_attention(tiny_model: Path):
    """transformers hands attention the very tensor object that the cache's layer returned."""
    arrived: list[Any] = []

    def attention(module: torch.nn.Module, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        if query.shape[-2] == 1:
            arrived.append(getattr(key, "shared", None))
        return cache.shared_attention(module, query, key, *args, **kwargs)

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 3]])
    with torch.inference_mode():
        expected = model(ids).logits[:, -1]
        cache.use_shared_attention(model)
        AttentionInterface.register(cache.ATTENTION, attention)
        try:
            prefix = cache.open_cache(model.config)
            model(ids[:1, :4], past_key_values=prefix)
            rows = cache.cache_after_prefix(model.config, prefix, 2)
            step = model(ids[:, 4:], past_key_values=rows).logits[:, -1]
        finally:
            AttentionInterface.register(cache.ATTENTION, cache.shared_attention)
    assert len(arrived) == model.config.num_hidden_layers and None not in arrived
    torch.testing.assert_close(step, expected)


KERNEL = (
    "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, "
    "float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) "
    "-> (Tensor output, Tensor logsumexp)"
)


def test_the_private_kernel_is_as_expected():
    """Its signature, its output, and its natural log-sum-exp, (rows, heads, queries)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert str(kernel.default._schema) == KERNEL
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, 3, WIDTH, generator=generator)
    key, value = torch.randn(2, ROWS, KEY_HEADS, OWN, WIDTH, generator=generator)
    mask = torch.ones(ROWS, 1, 3, OWN, dtype=torch.bool)
    mask[0, ..., :2] = False
    output, log_sum = cache.attend_on_cpu(query, key, value, mask, 0.3)
    keys, values = (states.repeat_interleave(HEADS // KEY_HEADS, 1) for states in (key, value))
    scores = (0.3 * query @ keys.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1))
    torch.testing.assert_close(output, scores.softmax(-1) @ values)


def test_in_bfloat16_a_step_is_as_exact_as_sdpa(monkeypatch: pytest.MonkeyPatch):
    """On a GPU, attend_by_products attends to both parts."""
    monkeypatch.setattr(cache, "attend_on_cpu", cache.attend_by_products)
    torch.manual_seed(0)
    query = 4 * torch.randn(8, 4, 1, 64, dtype=torch.float64)
    shared = [torch.randn(1, 2, 300, 64, dtype=torch.float64) for _ in range(2)]
    own = [torch.randn(8, 2, 50, 64, dtype=torch.float64) for _ in range(2)]
    tensors = [tensor.bfloat16() for tensor in (query, *shared, *own)]
    query, *states = tensors
    keys, values = (
        torch.cat([states[part].expand(8, -1, -1, -1), states[2 + part]], dim=2) for part in (0, 1)
    )

    def plain(dtype: torch.dtype) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query.to(dtype), keys.to(dtype), values.to(dtype), enable_gqa=True
        )

    exact = plain(torch.float64)
    step = cache._step_attention(
        query, (states[2], states[3]), (states[0], states[1]), None, 64**-0.5
    )
    errors = [
        float((output.double() - exact).norm() / exact.norm())
        for output in (step.transpose(1, 2), plain(torch.bfloat16))
    ]
    print("relative errors: step, sdpa", errors)
    assert errors[0] <= 1.25 * errors[1]
