"""Products of float rows with an int8 matrix, the rows rounded to int8 as well: one scale for each row.

x: [M, K] float32 -> codes int8 and scale [M] = max|row| / 127; the products are sums of integers, exact in int32 as
long as 127·127·K < 2^31; then y = scale ⊙ sums ⊙ columns. The few largest columns of x may stay floats. `*_plain`
are the twins, through torch's products; the kernel (int8.cpp) computes the same numbers and writes y once.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.core import matmul
from shoestring.core.machine import has_int8_instructions
from shoestring.kernels.compiled import kernel

LONGEST = (2**31 - 1) // 127**2  # of K
_EXACT = (2**24 - 1) // 127**2  # of K, for sums in float32
_SMALLEST = 1e-30  # a row without a larger number counts as zeros: 127 divided by it must not overflow


class Rows(NamedTuple):
    """codes: [M, K] in −127 … 127, scale: [M]; sums: int32 [M] of the codes, for the kernel alone.

    kept: int32 [k], columns whose codes are zero and whose `values` [M, k] are as they were.
    """

    codes: Tensor
    scale: Tensor
    sums: Tensor | None = None
    kept: Tensor | None = None
    values: Tensor | None = None


class Thin(NamedTuple):
    """A product of low rank that is added: scale · left [M, r] · right [r, N]."""

    left: Tensor
    right: Tensor
    scale: float = 1.0


def quantize_rows(x_MK: Tensor, columns_K: Tensor | None = None, keep: int = 0) -> Rows:
    """x, or x ⊙ columns, rounded to nearest by rows. A row with NaN or infinity has such a scale.

    keep: of this many columns, those of x with the largest numbers, values are kept instead of codes (as LLM.int8
    does, arXiv 2208.07339): a few columns of a language model's activations are many times larger than the rest.
    """
    keep = min(keep, x_MK.shape[1] // 16)
    assert not keep or columns_K is None
    kernels = _kernels(x_MK.device)
    if kernels is None:
        return quantize_rows_plain(x_MK, columns_K, keep)
    x_MK = x_MK.float()
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    rows, width = x_MK.shape
    stride = _odd_lines(width)
    codes = torch.empty(rows, stride, dtype=torch.int8)
    scale, sums = torch.empty(rows), torch.empty(rows, dtype=torch.int32)
    kept = torch.empty(keep, dtype=torch.int32) if keep else None
    values = torch.empty(rows, keep) if keep else None
    columns_K = None if columns_K is None else columns_K.float().contiguous()
    kernels.quantize_rows(
        _at(x_MK), x_MK.stride(0), _at(columns_K), rows, width, _at(codes), stride, _at(scale), _at(sums),
        keep, _at(kept), _at(values), torch.get_num_threads(),
    )  # fmt: skip
    return Rows(codes[:, :width], scale, sums, kept, values)


def quantize_rows_plain(x_MK: Tensor, columns_K: Tensor | None = None, keep: int = 0) -> Rows:
    """The definition."""
    x = x_MK.float()
    x = x if columns_K is None else x * columns_K.float()
    kept = values = None
    if keep:
        kept = x.abs().amax(0).topk(keep).indices
        values = x[:, kept]
        x = x.index_fill(1, kept, 0)
    largest = x.abs().amax(1)
    # 127 / tensor would be 127 · (1 / tensor): rounded twice, it moves a code in 100,000.
    inverse = torch.where(largest > _SMALLEST, torch.full_like(largest, 127) / largest, 0)
    return Rows((x * inverse.unsqueeze(1)).round_().to(torch.int8), largest / 127, None, kept, values)


def dither_rows(x_MK: Tensor, columns_K: Tensor, offset: int = 0) -> Rows:
    """x ⊙ columns rounded up or down, more often to the nearer side: sums of many are right, as of a softmax's tail.

    To nearest, all that is under a 254th of the row's largest would be gone. The pattern is a fixed one, that of the R2
    sequence, so that the same numbers are rounded alike again. offset: 0 … 2³² − 1, where it begins; from one drawn
    evenly, each number is right in the mean.
    """
    kernels = _kernels(x_MK.device)
    if kernels is None:
        return dither_rows_plain(x_MK, columns_K, offset)
    assert x_MK.dtype == torch.float32 and x_MK.stride(1) == 1
    rows, width = x_MK.shape
    stride = _odd_lines(width)
    codes = torch.empty(rows, stride, dtype=torch.int8)
    scale, sums = torch.empty(rows), torch.empty(rows, dtype=torch.int32)
    columns_K = columns_K.float().contiguous()
    kernels.dither_rows(
        _at(x_MK), x_MK.stride(0), _at(columns_K), rows, width, _at(codes), stride, _at(scale), _at(sums),
        offset, torch.get_num_threads(),
    )  # fmt: skip
    return Rows(codes[:, :width], scale, sums)


def dither_rows_plain(x_MK: Tensor, columns_K: Tensor, offset: int = 0) -> Rows:
    """The definition."""
    x = x_MK.float() * columns_K.float()
    largest = x.abs().amax(1)
    inverse = torch.where(largest > _SMALLEST, torch.full_like(largest, 127) / largest, 0) * 65536
    value = (x * inverse.unsqueeze(1)).round_().to(torch.int32).clamp_(-127 << 16, 127 << 16)
    row, column = (torch.arange(size, device=x.device) for size in x.shape)
    threshold = (row.unsqueeze(1) * 3242174889 + column * 2447445413 + offset).bitwise_and_(0xFFFFFFFF) >> 16
    return Rows(((value + threshold) >> 16).to(torch.int8), largest / 127)


def product(
    rows: Rows,
    weight_NK: Tensor,
    columns_N: Tensor | None = None,
    thin: Thin | None = None,
    onto: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """scale ⊙ (codes · weightᵀ) ⊙ columns + thin -> float32 [M, N]. weight: int8, or a transposed view of such.

    onto: float32 [M, N] that this is added to, in place; into: [M, N] that it is written to instead.
    """
    if rows.sums is None:
        y = product_plain(rows, weight_NK, columns_N, thin)
        return onto.add_(y) if onto is not None else y if into is None else into.copy_(y)
    kernels = _kernels(rows.codes.device)
    assert kernels is not None
    depth, width = rows.codes.shape[1], weight_NK.shape[0]
    by_columns = weight_NK.stride(1) != 1
    matrix = weight_NK.t() if by_columns else weight_NK
    assert matrix.stride(1) == 1 and weight_NK.shape[1] == depth <= LONGEST
    out = onto if onto is not None else torch.empty(len(rows.codes), width) if into is None else into
    assert out.stride(1) == 1 and out.dtype == torch.float32
    columns_N = None if columns_N is None else columns_N.float().contiguous()
    left = right = None
    if thin is not None:
        left, right = thin.left.float() * thin.scale, thin.right.float().contiguous()
        left = left.contiguous()
    kernels.product_rows(
        _at(rows.codes), rows.codes.stride(0), _at(rows.scale), _at(rows.sums), len(rows.codes), depth,
        _at(matrix), matrix.stride(0), int(by_columns), width, _at(columns_N),
        _at(left), 0 if left is None else left.stride(0), _at(right), width, 0 if right is None else len(right),
        _at(rows.kept), _at(rows.values), 0 if rows.kept is None else len(rows.kept),
        _at(out), out.stride(0), int(onto is not None), torch.get_num_threads(),
    )  # fmt: skip
    return out


def product_plain(
    rows: Rows, weight_NK: Tensor, columns_N: Tensor | None = None, thin: Thin | None = None
) -> Tensor:
    """The definition."""
    y = integer_product(rows.codes, weight_NK) * rows.scale.unsqueeze(1)
    if rows.kept is not None and rows.values is not None:
        y.addmm_(rows.values, weight_NK[:, rows.kept].t().float())
    y = y if columns_N is None else y.mul_(columns_N.float())
    return y if thin is None else y.addmm_(thin.left.float(), thin.right.float(), alpha=thin.scale)


def integer_product(codes_MK: Tensor, weight_NK: Tensor, multiple: int | None = None) -> Tensor:
    """codes · weightᵀ -> int32 [M, N]. multiple: what GPUs want K and N to be one of; more than 16 rows as well."""
    if multiple is None and codes_MK.device.type == "cpu" and not has_int8_instructions():
        return product_in_floats(codes_MK, weight_NK)
    multiple = multiple or (1 if codes_MK.device.type == "cpu" else 8)
    inputs, outputs = -codes_MK.shape[1] % multiple, -len(weight_NK) % multiple
    if inputs or outputs:
        codes_MK, padded = F.pad(codes_MK, (0, inputs)), F.pad(weight_NK, (0, inputs, 0, outputs))
        return torch._int_mm(codes_MK, padded.t())[:, : len(weight_NK)]
    return torch._int_mm(codes_MK, weight_NK.t())


def product_in_floats(codes_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """The same as sums of floats, in exact parts: torch's own is 30 times slower without instructions for bytes."""
    total = torch.zeros(len(codes_MK), len(weight_NK), dtype=torch.int32)
    with torch.autocast("cpu", enabled=False):
        for codes, weight in zip(codes_MK.split(_EXACT, 1), weight_NK.split(_EXACT, 1), strict=True):
            total += matmul.matmul(codes.float(), weight.float()).int()
    return total


def _kernels(device: torch.device) -> ctypes.CDLL | None:
    return _typed_kernel() if device.type == "cpu" else None


@functools.cache
def _typed_kernel(*macros: str) -> ctypes.CDLL | None:
    found = kernel("int8", *macros)
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.quantize_rows.argtypes = [at, size, at, size, size, at, size, at, at, size, at, at, number]
        found.dither_rows.argtypes = [at, size, at, size, size, at, size, at, at, ctypes.c_uint32, number]
        found.product_rows.argtypes = [
            at, size, at, at, size, size, at, size, number, size, at, at, size, at, size, size, at, at, size, at, size,
            number, number,
        ]  # fmt: skip
    return found


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _odd_lines(width: int) -> int:
    """Bytes of a row: an odd number of cache lines, so that neighbouring rows do not share their places in a cache."""
    lines = -(-width // 64)
    return 64 * (lines + 1 - lines % 2)
