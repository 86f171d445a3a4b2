"""Matrices of 4 or 8 bits in blocks of 32 for decoding: what they stand for, and how they are packed.

A matrix [N, K] is codes and, for each block along K, a scale d and perhaps an offset m, float16: w = d · code + m;
codes of 4 bits without an offset stand for code − 8. `pack` lays them out as the kernel reads them (matrix.h: tiles of
16 columns of the product).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.kernels.decode import BLOCK

COLUMNS = 16
_SMALLEST = 1e-30
_TOGETHER = 4096  # columns rounded at a time: whole tiles


@dataclass(frozen=True)
class BlockMatrix:
    """tiles: uint8 [⌈N / 16⌉, K / 32, bytes of a block]. bits: of a code, 4 (0 … 15) or 8 (−128 … 127). bias: [N], or
    None."""

    tiles: Tensor
    columns: int
    depth: int
    bits: int
    offset: bool
    bias: Tensor | None = None

    @property
    def held(self) -> Tensor:
        return self.tiles

    @property
    def format(self) -> int:
        return (0 if self.bits == 4 else 2) + self.offset

    def rows(self, first: int, last: int) -> Tensor:
        """[last − first, K] float32: weights of these columns of the product."""
        start = first // COLUMNS
        values = self._unpacked(self.tiles[start : -(-last // COLUMNS)]).flatten(0, 1)
        return values[first - start * COLUMNS : last - start * COLUMNS]

    def picked(self, numbers: Tensor) -> Tensor:
        """The same for columns in any order."""
        tiles = self._unpacked(self.tiles[numbers // COLUMNS])
        return tiles[torch.arange(len(numbers)), numbers % COLUMNS]

    def _unpacked(self, tiles: Tensor) -> Tensor:
        """Some tiles -> [T, 16, K]."""
        halves, blocks = 2 if self.offset else 1, self.depth // BLOCK
        scales = tiles[..., : 2 * COLUMNS * halves].contiguous().view(torch.float16)
        # [halves, T, 16, blocks, 1]
        scales = scales.view(-1, blocks, halves, COLUMNS).permute(2, 0, 3, 1).unsqueeze(-1).float()
        codes = tiles[..., 2 * COLUMNS * halves :].contiguous()
        if self.bits == 4:
            quads = codes.view(-1, blocks, 4, COLUMNS, 4)
            quads = torch.cat([quads & 15, quads >> 4], 2)
        else:
            quads = codes.view(torch.int8).view(-1, blocks, 8, COLUMNS, 4)
        values = quads.permute(0, 3, 1, 2, 4).reshape(-1, COLUMNS, blocks, BLOCK).float()
        if self.bits == 4 and not self.offset:
            values.sub_(8)
        values.mul_(scales[0])
        return (values.add_(scales[1]) if self.offset else values).flatten(2)


def pack(
    codes_NK: Tensor, scales_NB: Tensor, offsets_NB: Tensor | None, bits: int, bias: Tensor | None = None
) -> BlockMatrix:
    """codes: uint8 0 … 15 for 4 bits, int8 for 8; scales, offsets: of each block, kept in float16. K is whole
    blocks."""
    columns, depth = codes_NK.shape
    assert depth % BLOCK == 0 and bits in (4, 8)
    tiles, blocks = -(-columns // COLUMNS), depth // BLOCK
    missing = tiles * COLUMNS - columns
    codes = F.pad(codes_NK.view(torch.uint8), (0, 0, 0, missing)).view(tiles, COLUMNS, blocks, 2, 4, 4)
    codes = codes.permute(0, 2, 3, 4, 1, 5)  # [tiles, blocks, half, quad, column, 4]
    laid = codes[:, :, 0] | codes[:, :, 1] << 4 if bits == 4 else codes
    numbers = []
    for one in (scales_NB,) if offsets_NB is None else (scales_NB, offsets_NB):
        halves = F.pad(one.half(), (0, 0, 0, missing)).view(tiles, COLUMNS, blocks).transpose(1, 2)
        numbers.append(halves.contiguous().view(torch.uint8))
    whole = torch.cat([*numbers, laid.reshape(tiles, blocks, -1)], -1)
    return BlockMatrix(whole, columns, depth, bits, offsets_NB is not None, bias)


def below(parts: Sequence[BlockMatrix], bias: Tensor | None = None) -> BlockMatrix:
    """Matrices of one kind, one's columns after another's, as one; all but the last are whole tiles."""
    first = parts[0]
    assert all(part.columns % COLUMNS == 0 for part in parts[:-1])
    assert all((part.depth, part.bits, part.offset) == (first.depth, first.bits, first.offset) for part in parts)
    tiles = first.tiles if len(parts) == 1 else torch.cat([part.tiles for part in parts])
    return BlockMatrix(tiles, sum(part.columns for part in parts), first.depth, first.bits, first.offset, bias)


def quantize(weight_NK: Tensor, bits: int, bias: Tensor | None = None) -> BlockMatrix:
    """A matrix of floats rounded to nearest: 4 bits on the even grid between a block's lowest and highest number, zero
    among them; 8 bits in steps of max|block| / 127. K is padded with zeros to whole blocks."""
    return below([_rounded(part, bits) for part in weight_NK.detach().split(_TOGETHER)], bias)


def _rounded(weight_NK: Tensor, bits: int) -> BlockMatrix:
    blocks = F.pad(weight_NK.float(), (0, -weight_NK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    if bits == 8:
        scales = (blocks.abs().amax(-1) / 127).half()
        step = scales.float().clamp_min(_SMALLEST).unsqueeze(-1)
        codes = (blocks / step).round_().clamp_(-127, 127).to(torch.int8)
        return pack(codes.flatten(1), scales, None, 8)
    low, high = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
    scales, offsets = ((high - low) / 15).half(), low.half()
    step = scales.float().clamp_min(_SMALLEST).unsqueeze(-1)
    codes = ((blocks - offsets.float().unsqueeze(-1)) / step).round_().clamp_(0, 15).to(torch.uint8)
    return pack(codes.flatten(1), scales, offsets, 4)
