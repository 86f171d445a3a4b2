"""A short causal convolution over the embedding: each component of a token's vector takes some of the same component of
the tokens before it (depthwise, as in Primer's attention, arXiv 2109.08668; RWKV's token shift is its shortest form).

    y_t = x_t + Σ_k w_k · x_{t−k}, k = 1 .. K − 1, within the document;  x_BTD -> y_BTD

The first layer then knows the last characters or pieces of words without having to learn to attend to them. With a
cache the embeddings of a slot's earlier tokens are kept in it, D numbers for each token. `convolve_plain` is the twin
that defines the result.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.nn.cache import Cache, CacheRows
from shoestring.nn.context import Context

HELD = "embeddings"  # name of the cache's tensor, [slots, 1, capacity, D]


def convolve_plain(x_BTD: Tensor, weight_KD: Tensor, positions_BT: Tensor) -> Tensor:
    """The definition, in ordinary autograd operations. positions_BT: within the document; may be [1, T]."""
    y_BTD = x_BTD
    for back, factor_D in enumerate(weight_KD, 1):
        earlier_BTD = F.pad(x_BTD, (0, 0, back, 0))[:, : x_BTD.shape[1]]
        y_BTD = y_BTD + torch.where((positions_BT >= back).unsqueeze(-1), earlier_BTD * factor_D, 0)
    return y_BTD


class _Convolve(torch.autograd.Function):
    """Keeps its input and the positions alone."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, positions)
        y = x.clone()
        for back in range(1, min(len(weight) + 1, x.shape[1])):
            y[:, back:].addcmul_(x[:, :-back] * weight[back - 1], _inside(positions, back, x.dtype))
        return y

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight, positions = ctx.saved_tensors
        gradient, weight_gradient = gradients[0], torch.zeros_like(weight)
        x_gradient = gradient.clone()
        for back in range(1, min(len(weight) + 1, x.shape[1])):
            part = gradient[:, back:] * _inside(positions, back, x.dtype)
            x_gradient[:, :-back].addcmul_(part, weight[back - 1])
            weight_gradient[back - 1] = part.mul_(x[:, :-back]).sum((0, 1))
        return x_gradient, weight_gradient, None


def _inside(positions_BT: Tensor, back: int, dtype: torch.dtype) -> Tensor:
    """1 where the token that many places before is of the same document, [B or 1, T − back, 1]."""
    return (positions_BT[:, back:] >= back).unsqueeze(-1).to(dtype)


class EmbeddingConvolution(nn.Module):
    """(x_BTD, context, cache) -> y_BTD. reach: K, tokens that each sees, itself included."""

    def __init__(self, reach: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(reach - 1, width))

    def initialize(self, random: torch.Generator, std: float) -> None:
        """Of both signs, so that a sum of embeddings tells which came when; each as long as the token's own in all."""
        values = torch.empty(self.weight.shape, dtype=torch.float32)
        self.weight.copy_(values.normal_(0.0, 1 / math.sqrt(len(self.weight)), generator=random))

    def forward(self, x_BTD: Tensor, context: Context, cache: Cache | CacheRows | None = None) -> Tensor:
        if cache is None:
            return _Convolve.apply(x_BTD, self.weight, context.positions_BT)
        held = (cache.cache if isinstance(cache, CacheRows) else cache).tensors[HELD][0]
        y_BTD = torch.zeros_like(x_BTD)
        for some in context.slot_ranges:
            rows_NSD = some.append(held, some.take(x_BTD.unsqueeze(1)))[:, 0]
            places_NT = some.context.positions_BT.expand(len(rows_NSD), -1)
            y_NTD = _read(rows_NSD, places_NT)
            for back, factor_D in enumerate(self.weight, 1):
                earlier_NTD = _read(rows_NSD, (places_NT - back).clamp(min=0)) * factor_D
                y_NTD = y_NTD + earlier_NTD * (places_NT >= back).unsqueeze(-1)
            some.take(y_BTD.unsqueeze(1)).copy_(y_NTD.unsqueeze(1))
        return y_BTD


def _read(rows_NSD: Tensor, places_NT: Tensor) -> Tensor:
    """[N, T, D]."""
    return rows_NSD.gather(1, places_NT.unsqueeze(-1).expand(-1, -1, rows_NSD.shape[-1]))


class Unmixed(nn.Module):
    """No convolution: the embedding as it is."""

    def forward(self, x_BTD: Tensor, context: Context, cache: Cache | CacheRows | None = None) -> Tensor:
        return x_BTD


def holding_embeddings(cache: Cache, width: int) -> Cache:
    """The cache with a place for embeddings too; positions count a slot's tokens, so it holds one for each."""
    assert cache.stride == 1
    like = next(iter(cache.tensors.values()))[0]
    cache.tensors[HELD] = [like.new_empty((cache.batch, 1, cache.capacity, width))]
    return cache
