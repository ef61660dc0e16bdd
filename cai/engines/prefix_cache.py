"""The keys and values of a transformers batch: read once where rows share them, written in place.

transformers' own cache repeats a shared prefix for every row, and is copied whole at every step. A
step of 64 rows after 500 shared tokens spends most of its time on that.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

KeysValues = tuple[Tensor, Tensor]

ATTENTION = "shared_prefix"  # our name among transformers' implementations of attention

SPARE_TOKENS = 64  # room for further tokens in a new buffer


@dataclass(frozen=True)
class FinishedRow:
    """A row whose reply has ended, for a later request that begins with the same tokens."""

    ids: list[int]  # the prompt's tokens, then the reply's
    prompt_length: int
    shared_length: int  # first tokens that the whole batch shared, which are not in `layers`
    layers: list[KeysValues]  # of the other tokens, for each layer (key heads, tokens, width)

    def begins(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a longer prompt begins with this row's prompt."""
        length = self.prompt_length
        return len(prompt_ids) > length and prompt_ids[:length] == self.ids[:length]

    def common_length(self, prompt_ids: Sequence[int]) -> int:
        """How many first tokens of the prompt this row has. The model reads at least the last."""
        longest = min(len(self.ids), len(prompt_ids) - 1)
        for place in range(self.prompt_length, longest):
            if self.ids[place] != prompt_ids[place]:
                return place
        return longest

    def between(self, start: int, end: int) -> list[KeysValues]:
        """The keys and values of its tokens from `start` to `end`, for each layer."""
        first, last = start - self.shared_length, end - self.shared_length
        return [(keys[:, first:last], values[:, first:last]) for keys, values in self.layers]


class GrowingLayer(DynamicLayer):
    """A DynamicLayer with two differences.

    The tokens of each row lie in a buffer with room behind the last one, so a step writes its own
    token and copies no other. And the tokens that all rows share are there once, in `shared`,
    (1, key heads, tokens, width): in a step the keys only carry them to shared_attention.
    """

    keys: Tensor  # (rows, key heads, tokens, width)
    values: Tensor
    shared: KeysValues | None = None
    _key_buffer: Tensor
    _value_buffer: Tensor

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        """Writes further tokens behind those that are there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer, self._value_buffer = self.keys, self.values
        self._key_buffer, self.keys = _append(self._key_buffer, self.keys, key_states)
        self._value_buffer, self.values = _append(self._value_buffer, self.values, value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        self.write(key_states, value_states)
        if self.shared is None:
            return self.keys, self.values
        if key_states.shape[-2] > 1:  # many tokens are read: attention takes longer than this copy
            shared_keys, shared_values = (
                states.expand(len(self.keys), -1, -1, -1) for states in self.shared
            )
            keys = torch.cat([shared_keys, self.keys], dim=-2)
            return keys, torch.cat([shared_values, self.values], dim=-2)
        # transformers gives attention the keys and values, and no cache. So the keys, as a tensor
        # object of their own, carry the shared ones in an attribute. If transformers begins to put
        # another object in their place, test_the_keys_carry_what_rows_share_to_attention fails.
        keys = self.keys[:]
        keys.shared = self.shared  # pyright: ignore[reportAttributeAccessIssue]
        return keys, self.values

    def get_seq_length(self) -> int:
        return super().get_seq_length() + (self.shared[0].shape[-2] if self.shared else 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if super().get_seq_length():
            super().reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]


def _append(buffer: Tensor, old: Tensor, new: Tensor) -> KeysValues:
    """The buffer, which may be a new one, and the old and new tokens as its first part."""
    start = old.shape[-2] if old.numel() else 0
    end = start + new.shape[-2]
    # rows that were selected or repeated lie in memory of their own
    in_buffer = start and old.data_ptr() == buffer.data_ptr()
    if not in_buffer or end > buffer.shape[-2]:
        buffer = new.new_empty(*new.shape[:-2], end + SPARE_TOKENS, new.shape[-1])
        if start:
            buffer[..., :start, :] = old
    buffer[..., start:end, :] = new
    return buffer, buffer[..., :end, :]


def shared_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa, with two differences.

    In a step of rows with shared keys, these are read once for all rows. And where a CPU reads a
    prompt, no key is repeated for the heads that look at it: torch's kernel does without.

    In a step: `query` (rows, heads, 1, width); `key` and `value` (rows, key heads, tokens, width),
    of each row's own tokens; `attention_mask` (rows, 1, 1, shared and own tokens), true where a row
    may look, or None: everywhere. Returns (rows, 1, heads, width).
    """
    if (shared := getattr(key, "shared", None)) is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _step_attention(query, (key, value), shared, attention_mask, scale), None
    reads_prompt = query.shape[-2] > 1 and attention_mask is not None
    extras = (kwargs.get("position_bias"), kwargs.get("softcap"))
    if reads_prompt and query.device.type == "cpu" and extras == (None, None):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


