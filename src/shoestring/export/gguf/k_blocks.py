"""Rounding to the K formats of llama.cpp: blocks of 256 numbers with scales of two levels.

Q4_K and Q5_K cut a block into eight parts of 32, each with a scale and an offset of 6 bits under two float16 of the
block; Q6_K into sixteen parts of 16, each with a scale of 8 bits under one float16. A part's scale is the best of some
twenty tries, by weighted least squares. The order of every float32 operation is that of ggml's reference, so that the
bytes are its own: parts lie one beside the other, x [numbers of a part, parts], and sums run over rows, first to last.
Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; how ggml searches: ggml-quants.c there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind

_BLOCK, _PART, _SIXTH = 256, 32, 16
_AT_ONCE = 512  # blocks: what is held of them stays in a processor's cache
_NOTHING = np.float32(1e-15)  # less than this is zero
_f = np.float32


def quantize_k(values: np.ndarray, kind: Kind) -> np.ndarray:
    """values: float32 [rows, width], finite, width a multiple of 256. -> uint8 [rows, bytes of a row]."""
    pack, size = _FORMATS[kind], GGML_QUANT_SIZES[kind][1]
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, _BLOCK)
    out = np.empty((len(blocks), size), np.uint8)
    with np.errstate(all="ignore"):  # of parts that hold nothing; what they give is not taken
        for start in range(0, len(blocks), _AT_ONCE):
            out[start : start + _AT_ONCE] = pack(blocks[start : start + _AT_ONCE])
    return out.reshape(len(values), -1)


def _sum(x: np.ndarray) -> np.ndarray:
    """Over rows, one after another: numpy's own sum may take another order, and its last bits with it."""
    total = x[0].copy()
    for row in x[1:]:
        total += row
    return total


