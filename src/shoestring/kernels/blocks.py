"""Products with weights of 4 or 8 bits in blocks of 32, activations rounded to int8 by blocks: for decoding.

A matrix [N, K] is codes and, for each block along K, a scale d and perhaps an offset m, float16: w = d · code + m; codes
of 4 bits without an offset stand for code − 8.
`pack` lays them out as the kernel reads them (blocks.h: tiles of 16 columns of the product); `BlockMatrix.weights` is
what they stand for, and `multiply_plain` the twin: the same integers, summed in another order.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.kernels.compiled import kernel

BLOCK, COLUMNS = 32, 16
_SMALLEST = 1e-30  # a block without a larger number counts as zeros


class MatrixStruct(ctypes.Structure):
    """As in blocks.h."""

    _fields_ = [
        ("tiles", ctypes.c_void_p), ("columns", ctypes.c_int64), ("depth", ctypes.c_int64), ("format", ctypes.c_int32),
        ("bias", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class BlockMatrix:
    """tiles: uint8, as blocks.h has them. bits: of a code, 4 (0 … 15) or 8 (−128 … 127). bias: [N] float32 or None."""

    tiles: Tensor
    columns: int
    depth: int
    bits: int
    offset: bool
    bias: Tensor | None = None

    @property
    def format(self) -> int:
        return (0 if self.bits == 4 else 2) + self.offset

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def struct(self) -> MatrixStruct:
        """For the kernel; good while this object is."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return MatrixStruct(self.tiles.data_ptr(), self.columns, self.depth, self.format, bias)

    def weights(self) -> Tensor:
        """[N, K] float32, the numbers that the codes stand for; a new tensor."""
        return self.rows(torch.arange(self.columns))

    def rows(self, numbers: Tensor) -> Tensor:
        """[n, K] float32: those of these columns of the product."""
        halves, blocks = 2 if self.offset else 1, self.depth // BLOCK
        tile, column = numbers // COLUMNS, numbers % COLUMNS
        raw = self.tiles[tile]  # [n, blocks, bytes]
        each = torch.arange(len(numbers))
        scales = raw[..., : 2 * COLUMNS * halves].contiguous().view(torch.float16)
        scales = scales.view(-1, blocks, halves, COLUMNS)[each, :, :, column].float()
        codes = raw[..., 2 * COLUMNS * halves :]
        if self.bits == 4:
            quads = codes.reshape(-1, blocks, 4, COLUMNS, 4)[each, :, :, column]  # [n, blocks, quad, 4]
            values = torch.cat([quads & 15, quads >> 4], 2).float()
            values = values if self.offset else values.sub_(8)
        else:
            values = codes.contiguous().view(torch.int8).view(-1, blocks, 8, COLUMNS, 4)[each, :, :, column].float()
        values = values.flatten(2).mul_(scales[:, :, :1])
        return (values.add_(scales[:, :, 1:]) if self.offset else values).flatten(1)


