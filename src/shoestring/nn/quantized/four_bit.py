"""4-bit linears: codes of two weights in a byte, uint8 [out, in/2], and a scale for each group of inputs.

    int4   W = lowest + scale·code, code 0 … 15: the even grid between the lowest and the highest weight of the group
    NF4    W = scale·level[code], levels at a normal distribution's quantiles, scale = max|group| (arXiv 2305.14314)

Scales are float16 multiples of one float32 `unit` per matrix, so that small weights do not fall into float16's
subnormal numbers: 5 bits a weight for int4 by 32, 4.25 for NF4 by 64. A table of 256 pairs turns a byte into both its
weights with one look-up.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.nn.frozen import FrozenProducts, added, frozen_linear
from shoestring.nn.quantized.config import Int4Config, NF4Config
from shoestring.nn.quantized.int8 import as_dense, dense_linear

# Appendix E of arXiv 2305.14314, as bitsandbytes has them.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_LARGEST = 60_000.0  # just inside float16


class FourBitLinear(nn.Module):
    """x: [..., in] -> [..., out]; frozen, differentiable in x. Inputs beyond the last whole group are padded inside."""

    codes: Tensor
    scale: Tensor
    lowest: Tensor | None
    unit: Tensor
    bias: Tensor | None
    levels: tuple[float, ...]

    def __init__(self, in_features: int, out_features: int, group: int, bias: bool = False, lowest: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.group = in_features, out_features, group
        groups = -(-in_features // group)
        self.register_buffer("codes", torch.empty(out_features, groups * group // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(out_features, groups, dtype=torch.float16))
        self.register_buffer("lowest", torch.empty(out_features, groups, dtype=torch.float16) if lowest else None)
        self.register_buffer("unit", torch.empty(()))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.frozen_products(), self.bias)

    def frozen_products(self) -> FrozenProducts:
        return FrozenProducts(
            lambda x, thin=None, rows=None: added(matmul(x, self.weights(x.dtype)), thin),
            lambda g, thin=None, onto=None: added(matmul(g, self.weights(g.dtype).t()), thin, onto),
        )

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in], made from the codes; a new tensor. Half-precision is rounded at the end."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        pairs = _pairs(self.levels, wide, self.codes.device)
        # One element of the table is the two weights of a byte.
        found = pairs.index_select(0, self.codes.view(-1).int())
        values = (torch.view_as_real(found) if wide == torch.float64 else found.view(wide)).view(
            self.out_features, -1, self.group
        )
        values.mul_(self._scaled(self.scale, wide))
        if self.lowest is not None:
            values.add_(self._scaled(self.lowest, wide))
        return values.view(self.out_features, -1)[:, : self.in_features].to(dtype)

    def to_linear(self) -> nn.Linear:
        """A dense linear of the rounded weights, in the dtype of what was quantized."""
        return dense_linear(self.weights(self.unit.dtype).contiguous(), self.bias)

    def _scaled(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return (numbers.to(dtype) * self.unit.to(dtype)).unsqueeze(-1)

    @torch.no_grad()
    def _fill(self, dense: nn.Linear, codes: Tensor, scale: Tensor, lowest: Tensor | None, unit: Tensor) -> None:
        flat = codes.to(torch.uint8).view(self.out_features, -1, 2)
        self.codes = flat[..., 0] | flat[..., 1] << 4
        self.scale, self.lowest, self.unit = scale, lowest, unit
        self.bias = None if dense.bias is None else dense.bias.detach().clone()


class Int4Linear(FourBitLinear):
    """Evenly spaced levels from the group's lowest weight up."""

    levels = tuple(float(level) for level in range(16))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Any, config: Int4Config) -> Int4Linear:
        """Rounded to nearest, with the scales as they are stored. The dense weight is not kept."""
        dense = as_dense(linear)
        with torch.device("meta"):
            made = cls(dense.in_features, dense.out_features, config.group, dense.bias is not None, lowest=True)
        if dense.weight.is_meta:
            return made
        values = _groups(dense, config.group)
        # Zero belongs to the range, so that the padding of the last group costs nothing.
        low, high = values.amin(-1).clamp_max(0), values.amax(-1).clamp_min(0)
        scale, unit = (high - low) / 15, _unit(torch.maximum(-low, high))
        scale, lowest = (scale / unit).half(), (low / unit).half()
        step = (scale.to(values.dtype) * unit).unsqueeze(-1)
        offset = values - (lowest.to(values.dtype) * unit).unsqueeze(-1)
        codes = (offset / torch.where(step > 0, step, torch.ones_like(step))).round_().clamp_(0, 15)
        made._fill(dense, codes, scale, lowest, unit)
        return made.train(dense.training)


class NF4Linear(FourBitLinear):
    """Levels of the normal distribution, times the largest weight of the group."""

    levels = NF4_LEVELS

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Any, config: NF4Config) -> NF4Linear:
        """Rounded to nearest, with the scales as they are stored. The dense weight is not kept."""
        dense = as_dense(linear)
        with torch.device("meta"):
            made = cls(dense.in_features, dense.out_features, config.group, dense.bias is not None)
        if dense.weight.is_meta:
            return made
        values = _groups(dense, config.group)
        largest = values.abs().amax(-1)
        unit = _unit(largest)
        scale = (largest / unit).half()
        step = (scale.to(values.dtype) * unit).unsqueeze(-1)
        levels = torch.tensor(NF4_LEVELS, dtype=values.dtype, device=values.device)
        borders = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(values / torch.where(step > 0, step, torch.ones_like(step)), borders)
        made._fill(dense, codes, scale, None, unit)
        return made.train(dense.training)


def _groups(dense: nn.Linear, group: int) -> Tensor:
    """Its weights [out, groups, group] in at least float32, padded with zeros."""
    weight = dense.weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    missing = -weight.shape[1] % group
    if missing:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.view(weight.shape[0], -1, group)


def _unit(magnitudes: Tensor) -> Tensor:
    """What one in the float16 scales stands for, so that the largest of them fits well."""
    largest = magnitudes.amax()
    return torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))


@functools.cache
def _pairs(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: for each byte the levels of its low and its high half, side by side in one wide element."""
    byte = torch.arange(256, device="cpu")
    table = torch.tensor(levels, dtype=dtype, device="cpu")
    both = torch.stack([table[byte & 15], table[byte >> 4]], dim=1)
    wide = torch.view_as_complex(both) if dtype == torch.float64 else both.view(torch.int64).view(-1)
    return wide.to(device)
