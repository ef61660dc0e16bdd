"""Keys and values of a transformers batch: read once where rows share them, written in place, kept for what follows.

transformers' own cache repeats a shared prefix for every row and is copied whole at every step: a step of 64 rows after
500 shared tokens spends most of its time on that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

ATTENTION = "shared_prefix"  # our name among transformers' implementations of attention

ROOM = 64  # tokens that a buffer is longer than it has to be


@dataclass(frozen=True)
class Kept:
    """A finished row: its tokens, of which the first `prompt` were asked, and the keys and values of each layer,
    (heads, tokens, width), of those that stand behind the first `shared`, which its batch had in common."""

    tokens: list[int]
    prompt: int
    shared: int
    layers: list[tuple[Any, Any]]

    def begins(self, tokens: Sequence[int]) -> bool:
        """Whether a request goes on from this row's."""
        return len(tokens) > self.prompt and tokens[: self.prompt] == self.tokens[: self.prompt]

    def common(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens of a request are known here; one is always left for the model to read."""
        most = min(len(self.tokens), len(tokens) - 1)
        return next((i for i in range(self.prompt, most) if self.tokens[i] != tokens[i]), most)


@cache
def _growing() -> type:
    import torch
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):
        """As DynamicLayer, but for two things. The rows' own tokens lie in a buffer with room behind the last one, so
        that a step writes its token and copies no other. And what all rows share, `shared` (1, heads, tokens, width),
        is there once: a step's keys only name it, for shared_attention."""

        keys: Any
        values: Any
        shared: tuple[Any, Any] | None = None

        def write(self, key_states: Any, value_states: Any) -> None:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.buffers: list[Any] = [self.keys, self.values]
            self.keys = self._appended(0, self.keys, key_states)
            self.values = self._appended(1, self.values, value_states)

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.write(key_states, value_states)
            if self.shared is None:
                return self.keys, self.values
            if (
                key_states.shape[-2] > 1
            ):  # many tokens are read: attention takes longer than this copy
                parts = zip(self.shared, (self.keys, self.values), strict=True)
                keys, values = (
                    torch.cat([one.expand(len(own), -1, -1, -1), own], dim=-2) for one, own in parts
                )
                return keys, values
            keys: Any = self.keys[:]  # a tensor of its own to hang the name on
            keys.shared = self.shared
            return keys, self.values

        def _appended(self, which: int, old: Any, new: Any) -> Any:
            before, buffer = old.shape[-2] if old.numel() else 0, self.buffers[which]
            after = before + new.shape[-2]
            # rows that were selected or repeated lie in memory of their own
            if not before or old.data_ptr() != buffer.data_ptr() or after > buffer.shape[-2]:
                buffer = self.buffers[which] = new.new_empty(
                    *new.shape[:-2], after + ROOM, new.shape[-1]
                )
                if before:
                    buffer[..., :before, :] = old
            buffer[..., before:after, :] = new
            return buffer[..., :after, :]

        def get_seq_length(self) -> int:
            return super().get_seq_length() + (self.shared[0].shape[-2] if self.shared else 0)

        def reorder_cache(self, beam_idx: Any) -> None:
            if super().get_seq_length():
                super().reorder_cache(beam_idx)

    return Growing


def shared_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Any, None]:
    """transformers' sdpa, but for a step of rows with shared keys: these are read once for all rows. And where tokens
    are read on a CPU, no key is repeated for the heads that look at it: torch's kernel does without.

    In a step: `query` (rows, heads, 1, width); `key` and `value` (rows, key heads, tokens, width), of each row's own
    tokens; `attention_mask` (rows, 1, 1, shared and own tokens), true where a row may look, or None: everywhere.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if (shared := getattr(key, "shared", None)) is None:
        reads = query.shape[-2] > 1 and attention_mask is not None
        if (
            reads
            and query.device.type == "cpu"
            and more.get("position_bias") is None
            and more.get("softcap") is None
        ):
            found = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attention_mask, scale=scaling, enable_gqa=True
            )
            return found.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
    rows, heads, _, width = query.shape
    keys, values = shared  # (1, key heads, tokens, width)
    attend = attended_on_cpu if query.device.type == "cpu" else attended
    scale, key_heads, before = (
        width**-0.5 if scaling is None else scaling,
        keys.shape[1],
        keys.shape[-2],
    )
    groups = (
        query.reshape(rows, key_heads, -1, width).transpose(0, 1).reshape(1, key_heads, -1, width)
    )
    found, weight = (
        one.view(key_heads, rows, -1, *one.shape[3:])
        .transpose(0, 1)
        .reshape(rows, heads, 1, *one.shape[3:])
        for one in attend(groups, keys, values, None, scale)
    )
    mask = None if attention_mask is None else attention_mask[..., before:]
    own, own_weight = attend(query, key, value, mask, scale)
    share = torch.sigmoid(weight - own_weight).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, found, share).transpose(1, 2), None


def attended(query: Any, key: Any, value: Any, mask: Any, scale: float) -> tuple[Any, Any]:
    """Attention, (rows, heads, queries, width), and the logarithm of the sum of each query's weights, (rows, heads,
    queries), by which attention to one part of the tokens is put together with that to another."""
    import torch

    rows, key_heads = key.shape[:2]
    grouped = (query * scale).reshape(
        rows, key_heads, -1, query.shape[-1]
    )  # the heads that look at one key head
    scores = grouped @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    scores = scores.float()
    found = scores.softmax(-1).to(value.dtype) @ value
    return found.view(query.shape), scores.logsumexp(-1).view(query.shape[:-1])


def attended_on_cpu(query: Any, key: Any, value: Any, mask: Any, scale: float) -> tuple[Any, Any]:
    """The same, by torch's kernel, which reads each key once and writes no scores."""
    import torch

    bias = None if mask is None else query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scale
    )


