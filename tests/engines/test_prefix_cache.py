"""Attention to keys that rows share: the same as to keys that each row has."""

from typing import Any

import pytest
import torch

from cai.engines import prefix_cache as cache

ROWS, HEADS, KEY_HEADS, SHARED, OWN, WIDTH = 5, 6, 2, 7, 4, 8


@pytest.mark.parametrize(
    "attend", [cache.attended, cache.attended_on_cpu], ids=["products", "kernel"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_with_shared_keys_is_plain_attention(
    attend: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
):
    """Both ways: a GPU's is by products, which a CPU can do too."""
    monkeypatch.setattr(cache, "attended_on_cpu", attend)
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
        None, query, key, value, mask if masked else None, scaling=0.3
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))
