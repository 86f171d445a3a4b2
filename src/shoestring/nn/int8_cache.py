"""A cache of keys and values in int8, with a scale for each token's head: a quarter of float32's memory and reading.

x ≈ scale · code, scale = max|x| / 127 over a head's width C. Attention gets floats again, [B, K, S, C]; a native pass
(decode.cpp) reads the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.cache import Cache
from shoestring.nn.slots import SlotRange

_SMALLEST = 1e-30  # a head without a larger number counts as zeros


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., C] -> codes int8 [..., C] and scales float32 [..., 1]."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > _SMALLEST, torch.full_like(largest, 127) / largest, 0)
    return (x * inverse).round_().to(torch.int8), largest / 127


class Int8KVCache(Cache):
    """For grouped-query attention, as `KVCache`. dtype: of what attention gets."""

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        def each(width: int, kind: torch.dtype) -> list[Tensor]:
            shape = (batch, kv_heads, capacity, width)
            return [torch.empty(shape, device=device, dtype=kind) for _ in range(layers)]

        self.keys, self.values = each(head_width, torch.int8), each(head_width, torch.int8)
        self.key_scales, self.value_scales = each(1, torch.float32), each(1, torch.float32)
        self.dtype = dtype
        groups = {"keys": self.keys, "values": self.values}
        super().__init__(batch, capacity, groups | {"key_scales": self.key_scales, "value_scales": self.value_scales})

    def layer(self, index: int) -> Int8LayerCache:
        return Int8LayerCache(self, index)


class Int8LayerCache:
    """One layer's view of it, as its attention sees it."""

    def __init__(self, cache: Int8KVCache, index: int):
        self.cache = cache
        self.index = index

    def append(self, slots: SlotRange, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """As `LayerCache.append`."""
        cache, index = self.cache, self.index
        keys = self._append(slots, cache.keys[index], cache.key_scales[index], k_BKTC)
        return keys, self._append(slots, cache.values[index], cache.value_scales[index], v_BKTC)

    def _append(self, slots: SlotRange, codes: Tensor, scales: Tensor, new: Tensor) -> Tensor:
        new_codes, new_scales = rounded(new)
        held = slots.append(codes, new_codes).to(self.cache.dtype)
        return held.mul_(slots.append(scales, new_scales).to(self.cache.dtype))
