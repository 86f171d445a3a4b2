"""One step of AdamW with both moments in 8 bits (arXiv 2110.02861), in torchao's format: a scale for 256 numbers, and
codes of the "dynamic" levels, whose steps are finer near zero.

torchao's own step is one that torch.compile must fuse: on a CPU that takes seconds for each shape of a weight, and
44 ns a number after that; eager it takes 420 ns. The kernel (adamw8bit.cpp) takes 12 ns, and no memory beside. It moves
contiguous float32 on a CPU, the twin the rest.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.kernels.compiled import kernel

BLOCK = 256  # numbers that share a scale
_SHIFT, _LOWEST, _HIGHEST = 15, 103 << 8, 127 << 8  # as in the kernel
_PORTION = {"cpu": 2**16}  # numbers that the twin moves at once
_LARGE_PORTION = 2**22


@dataclass(frozen=True)
class Eight:
    """A moment of a weight. codes: uint8, in the weight's shape. scale: [numbers / 256], of blocks of it made flat."""

    codes: Tensor
    scale: Tensor
    signed: bool

    @classmethod
    def zeros(cls, like: Tensor, signed: bool) -> Eight:
        codes = torch.zeros_like(like, dtype=torch.uint8, memory_format=torch.contiguous_format)
        return cls(codes, torch.zeros(like.numel() // BLOCK, device=like.device), signed)

    def values(self) -> Tensor:
        """In float32."""
        levels = _levels(self.signed).to(self.codes.device)
        return (levels[self.codes.int()].view(-1, BLOCK) * self.scale.view(-1, 1)).view(self.codes.shape)


@dataclass(frozen=True)
class Step:
    """number: of the step, from 1. Decay is decoupled: rate · decay of each weight."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    decay: float
    number: int


@torch.no_grad()
def adamw_8bit(weight: Tensor, gradient: Tensor, mean: Eight, square: Eight, step: Step) -> None:
    """Move `weight`, whose numbers are a multiple of 256, and both moments, in place."""
    kernels = _typed_kernel() if weight.device.type == "cpu" else None
    fits = all(x.dtype == torch.float32 and x.is_contiguous() for x in (weight, gradient))
    if kernels is None or not fits:
        return adamw_8bit_plain(weight, gradient, mean, square, step)
    tables = [table.data_ptr() for table in make_tables()]
    state = [x.data_ptr() for moment in (mean, square) for x in (moment.codes, moment.scale)]
    kernels.adamw8bit(
        weight.data_ptr(), gradient.data_ptr(), *state, *tables, weight.numel() // BLOCK, step.rate, step.decay,
        1 - step.betas[0], 1 - step.betas[1], *_corrections(step), step.epsilon, torch.get_num_threads(),
    )  # fmt: skip


def make_tables() -> list[Tensor]:
    """Those of the kernel, once in a process: a few thousand bytes, on the way to which there are more."""
    return [table for signed in (True, False) for table in (_levels(signed), _first(signed))]


@torch.no_grad()
def adamw_8bit_plain(weight: Tensor, gradient: Tensor, mean: Eight, square: Eight, step: Step) -> None:
    """The definition."""
    flat, given = weight.view(-1), gradient.reshape(-1)
    portion = _PORTION.get(weight.device.type, _LARGE_PORTION)
    first, second = _corrections(step)
    for start in range(0, weight.numel(), portion):
        part = slice(start, start + portion)
        m, v = (_part(moment, part) for moment in (mean, square))
        g = given[part].float()
        mean_values = m.values().lerp(g, 1 - step.betas[0])
        square_values = v.values().lerp(g.square(), 1 - step.betas[1])
        w = flat[part].float()
        w = w - step.rate * step.decay * w
        w -= step.rate * (mean_values / first) / (square_values.sqrt() / second**0.5 + step.epsilon)
        flat[part] = w.to(flat.dtype)
        _encode(m, mean_values)
        _encode(v, square_values)


def _part(moment: Eight, part: slice) -> Eight:
    scale = moment.scale[part.start // BLOCK : part.stop // BLOCK]
    return Eight(moment.codes.view(-1)[part], scale, moment.signed)


def _encode(moment: Eight, values: Tensor) -> None:
    """Each block by its largest number, each number to the nearest level, halves up."""
    levels = _levels(moment.signed).to(values.device)
    blocks = values.view(-1, BLOCK)
    scale = blocks.abs().amax(-1).clip(1e-12)
    shares = (blocks / scale.view(-1, 1)).view(-1)
    below = (torch.bucketize(shares, levels, right=True, out_int32=True) - 1).clip_(0)
    above = (below + 1).clip_(max=255)
    up = shares - levels[below] >= (levels[above] - levels[below]) * 0.5
    moment.codes.copy_(torch.where(up, above, below).to(torch.uint8))
    moment.scale.copy_(scale)


def _corrections(step: Step) -> tuple[float, float]:
    return 1 - step.betas[0] ** step.number, 1 - step.betas[1] ** step.number


@functools.cache
def _levels(signed: bool) -> Tensor:
    """[256], rising: 0, 1, and the middles of equal parts of [0.1, 1] · 10^(e - 6), twice as many for each further e.

    Signed ones have as many on both sides, the others one bit more of them.
    """
    found = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1)
        middles = (10.0 ** (exponent - 6) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        found += middles + ([-middle for middle in middles] if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float32)


@functools.cache
def _first(signed: bool) -> Tensor:
    """For the leading bits of a number, positive and then negative: the highest level that none of them is below."""
    bits = torch.arange(_LOWEST, _HIGHEST + 2, dtype=torch.int32)
    bounds = (bits << _SHIFT).view(torch.float32)
    positive = bounds[:-1].clone()
    positive[0] = 0.0
    lowest = torch.cat([positive, -bounds[1:]])
    return (torch.bucketize(lowest, _levels(signed), right=True) - 1).clip_(0).to(torch.uint8)


@functools.cache
def _typed_kernel() -> ctypes.CDLL | None:
    found = kernel("adamw8bit")
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        found.adamw8bit.argtypes = [*[at] * 10, size, *[number] * 7, ctypes.c_int]
    return found
