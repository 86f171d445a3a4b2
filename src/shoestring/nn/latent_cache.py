"""The cache of multi-head latent attention: one vector of R + Cr numbers per token, for all heads together.

latents: [B, S, R+Cr] for each layer: the normed latent, then the rotated rotary key. Attention reads them as they
are (absorbed), or expands them to keys and values of each head when many queries share the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.cache import Cache, write_rows


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

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row held before this pass."""
        return self.cache.lengths

    def append(self, latents_BTW: Tensor, counts: list[int]) -> Tensor:
        """Write the first counts[b] of T tokens behind row b; return the latents up to the longest row."""
        held = self.cache.latents[self.index]
        longest = write_rows(self.cache, self.index, [(held, latents_BTW)], counts)
        return held[:, :longest]
