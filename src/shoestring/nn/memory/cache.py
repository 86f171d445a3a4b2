"""The cache of a model with a memory: keys and values of all layers, and for those that search their keys unrotated.

What a slot holds is what its tokens may find: the newest entries of its document, before the block they stand in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoestring.nn.cache import KVCache, LayerCache
from shoestring.nn.slots import SlotRange


class MemoryCache(KVCache):
    """searching: positions of the layers that search."""

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_width: int,
        searching: list[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(layers, batch, capacity, kv_heads, head_width, device, dtype)
        shape = (batch, kv_heads, capacity, head_width)
        self.searched = [torch.empty(shape, device=device, dtype=dtype) for _ in searching]
        self.tensors["searched"] = self.searched
        self._place = {position: place for place, position in enumerate(searching)}

    def layer(self, index: int) -> Any:
        if index in self._place:
            return MemoryLayerCache(self, index, self._place[index])
        return LayerCache(self, index)


class MemoryLayerCache(LayerCache):
    """place: of the layer among those that search."""

    def __init__(self, cache: MemoryCache, index: int, place: int):
        super().__init__(cache, index)
        self.memory, self.place = cache, place

    def append_searched(self, slots: SlotRange, k_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write unrotated keys, after `append`; -> all that these slots hold, keys unrotated, and values."""
        keys = slots.append(self.memory.searched[self.place], k_BKTC)
        return keys, self.memory.values[self.index][slots.slots][:, :, : slots.longest]