def _parts(blocks: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


# --- scales with offsets: Q4_K and Q5_K -----------------------------------------------------------------------


def _scales_and_offsets(
    x: np.ndarray, most: int, first: float, step: float, tries: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [32, n] ≈ scale · code − offset, codes 0 to `most`. -> scales [n], offsets [n] of at least 0, codes [32, n].

    The tries are first, first + step, ... more than `most` steps between the smallest and the largest number.
    """
    weights = np.sqrt(_sum(x * x) / _f(_PART)) + np.abs(x)
    all_weights, all_x = _sum(weights), _sum(weights * x)
    low, high = np.minimum(x.min(0), _f(0)), x.max(0)
    level = high == low
    inverse = _f(most) / (high - low)
    scale = _f(1) / inverse
    codes = _codes(inverse, x, low, most)
    difference = scale * codes + low - x
    error = _sum(weights * (difference * difference))
    best_inverse, best_low = inverse.copy(), low.copy()
    for attempt in range(tries + 1):
        inverse = (_f(first) + _f(step) * _f(attempt) + _f(most)) / (high - low)
        codes = _codes(inverse, x, low, most)
        weighted = weights * codes
        of_codes, of_squares, of_products = _sum(weighted), _sum(weighted * codes), _sum(weighted * x)
        determinant = all_weights * of_squares - of_codes * of_codes
        new_scale = (all_weights * of_products - all_x * of_codes) / determinant
        new_low = (of_squares * all_x - of_codes * of_products) / determinant
        above = new_low > 0
        new_scale = np.where(above, of_products / of_squares, new_scale)
        new_low = np.where(above, _f(0), new_low)
        difference = new_scale * codes + new_low - x
        new_error = _sum(weights * (difference * difference))
        better = (determinant > 0) & (new_error < error)
        np.copyto(best_inverse, inverse, where=better)
        np.copyto(best_low, low, where=better)
        np.copyto(error, new_error, where=better)
        np.copyto(scale, new_scale, where=better)
        np.copyto(low, new_low, where=better)
    codes = _codes(best_inverse, x, best_low, most)
    return np.where(level, _f(0), scale), -low, np.where(level, _f(0), codes)


def _codes(inverse: np.ndarray, x: np.ndarray, low: np.ndarray, most: int) -> np.ndarray:
    return np.clip(np.rint(inverse * (x - low)), _f(0), _f(most))


def _six_bits(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """[n, 8] in units of a 63rd of the block's largest; a negative one wraps around and ends at 63, as in ggml."""
    inverse = np.where(largest > 0, _f(63) / largest, _f(0))
    steps = np.nan_to_num(np.rint(inverse[:, None] * values), nan=0.0, posinf=63.0, neginf=-1.0)
    return np.minimum(steps.astype(np.int32) & 255, 63).astype(np.uint8)


def _two_levels(
    blocks: np.ndarray, most: int, first: float, step: float, tries: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> the first 16 bytes of each block, uint8 [n, 16], and the codes, uint8 [n, 8, 32]."""
    count = len(blocks)
    scales, offsets, codes = _scales_and_offsets(_parts(blocks, _PART), most, first, step, tries)
    scales, offsets = scales.reshape(count, 8), offsets.reshape(count, 8)
    tops = [np.maximum(of.max(1), _f(0)) for of in (scales, offsets)]
    s, o = _six_bits(scales, tops[0]), _six_bits(offsets, tops[1])
    halves = [(top / _f(63)).astype("<f2") for top in tops]
    steps, lows = (half.astype(np.float32)[:, None] * six for half, six in zip(halves, (s, o), strict=True))
    x = blocks.reshape(count, 8, _PART)
    fresh = np.clip(np.rint((x + lows[:, :, None]) / steps[:, :, None]), _f(0), _f(most))
    kept = np.where(steps[:, :, None] != 0, fresh, codes.T.reshape(count, 8, _PART)).astype(np.uint8)
    packed = [
        s[:, :4] | (s[:, 4:] >> 4) << 6, o[:, :4] | (o[:, 4:] >> 4) << 6, (s[:, 4:] & 15) | (o[:, 4:] & 15) << 4,
    ]  # fmt: skip
    return np.concatenate([*(half.reshape(-1, 1).view(np.uint8) for half in halves), *packed], 1), kept


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """The low four bits of two parts in one row of bytes: [n, 8, 32] -> [n, 128]."""
    pairs = (codes & 15).reshape(-1, 4, 2, _PART)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    head, codes = _two_levels(blocks, 15, -1.0, 0.1, 20)
    return np.concatenate([head, _nibbles(codes)], 1)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    head, codes = _two_levels(blocks, 31, -0.5, 0.1, 15)
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little").reshape(-1, _PART)  # bit p of part p
    return np.concatenate([head, fifth, _nibbles(codes)], 1)


# --- scales alone: Q6_K ---------------------------------------------------------------------------------------


def _signed_scales(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [16, n] ≈ scale · code, codes −32 to 31. -> scales [n], and codes + 32 [16, n], all 0 where x holds nothing."""
    at = np.abs(x).argmax(0)
    top = np.take_along_axis(x, at[None], 0)[0]
    nothing = np.abs(top) < _NOTHING
    weights = x * x

    def fit(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.clip(np.rint(inverse * x), _f(-32), _f(31))
        return _sum(weights * x * codes), _sum(weights * codes * codes)

    best_inverse = _f(-32) / top
    products, squares = fit(best_inverse)
    scale = np.where(squares != 0, products / squares, _f(0))
    best = scale * products
    for attempt in range(-9, 10):
        if attempt:
            inverse = -(_f(32) + _f(0.1) * _f(attempt)) / top
            products, squares = fit(inverse)
            better = (squares > 0) & (products * products > best * squares)
            np.copyto(best_inverse, inverse, where=better)
            np.copyto(scale, products / squares, where=better)
            np.copyto(best, scale * products, where=better)
    codes = np.clip(np.rint(best_inverse * x), _f(-32), _f(31)) + _f(32)
    return np.where(nothing, _f(0), scale), np.where(nothing, _f(0), codes)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    count = len(blocks)
    scales, codes = _signed_scales(_parts(blocks, _SIXTH))
    scales = scales.reshape(count, _SIXTH)
    top = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)  # [n, 1]
    nothing = np.abs(top) < _NOTHING
    inverse = np.where(nothing, _f(0), _f(-128) / top)
    half = np.where(nothing, _f(0), _f(1) / inverse).astype("<f2")
    eight = np.minimum(np.rint(inverse * scales), _f(127)).astype(np.int8)
    steps = half.astype(np.float32) * eight
    x = blocks.reshape(count, _SIXTH, _SIXTH)
    fresh = np.clip(np.rint(x / steps[:, :, None]), _f(-32), _f(31)) + _f(32)
    kept = np.where(steps[:, :, None] != 0, fresh, codes.T.reshape(count, _SIXTH, _SIXTH))
    kept = np.where(nothing[:, :, None], _f(0), kept).astype(np.uint8).reshape(count, 2, 4, _PART)
    low, high = kept & 15, kept >> 4
    nibbles = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        [nibbles.reshape(count, 128), pairs.reshape(count, 64), eight.view(np.uint8), half.view(np.uint8)], 1
    )


_FORMATS: dict[Kind, Callable[[np.ndarray], np.ndarray]] = {Kind.Q4_K: _q4_k, Kind.Q5_K: _q5_k, Kind.Q6_K: _q6_k}
