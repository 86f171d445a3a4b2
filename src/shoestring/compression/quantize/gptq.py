"""GPTQ (arXiv 2210.17323): weights rounded one input after another, those still to come making up for each error.

Over calibration inputs x the squared error of a row q in place of w is (w − q)·H·(w − q)ᵀ with H = Σ x·xᵀ. Inputs are
taken in the order of H's diagonal, largest first, while groups stay what they are (static activation order). The error
of input i, divided by U_ii, is taken off the weights that follow, times row i of U: the upper triangular UᵀU =
(H + λ·1)⁻¹, λ a part of the mean of H's diagonal. What that does to inputs beyond the next BLOCK waits until these are
done. A row that rounding to nearest leaves nearer, which can happen to a greedy method, is rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.core.errors import DataError
from shoestring.core.matmul import matmul
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import Grid, fit

BLOCK = 128
WIDE = 4096  # inputs up to which H is kept, and factored, in float64
_TRIES = 4  # with ten times the damping each
COLUMNS = 1024  # of an inverse made at a time


@dataclass(frozen=True)
class Rounded:
    """codes_OI int8 on `grid`. error, nearest, whole: squared errors over the calibration inputs, or without any of the
    weights themselves: of these codes, of rounding to nearest, and of zeros. target_OI: where it is asked for, the
    weights that the codes are the nearest of: those that make up for the errors of the others."""

    codes_OI: Tensor
    grid: Grid
    error: float
    nearest: float
    whole: float
    target_OI: Tensor | None = None


class Hessian:
    """sum_II: Σ x·xᵀ of the inputs of a linear, in float64 where it has few enough of them."""

    def __init__(self, inputs: int):
        self.sum_II = torch.zeros(inputs, inputs, dtype=torch.float64 if inputs <= WIDE else torch.float32)

    def add(self, x_NI: Tensor) -> None:
        self.sum_II += matmul(x_NI.t(), x_NI.t())


@torch.no_grad()
def to_nearest(weight_OI: Tensor, config: PackedConfig) -> Rounded:
    """Each weight rounded to the nearest of its group's grid."""
    grid = fit(weight_OI, config)
    codes = grid.codes(weight_OI)
    error = float((grid.values(codes) - weight_OI).double().square().sum())
    return Rounded(codes, grid, error, error, float(weight_OI.double().square().sum()))


@torch.no_grad()
def gptq(
    weight_OI: Tensor, hessian_II: Tensor, config: PackedConfig, damping: float = 0.01, targets: bool = False
) -> Rounded:
    """hessian: float32 or float64, in which all is computed. targets: whether they are wanted. Raises DataError where
    it holds NaN."""
    grid = fit(weight_OI, config, hessian_II.diagonal())
    codes, target = _one_by_one(weight_OI.to(hessian_II.dtype), hessian_II, grid, damping, targets)
    return _no_worse(weight_OI, hessian_II, config, codes, grid, target)


@torch.no_grad()
def by_importance(weight_OI: Tensor, hessian_II: Tensor, config: PackedConfig) -> Rounded:
    """Each weight rounded to the nearest of a grid that may be narrower than the whole range, where that brings the
    weights of large inputs nearer. hessian: as for `gptq`."""
    grid = fit(weight_OI, config, hessian_II.diagonal())
    return _no_worse(weight_OI, hessian_II, config, grid.codes(weight_OI), grid, None)


def _no_worse(
    weight_OI: Tensor, hessian_II: Tensor, config: PackedConfig, codes_OI: Tensor, grid: Grid, target: Tensor | None
) -> Rounded:
    """These codes, and rows rounded to nearest where that is nearer."""
    exact = hessian_II.dtype
    weight, nearest = weight_OI.to(exact), fit(weight_OI, config)
    near_codes = nearest.codes(weight_OI)
    plain = row_errors(nearest.values(near_codes, exact) - weight, hessian_II)
    found = row_errors(grid.values(codes_OI, exact) - weight, hessian_II)
    better = found <= plain
    return Rounded(
        torch.where(better.unsqueeze(1), codes_OI, near_codes),
        grid.where(better, nearest),
        float(torch.minimum(found, plain).sum()),
        float(plain.sum()),
        float(row_errors(weight, hessian_II).sum()),
        None if target is None else torch.where(better.unsqueeze(1), target, weight_OI.to(target.dtype)),
    )