def share(model: Any) -> None:
    """Has a model attend by shared_attention where it attends by transformers' sdpa, to all tokens in every layer."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    plain = model.config._attn_implementation == "sdpa" and model._supports_attention_backend
    if plain and keeps(open_cache(model.config)):
        AttentionInterface.register(ATTENTION, shared_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


def shares(config: Any) -> bool:
    """Whether a model of this config has what rows share there once, also while they are decoded."""
    return config._attn_implementation == ATTENTION


def open_cache(config: Any) -> Any:
    """An empty cache for a model of this config. Layers that see all tokens are Growing, others as transformers has
    them."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    opened = DynamicCache(config=config)
    opened.layers = [
        _growing()() if type(layer) is DynamicLayer else layer for layer in opened.layers
    ]
    return opened


def keeps(opened: Any) -> bool:
    """Whether rows can be kept: every layer has the keys and values of all tokens."""
    return bool(opened.layers) and all(isinstance(layer, _growing()) for layer in opened.layers)


def behind(config: Any, prefix: Any, rows: int) -> Any:
    """A cache for so many rows that all go on from the one row of the cache `prefix`."""
    import copy

    if shares(config):
        opened = open_cache(config)
        for layer, known in zip(opened.layers, prefix.layers, strict=True):
            layer.shared = (known.keys, known.values)
        return opened
    opened = copy.deepcopy(prefix)
    opened.batch_repeat_interleave(rows)
    return opened


def keep(opened: Any, row: int, mask: Any, tokens: list[int], prompt: int) -> Kept:
    """A row of a cache, whose `tokens` stand where `mask` is 1, (tokens,). The model has not read the last one."""
    first = opened.layers[0]
    shared = first.shared[0].shape[-2] if first.shared else 0
    places = mask[shared : first.get_seq_length()].nonzero()[: len(tokens) - shared, 0]
    layers = [(layer.keys[row][:, places], layer.values[row][:, places]) for layer in opened.layers]
    return Kept(tokens[: shared + len(places)], prompt, shared, layers)


def append(opened: Any, rows: Sequence[Kept], start: int, ends: Sequence[int]) -> Any:
    """Writes the tokens of each row from `start` to its end behind those that are there, padded on the left.

    Returns their mask, (rows, width).
    """
    import torch

    lengths = [end - start for end in ends]
    width = max(lengths)
    for index, layer in enumerate(opened.layers):
        blocks = []
        for which in (0, 1):
            heads, _, size = rows[0].layers[index][which].shape
            # zeros: what is masked must still be a number
            blocks.append(
                block := rows[0].layers[index][which].new_zeros(len(rows), heads, width, size)
            )
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                first = start - row.shared
                block[place, :, width - length :] = row.layers[index][which][
                    :, first : first + length
                ]
        layer.write(*blocks)
    device = rows[0].layers[0][0].device
    return (
        torch.arange(width, device=device) >= width - torch.tensor(lengths, device=device)[:, None]
    ).long()
