"""The cache of multi-head latent attention: one vector of R + Cr numbers per token, for all heads together.

latents: [B, S, R+Cr] for each layer: the normed latent, then the rotated rotary key. Attention reads them as they
are (absorbed), or expands them to keys and values of each head when many queries share the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.cache import Cache
from shoestring.nn.slots import SlotRange


class LatentCache(Cache):
    """numbers: R + Cr."""

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        numbers: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (batch, capacity, numbers)
        self.latents = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        super().__init__(batch, capacity, {"latents": self.latents})

    def layer(self, index: int) -> LatentLayerCache:
        return LatentLayerCache(self, index)


class LatentLayerCache:
    """One layer's view of a `LatentCache`."""

    def __init__(self, cache: LatentCache, index: int):
        self.cache = cache
        self.index = index

    def append(self, slots: SlotRange, latents_BTW: Tensor) -> Tensor:
        """Write T tokens behind each of these slots; return their latents up to the longest."""
        return slots.append(self.cache.latents[self.index], latents_BTW)