def row_errors(off_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """off·H·offᵀ of each row, [O]."""
    return (off_OI @ hessian_II).mul_(off_OI).sum(1)


def inverse_factor(hessian_II: Tensor, order_I: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with UᵀU = (H + λ·1)⁻¹, over the inputs in this order; λ = damping · mean(diagonal of H).

    With J the matrix that turns an order round, J·(H + λ·1)·J = L·Lᵀ gives U = J·L⁻¹·J: one factorization, and no
    inverse of H. Where H is too nearly singular for its number format, λ grows. Raises DataError for NaN.
    """
    backwards = order_I.flip(0)
    return _turned_inverse(_cholesky(hessian_II[backwards.unsqueeze(1), backwards], damping))


def damped_factor(hessian_II: Tensor, damping: float) -> Tensor:
    """L, lower triangular, with L·Lᵀ = H + λ·1; λ as for `inverse_factor`. Raises DataError for NaN."""
    return _cholesky(hessian_II.clone(), damping)


def _cholesky(square_II: Tensor, damping: float) -> Tensor:
    """Of a matrix that is changed, λ added."""
    mean = float(square_II.diagonal().mean())
    if not 0 <= mean < float("inf"):
        raise DataError("the calibration text makes the model compute NaN or infinity", hint="the model is broken")
    step = damping * mean or 1.0  # no input was ever other than zero: then there is nothing to make up for
    added = 0.0
    for attempt in range(_TRIES):
        square_II.diagonal().add_(step * 10**attempt - added)
        added = step * 10**attempt
        lower, failed = torch.linalg.cholesky_ex(square_II)
        if not int(failed):
            return lower
    raise DataError("the inputs that calibration found cannot be told apart", hint="calibrate with more text")


def _turned_inverse(lower_II: Tensor) -> Tensor:
    """J·L⁻¹·J, some columns at a time and each by as many rows, so that two such matrices are in memory and no third:
    a triangle that is solved for in part would be copied whole."""
    size = len(lower_II)
    upper_II = torch.zeros_like(lower_II)
    for first in range(0, size, COLUMNS):
        last = min(first + COLUMNS, size)
        columns = torch.eye(size - first, last - first, dtype=lower_II.dtype)
        for top in range(first, size, COLUMNS):
            end = min(top + COLUMNS, size)
            rows = columns[top - first : end - first]
            rows.addmm_(lower_II[top:end, first:top], columns[: top - first], alpha=-1)
            rows.copy_(torch.linalg.solve_triangular(lower_II[top:end, top:end], rows, upper=False))
        upper_II[: size - first, size - last : size - first] = columns.flip(0, 1)
    return upper_II


def _one_by_one(
    weight_OI: Tensor, hessian_II: Tensor, grid: Grid, damping: float, targets: bool = False
) -> tuple[Tensor, Tensor | None]:
    """-> codes int8 [O, I], and the weights that were rounded to them, float32, if they are wanted. weight: in the
    dtype of H."""
    order_I = torch.argsort(hessian_II.diagonal(), descending=True, stable=True)
    factor_II = inverse_factor(hessian_II, order_I, damping)
    left_IO = weight_OI.t()[order_I].contiguous()  # a copy; inputs are rows, so that each lies in one stretch
    scale_GO = grid.scale_OG.t().to(left_IO.dtype).contiguous()
    zero_GO = torch.zeros_like(scale_GO) if grid.zero_OG is None else grid.zero_OG.t().to(left_IO.dtype).contiguous()
    inputs = len(left_IO)
    group_of = (order_I // (inputs // len(scale_GO))).tolist()
    codes_IO = torch.empty(left_IO.shape, dtype=torch.int8)
    for begin in range(0, inputs, BLOCK):
        end = min(begin + BLOCK, inputs)
        errors = torch.empty_like(left_IO[begin:end])
        for i in range(begin, end):
            scale, zero = scale_GO[group_of[i]], zero_GO[group_of[i]]
            codes = grid.clamped(left_IO[i] / scale + zero)
            codes_IO[i] = codes
            errors[i - begin] = (left_IO[i] - (codes - zero) * scale) / factor_II[i, i]
            if i + 1 < end:
                left_IO[i + 1 : end].addr_(factor_II[i, i + 1 : end], errors[i - begin], alpha=-1)
        if end < inputs:
            left_IO[end:].addmm_(factor_II[begin:end, end:].t(), errors, alpha=-1)
    found_IO = torch.empty_like(codes_IO)
    found_IO[order_I] = codes_IO
    target = None
    if targets:  # a row of `left` stays as it was when it was rounded
        target_IO = torch.empty(left_IO.shape)
        target_IO[order_I] = left_IO.float()
        target = target_IO.t().contiguous()
    return found_IO.t().contiguous(), target
