"""Blocks of a GGUF tensor as decoding keeps them: codes, scales and offsets, without a way over floats.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 keep their numbers; codes of 5 bits take 8. Q4_K and Q5_K have scales and offsets of
two levels, whose products are rounded to float16 (11 bits). Q6_K has a scale for every 16 numbers: each 32 are brought
to one scale, in 8 bits. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind

from shoestring.kernels.blocks import BlockMatrix, pack
from shoestring.kernels.decode import BLOCK

_SUPER = 256  # numbers of a block of the K formats


class Parts(NamedTuple):
    """Of some rows: codes [N, K], scales and offsets [N, K / 32] float32; offsets None where there are none."""

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None
    bits: int

    def matrix(self, order: np.ndarray | None = None) -> BlockMatrix:
        """As the kernel takes them. order: of the rows."""
        arrays = (self.codes, self.scales, self.offsets)
        codes, scales, offsets = (
            None if one is None else torch.from_numpy(one if order is None else one[order]) for one in arrays
        )
        assert codes is not None and scales is not None
        return pack(codes, scales, offsets, self.bits)


def parts_of(raw: memoryview | bytes, kind: Kind, width: int) -> Parts:
    """raw: whole rows of `width` numbers, a multiple of the format's block. kind: one of `BLOCKS`."""
    numbers, size, read = _FORMATS[kind]
    assert width % numbers == 0
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)  # of all rows, one after another
    return read(blocks, width // numbers)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """[n, 1] float32 of the float16 at a byte of each block."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, 16] bytes -> [n, 32] codes: low halves, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], 1)


def _rows(values: np.ndarray, per_row: int) -> np.ndarray:
    return np.ascontiguousarray(values.reshape(-1, per_row * values.shape[1]))


def _q4_0(blocks: np.ndarray, per_row: int) -> Parts:
    return Parts(_rows(_nibbles(blocks[:, 2:]), per_row), _rows(_halves(blocks, 0), per_row), None, 4)


def _q4_1(blocks: np.ndarray, per_row: int) -> Parts:
    scales, offsets = (_rows(_halves(blocks, at), per_row) for at in (0, 2))
    return Parts(_rows(_nibbles(blocks[:, 4:]), per_row), scales, offsets, 4)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """[n, 32] of 0 and 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q5_0(blocks: np.ndarray, per_row: int) -> Parts:
    codes = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)
    return Parts(_rows(codes, per_row), _rows(_halves(blocks, 0), per_row), None, 8)


def _q5_1(blocks: np.ndarray, per_row: int) -> Parts:
    codes = (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).astype(np.int8)
    scales, offsets = (_rows(_halves(blocks, at), per_row) for at in (0, 2))
    return Parts(_rows(codes, per_row), scales, offsets, 8)


def _q8_0(blocks: np.ndarray, per_row: int) -> Parts:
    codes = blocks[:, 2:].copy().view(np.int8)
    return Parts(_rows(codes, per_row), _rows(_halves(blocks, 0), per_row), None, 8)


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of eight parts of 32: scales and offsets [n, 8] float32 (d · 6 bits, −dmin · 6 bits)."""
    low, high, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (both & 15) | (low >> 6) << 4], 1)
    offsets = np.concatenate([high & 63, (both >> 4) | (high >> 6) << 4], 1)
    return _halves(blocks, 0) * scales, -_halves(blocks, 2) * offsets


def _chunks(packed: np.ndarray) -> np.ndarray:
    """[n, 128] bytes -> [n, 256]: of each 32 bytes the low halves, then the high ones."""
    chunks = packed.reshape(-1, 4, 32)
    return np.stack([chunks & 15, chunks >> 4], 2).reshape(-1, _SUPER)


def _q4_k(blocks: np.ndarray, per_row: int) -> Parts:
    scales, offsets = _k_scales(blocks)
    return Parts(_rows(_chunks(blocks[:, 16:]), per_row), _rows(scales, per_row), _rows(offsets, per_row), 4)


def _q5_k(blocks: np.ndarray, per_row: int) -> Parts:
    scales, offsets = _k_scales(blocks)
    bits = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little")  # [n, 32, 8]: bit p of part p
    fifth = (bits.transpose(0, 2, 1) << 4).reshape(-1, _SUPER)
    codes = (_chunks(blocks[:, 48:]) | fifth).astype(np.int8)
    return Parts(_rows(codes, per_row), _rows(scales, per_row), _rows(offsets, per_row), 8)


def _q6_k(blocks: np.ndarray, per_row: int) -> Parts:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], 2)  # [n, 2, 4, 32]: four parts of each half
    pairs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    codes = ((nibbles | pairs << 4).astype(np.int8) - np.int8(32)).reshape(-1, 16, 16).astype(np.float32)
    own = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    values = codes * (_halves(blocks, 208) * own)[:, :, None]  # a scale for every 16
    values = values.reshape(-1, 8, BLOCK)
    scales = (np.abs(values).max(-1) / 127).astype(np.float16).astype(np.float32)
    steps = np.where(scales > 0, scales, 1)[:, :, None]
    rounded = np.clip(np.rint(values / steps), -127, 127).astype(np.int8).reshape(-1, _SUPER)
    return Parts(_rows(rounded, per_row), _rows(scales, per_row), None, 8)


# Numbers and bytes of a block, and how blocks are read.
_FORMATS: dict[Kind, tuple[int, int, Callable[[np.ndarray, int], Parts]]] = {
    Kind.Q4_0: (BLOCK, 18, _q4_0), Kind.Q4_1: (BLOCK, 20, _q4_1), Kind.Q5_0: (BLOCK, 22, _q5_0),
    Kind.Q5_1: (BLOCK, 24, _q5_1), Kind.Q8_0: (BLOCK, 34, _q8_0), Kind.Q4_K: (_SUPER, 144, _q4_k),
    Kind.Q5_K: (_SUPER, 176, _q5_k), Kind.Q6_K: (_SUPER, 210, _q6_k),
}  # fmt: skip
BLOCKS = frozenset(_FORMATS)
