"""Even grids: w ≈ (q − z)·s, a scale s and a zero point z for each group of a row's inputs.

weights [O, I], s and z [O, G] with G groups of I / G inputs that follow each other; codes q and z are whole numbers in
−2^(b−1) … 2^(b−1) − 1. On a symmetric grid z is 0. `fit` gives the grid between the lowest and highest weight of each
group, as compressed-tensors does, or a narrower one where that brings the weights nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.nn.norm import wide
from shoestring.nn.quantized.config import PackedConfig

_SHRINKS = tuple(1 - step / 20 for step in range(9))  # of the whole range, widest first
_TOGETHER = 1 << 22  # weights looked at at a time


@dataclass(frozen=True)
class Grid:
    """scale_OG: as it is stored, above zero. zero_OG: int8, None for a symmetric grid."""

    bits: int
    scale_OG: Tensor
    zero_OG: Tensor | None

    def codes(self, weight_OI: Tensor) -> Tensor:
        """The nearest code of each weight, int8 [O, I]."""
        weight = wide(weight_OI)
        groups = self._grouped(weight) / self._scale(weight.dtype)
        zero = self._zero(weight.dtype)
        return self.clamped(groups if zero is None else groups + zero).flatten(1).to(torch.int8)

    def values(self, codes_OI: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that codes stand for, [O, I]; dtype: float32 or float64."""
        groups, zero = self._grouped(codes_OI.to(dtype, copy=True)), self._zero(dtype)
        if zero is not None:
            groups.sub_(zero)
        return groups.mul_(self._scale(dtype)).flatten(1)

    def clamped(self, numbers: Tensor) -> Tensor:
        """To whole numbers that are codes; in a new tensor."""
        half = 1 << self.bits - 1
        return numbers.round().clamp_(-half, half - 1)

    def rows(self, first: int, last: int) -> Grid:
        zero = None if self.zero_OG is None else self.zero_OG[first:last]
        return Grid(self.bits, self.scale_OG[first:last], zero)

    def where(self, chosen_O: Tensor, other: Grid) -> Grid:
        """This grid's rows where `chosen`, the other's elsewhere."""
        rows = chosen_O.unsqueeze(1)
        zero = None
        if self.zero_OG is not None and other.zero_OG is not None:
            zero = torch.where(rows, self.zero_OG, other.zero_OG)
        return Grid(self.bits, torch.where(rows, self.scale_OG, other.scale_OG), zero)

    def _grouped(self, tensor_OI: Tensor) -> Tensor:
        return tensor_OI.unflatten(1, (self.scale_OG.shape[1], -1))

    def _scale(self, dtype: torch.dtype) -> Tensor:
        return self.scale_OG.to(dtype).unsqueeze(-1)

    def _zero(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.zero_OG is None else self.zero_OG.to(dtype).unsqueeze(-1)


@torch.no_grad()
def fit(weight_OI: Tensor, config: PackedConfig, importance_I: Tensor | None = None) -> Grid:
    """The grid of the whole range of each group.

    importance: above zero where an input counts; then, of nine ranges down to six tenths of the whole, the one whose
    squared errors, weighted by it, are least. The groups of `config` must divide the inputs.
    """
    together = max(_TOGETHER // max(weight_OI.shape[1], 1), 1)
    parts = [_fit(part, config, importance_I) for part in weight_OI.detach().split(together)]
    zeros = [part.zero_OG for part in parts if part.zero_OG is not None]
    return Grid(config.bits, torch.cat([part.scale_OG for part in parts]), torch.cat(zeros) if zeros else None)


def _fit(weight_OI: Tensor, config: PackedConfig, importance_I: Tensor | None) -> Grid:
    weight = wide(weight_OI)
    groups = weight.unflatten(1, (config.groups(weight.shape[1]), -1))
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    best = _between(low, high, config)
    if importance_I is None:
        return best
    importance = importance_I.to(weight.dtype).unflatten(0, groups.shape[1:])

    def errors(grid: Grid) -> Tensor:
        """[O, G]"""
        off = (grid.values(grid.codes(weight), weight.dtype) - weight).unflatten(1, groups.shape[1:])
        return off.square_().mul_(importance).sum(-1)

    least = errors(best)
    for shrink in _SHRINKS[1:]:
        grid = _between(low * shrink, high * shrink, config)
        found = errors(grid)
        better = found < least
        least = torch.where(better, found, least)
        zero = None
        if best.zero_OG is not None and grid.zero_OG is not None:
            zero = torch.where(better, grid.zero_OG, best.zero_OG)
        best = Grid(config.bits, torch.where(better, grid.scale_OG, best.scale_OG), zero)
    return best


def _between(low_OG: Tensor, high_OG: Tensor, config: PackedConfig) -> Grid:
    """low <= 0 <= high: the ends of each group's range."""
    steps, half = (1 << config.bits) - 1, 1 << config.bits - 1
    span = 2 * torch.maximum(-low_OG, high_OG) if config.symmetric else high_OG - low_OG
    stored = _rounded_up(span / steps, getattr(torch, config.scale))
    stored = torch.where(stored > 0, stored, torch.ones_like(stored))  # a group of zeros, on any grid
    if config.symmetric:
        return Grid(config.bits, stored, None)
    zero = (-half - low_OG / stored.to(low_OG.dtype)).round_().clamp_(-half, half - 1)
    return Grid(config.bits, stored, zero.to(torch.int8))


def _rounded_up(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """To the format of scales: with a smaller one the grid would end before the range does."""
    found = numbers.to(dtype)
    above = (found.to(numbers.dtype) * (1 + 0.75 * torch.finfo(dtype).eps)).to(dtype)
    return torch.where(found.to(numbers.dtype) < numbers, above, found)