def pack(codes_NK: Tensor, scales_NB: Tensor, offsets_NB: Tensor | None, bits: int, bias: Tensor | None = None) -> BlockMatrix:
    """codes: uint8 0 … 15 for 4 bits, int8 for 8; scales, offsets: of each block, kept in float16. K is whole blocks."""
    columns, depth = codes_NK.shape
    assert depth % BLOCK == 0 and bits in (4, 8)
    tiles, blocks = -(-columns // COLUMNS), depth // BLOCK
    missing = tiles * COLUMNS - columns
    codes = F.pad(codes_NK.view(torch.uint8), (0, 0, 0, missing)).view(tiles, COLUMNS, blocks, 2, 4, 4)
    codes = codes.permute(0, 2, 3, 4, 1, 5)  # [tiles, blocks, half, quad, column, 4]
    laid = codes[:, :, 0] | codes[:, :, 1] << 4 if bits == 4 else codes
    parts = [
        F.pad(one.half(), (0, 0, 0, missing)).view(tiles, COLUMNS, blocks).transpose(1, 2).contiguous().view(torch.uint8)
        for one in (scales_NB, offsets_NB)
        if one is not None
    ]
    joined = torch.cat([*parts, laid.reshape(tiles, blocks, -1)], -1).contiguous()
    return BlockMatrix(joined, columns, depth, bits, offsets_NB is not None, bias)


def joined(matrices: list[BlockMatrix]) -> BlockMatrix:
    """Several over the same inputs as one, their outputs one after another. Tiles that are not whole are packed anew."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    same = all((one.depth, one.bits, one.offset) == (first.depth, first.bits, first.offset) for one in matrices)
    assert same, "matrices of one layer in several formats"
    assert all(one.columns % COLUMNS == 0 for one in matrices[:-1]), "not whole tiles"
    biases = [torch.zeros(one.columns) if one.bias is None else one.bias for one in matrices]
    bias = None if all(one.bias is None for one in matrices) else torch.cat(biases)
    tiles = torch.cat([one.tiles for one in matrices])
    return BlockMatrix(tiles, sum(one.columns for one in matrices), first.depth, first.bits, first.offset, bias)


def quantize(weight_NK: Tensor, bits: int, bias: Tensor | None = None) -> BlockMatrix:
    """A float matrix rounded to nearest: 4 bits on the even grid between a block's lowest and highest number, 8 bits of
    max|block| / 127. K is padded with zeros to whole blocks by the caller."""
    blocks = weight_NK.detach().float().unflatten(1, (-1, BLOCK))
    if bits == 8:
        scales = (blocks.abs().amax(-1) / 127).half()
        step = scales.float().clamp_min(_SMALLEST).unsqueeze(-1)
        codes = (blocks / step).round_().clamp_(-127, 127).to(torch.int8)
        return pack(codes.flatten(1), scales, None, 8, bias)
    low, high = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
    scales, offsets = ((high - low) / 15).half(), low.half()
    step = scales.float().clamp_min(_SMALLEST).unsqueeze(-1)
    codes = ((blocks - offsets.float().unsqueeze(-1)) / step).round_().clamp_(0, 15).to(torch.uint8)
    return pack(codes.flatten(1), scales, offsets, 4, bias)


def multiply(x_MK: Tensor, matrix: BlockMatrix) -> Tensor:
    """x rounded by blocks, times the matrix -> [M, N] float32."""
    kernels = block_kernels()
    if kernels is None or not x_MK.is_cpu:
        return multiply_plain(x_MK, matrix)
    x_MK = x_MK.float().contiguous()
    rows = len(x_MK)
    codes = torch.empty(rows, matrix.depth, dtype=torch.int8)
    scales, sums = torch.empty(rows, matrix.depth // BLOCK), torch.empty(rows, matrix.depth // BLOCK)
    y_MN = torch.empty(rows, matrix.columns)
    struct = matrix.struct()
    kernels.multiply_rows(
        ctypes.byref(struct), x_MK.data_ptr(), rows, codes.data_ptr(), scales.data_ptr(), sums.data_ptr(),
        y_MN.data_ptr(), matrix.columns, torch.get_num_threads(),
    )  # fmt: skip
    return y_MN


def multiply_plain(x_MK: Tensor, matrix: BlockMatrix) -> Tensor:
    """The definition."""
    y_MN = rounded(x_MK) @ matrix.weights().t().to(x_MK.device)
    return y_MN if matrix.bias is None else y_MN + matrix.bias


def rounded(x_MK: Tensor) -> Tensor:
    """x as the kernel multiplies it: each block to the nearest of 255 even steps."""
    blocks = x_MK.float().unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > _SMALLEST, torch.full_like(largest, 127) / largest, 0)
    return ((blocks * inverse).round_() * (largest / 127)).flatten(1)


@functools.cache
def block_kernels(*macros: str) -> ctypes.CDLL | None:
    """The kernels' functions with their types. macros: of forms that tests compare."""
    found = kernel("decode", *macros)
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.multiply_rows.argtypes = [at, at, size, at, at, at, at, size, number]
        found.decode_layers.argtypes = [at, at, at, at, number]
    return found
