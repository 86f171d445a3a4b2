"""Products of a few rows with matrices as decoding keeps them: codes in blocks (`kernels.blocks`), or floats.

Rows are float32. For matrices in blocks they are rounded to int8 by blocks of 32 before the product (`rounded`); the
integers' sums are exact. `multiply_plain` and `Matrix.rows` are the twins of what decode.cpp does.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoestring.core.matmul import matmul
from shoestring.kernels.compiled import kernel

BLOCK = 32
FEW = 16  # rows up to which reading a matrix of floats is what takes the time; more are torch's work
_SMALLEST = 1e-30  # a block without a larger number counts as zeros
_FLOATS = {torch.float32: 4, torch.float16: 5, torch.bfloat16: 6}  # as in matrix.h


class MatrixStruct(ctypes.Structure):
    """As in matrix.h."""

    _fields_ = [
        ("weights", ctypes.c_void_p), ("columns", ctypes.c_int64), ("depth", ctypes.c_int64),
        ("format", ctypes.c_int32), ("bias", ctypes.c_void_p),
    ]  # fmt: skip


class RowsStruct(ctypes.Structure):
    """As in matrix.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "totals", "floats")]


class Matrix(Protocol):
    """[N, K]: N columns of a product, of depth K. bias: [N] float32 or None. held: what takes the memory."""

    @property
    def columns(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def held(self) -> Tensor: ...
    @property
    def format(self) -> int: ...

    def rows(self, first: int, last: int) -> Tensor:
        """[last − first, K] float32: weights of these columns of the product."""
        ...

    def picked(self, numbers: Tensor) -> Tensor:
        """The same for columns in any order."""
        ...


@dataclass(frozen=True)
class FloatMatrix:
    """values: [N, K] contiguous, float32, float16 or bfloat16."""

    values: Tensor
    bias: Tensor | None = None

    @property
    def columns(self) -> int:
        return self.values.shape[0]

    @property
    def depth(self) -> int:
        return self.values.shape[1]

    @property
    def held(self) -> Tensor:
        return self.values

    @property
    def format(self) -> int:
        return _FLOATS[self.values.dtype]

    def rows(self, first: int, last: int) -> Tensor:
        return self.values[first:last].float()

    def picked(self, numbers: Tensor) -> Tensor:
        return self.values[numbers].float()


def is_blocks(matrix: Matrix) -> bool:
    """Whether rows are rounded for it."""
    return matrix.format < min(_FLOATS.values())


def weights_of(matrix: Matrix) -> Tensor:
    """[N, K] float32, all that the matrix stands for."""
    return matrix.rows(0, matrix.columns)


def struct_of(matrix: Matrix) -> MatrixStruct:
    """For the kernel; good while the matrix is."""
    bias = None if matrix.bias is None else matrix.bias.data_ptr()
    return MatrixStruct(matrix.held.data_ptr(), matrix.columns, matrix.depth, matrix.format, bias)


def multiply(x_MK: Tensor, matrix: Matrix) -> Tensor:
    """x, rounded if the matrix is in blocks, times the matrix -> [M, N] float32. No way backward."""
    kernels = decode_kernels()
    x_MK = x_MK.detach()
    if kernels is None or not x_MK.is_cpu or (len(x_MK) > FEW and not is_blocks(matrix)):
        return multiply_plain(x_MK, matrix)
    x_MK = x_MK.float().contiguous()
    rows, blocks = len(x_MK), matrix.depth // BLOCK
    codes, room = None, RowsStruct()
    if is_blocks(matrix):
        codes = torch.empty(rows, matrix.depth, dtype=torch.int8)
        scales, totals = torch.empty(rows, blocks), torch.empty(rows, blocks)
        room = RowsStruct(codes.data_ptr(), scales.data_ptr(), totals.data_ptr(), None)
    y_MN, struct = torch.empty(rows, matrix.columns), struct_of(matrix)
    kernels.multiply_rows(
        ctypes.byref(struct), x_MK.data_ptr(), rows, ctypes.byref(room), y_MN.data_ptr(), torch.get_num_threads()
    )
    return y_MN


def multiply_plain(x_MK: Tensor, matrix: Matrix) -> Tensor:
    """The definition."""
    x_MK = rounded(x_MK) if is_blocks(matrix) else x_MK.float()
    y_MN = matmul(x_MK, weights_of(matrix).to(x_MK.device))
    return y_MN if matrix.bias is None else y_MN.add_(matrix.bias.to(y_MN.device))


def rounded(x_MK: Tensor) -> Tensor:
    """x as the kernel multiplies it: each block to the nearest of 255 even steps."""
    blocks = x_MK.float().unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > _SMALLEST, torch.full_like(largest, 127) / largest, 0)
    return ((blocks * inverse).round_() * (largest / 127)).flatten(1)


def pick(matrix: Matrix, numbers: Tensor) -> Tensor:
    """[n, K] float32: the weights of some columns of the product, as an embedding reads them. Raises IndexError."""
    kernels = decode_kernels()
    if kernels is None or not numbers.is_cpu:
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < matrix.columns:
            raise IndexError(f"there are rows 0 to {matrix.columns - 1}")
        return matrix.picked(numbers)
    numbers = numbers.contiguous()
    found, struct = torch.empty(len(numbers), matrix.depth), struct_of(matrix)
    done = kernels.unpack_columns(
        ctypes.byref(struct), numbers.data_ptr(), len(numbers), found.data_ptr(), torch.get_num_threads()
    )
    if not done:
        raise IndexError(f"there are rows 0 to {matrix.columns - 1}")
    return found


@functools.cache
def decode_kernels(*macros: str) -> ctypes.CDLL | None:
    """The kernels' functions with their types, None without a compiler. macros: of forms that tests compare."""
    found = kernel("decode", *macros)
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.multiply_rows.argtypes = [at, at, size, at, at, number]
        found.unpack_columns.argtypes = [at, at, size, at, number]
        found.decode_layers.argtypes = [at, at, at, at, at, number]
    return found