def _step_attention(
    query: Tensor,
    row_states: KeysValues,
    shared_states: KeysValues,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Attends to the shared tokens and to each row's own, and joins the two by their weights."""
    rows, heads, _, width = query.shape
    key_heads, shared_length = shared_states[0].shape[1:3]
    attend = attend_on_cpu if query.device.type == "cpu" else attend_by_products
    # the queries of all rows become queries of one row: (1, key heads, rows and their heads, width)
    grouped = query.reshape(rows, key_heads, -1, width).transpose(0, 1)
    output, log_sum = attend(grouped.reshape(1, key_heads, -1, width), *shared_states, None, scale)
    output = output.view(key_heads, rows, -1, width).transpose(0, 1).reshape(query.shape)
    log_sum = log_sum.view(key_heads, rows, -1).transpose(0, 1).reshape(rows, heads, 1)
    row_mask = None if mask is None else mask[..., shared_length:]
    row_output, row_log_sum = attend(query, *row_states, row_mask, scale)
    share = torch.sigmoid(log_sum - row_log_sum).unsqueeze(-1)  # float32, and so is the joining
    joined = torch.lerp(row_output.float(), output.float(), share.float())
    return joined.to(query.dtype).transpose(1, 2)


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention, (rows, heads, queries, width), and its log-sum-exp, (rows, heads, queries).

    Both are float32. The latter is the logarithm of the sum of a query's weights. It joins
    attention to one part of the tokens with attention to another.
    """
    rows, key_heads = key.shape[:2]
    # the heads that look at one key head stand together
    grouped = (query.float() * scale).reshape(rows, key_heads, -1, query.shape[-1])
    # in float32: a score of 10 that is rounded to bfloat16 changes its weight by 3 %
    scores = grouped @ key.float().transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    output = scores.softmax(-1) @ value.float()
    return output.view(query.shape), scores.logsumexp(-1).view(query.shape[:-1])


def attend_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same, by torch's kernel for CPUs, which reads each key once and writes no scores.

    The operator is private. torch 2.13 has no public one that gives the log-sum-exp on a CPU at
    this speed: scaled_dot_product_attention keeps it to itself, varlen_attn is for GPUs, and
    flex_attention has to be compiled. test_the_private_kernel_is_as_expected fails if it changes.
    """
    bias = None if mask is None else query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scale
    )


def use_shared_attention(model: PreTrainedModel) -> None:
    """Puts shared_attention in place of sdpa, in a model whose layers all see all tokens."""
    by_sdpa = model.config._attn_implementation == "sdpa" and model._supports_attention_backend
    if by_sdpa and holds_all_tokens(open_cache(model.config)):
        AttentionInterface.register(ATTENTION, shared_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


def shares_prefix(config: PretrainedConfig) -> bool:
    """Whether a model of this config reads a shared prefix once in a step, for all rows."""
    return config._attn_implementation == ATTENTION


def open_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache. Layers that see all tokens are GrowingLayers, others as transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def holds_all_tokens(cache: DynamicCache) -> bool:
    """Whether finished rows can be taken from it: every layer has every token's keys and values."""
    return 0 < len(cache.layers) == len(_growing(cache))


def _growing(cache: DynamicCache) -> list[GrowingLayer]:
    return [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]


def cache_after_prefix(config: PretrainedConfig, prefix: DynamicCache, rows: int) -> DynamicCache:
    """A cache for so many rows that all go on from the one row of the cache `prefix`."""
    if not shares_prefix(config):
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(rows)
        return cache
    cache = open_cache(config)
    for layer, prefix_layer in zip(_growing(cache), _growing(prefix), strict=True):
        layer.shared = (prefix_layer.keys, prefix_layer.values)
    return cache


def finished_row(
    cache: DynamicCache, row: int, mask: Tensor, ids: list[int], prompt_length: int
) -> FinishedRow:
    """Takes a row out of a cache. Its `ids` stand where `mask`, (tokens,), is 1.

    The model has not read the last of them.
    """
    layers = _growing(cache)
    shared_length = layers[0].shared[0].shape[-2] if layers[0].shared else 0
    row_mask = mask[shared_length : layers[0].get_seq_length()]
    places = row_mask.nonzero()[: len(ids) - shared_length, 0]
    states = [(layer.keys[row][:, places], layer.values[row][:, places]) for layer in layers]
    return FinishedRow(ids[: shared_length + len(places)], prompt_length, shared_length, states)


def append_rows(
    cache: DynamicCache, rows: Sequence[FinishedRow], start: int, ends: Sequence[int]
) -> Tensor:
    """Writes the tokens of each row from `start` to its end into a cache, padded on the left.

    Returns their mask, (rows, width).
    """
    lengths = torch.tensor([end - start for end in ends])
    width = int(lengths.max())
    states = [row.between(start, end) for row, end in zip(rows, ends, strict=True)]
    for number, layer in enumerate(_growing(cache)):
        keys = _pad_left([layers[number][0] for layers in states], width)
        layer.write(keys, _pad_left([layers[number][1] for layers in states], width))
    device = rows[0].layers[0][0].device
    return (torch.arange(width) >= width - lengths[:, None]).long().to(device)


def _pad_left(states: Sequence[Tensor], width: int) -> Tensor:
    """(rows, key heads, width, size) of each row's (key heads, tokens, size)."""
    heads, _, size = states[0].shape
    # zeros, since what is masked must be a number too
    padded = states[0].new_zeros(len(states), heads, width, size)
    for place, row_states in enumerate(states):
        padded[place, :, width - row_states.shape[1] :] = row_states
    return padded
