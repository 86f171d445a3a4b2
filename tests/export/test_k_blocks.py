"""Blocks of 256 numbers that are rounded here decode, by gguf's own package, to numbers near them."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from shoestring.export.gguf import k_blocks
from shoestring.export.gguf.k_blocks import quantize_k

KINDS = [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
# Of normal numbers: what a step of the format takes of their norm, with a little to spare.
LOST = {Kind.Q4_K: 0.085, Kind.Q5_K: 0.045, Kind.Q6_K: 0.02}


def decoded(values: np.ndarray, kind: Kind) -> np.ndarray:
    return quants.dequantize(quantize_k(values, kind), kind)


def lost(values: np.ndarray, kind: Kind) -> float:
    return float(np.linalg.norm(decoded(values, kind) - values) / np.linalg.norm(values))


def normal(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_normal_numbers_lose_what_a_step_takes(kind: Kind, scale: float) -> None:
    assert lost(normal(9, 768) * np.float32(scale), kind) < LOST[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_and_block_is_rounded_by_itself(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(5, 512) * np.geomspace(1e-3, 1e3, 5, dtype=np.float32)[:, None]
    whole = quantize_k(values, kind)
    for row in range(5):
        np.testing.assert_array_equal(quantize_k(values[row : row + 1], kind)[0], whole[row])
    monkeypatch.setattr(k_blocks, "_AT_ONCE", 3)
    np.testing.assert_array_equal(quantize_k(values, kind), whole)


@pytest.mark.parametrize(("kind", "low", "high"), [(Kind.Q4_K, 0, 15), (Kind.Q5_K, 0, 31), (Kind.Q6_K, -32, 31)])
def test_what_a_block_can_hold_it_holds(kind: Kind, low: int, high: int) -> None:
    """Whole numbers over the span of the codes: what is lost is only what float16 takes of the scale."""
    values = np.random.default_rng(0).integers(low, high + 1, (4, 512)).astype(np.float32)
    values.reshape(-1, 16)[:, :2] = low, high  # in every part
    assert lost(values, kind) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_odd_blocks_are_near_too(kind: Kind) -> None:
    zeros = np.zeros((2, 256), np.float32)
    np.testing.assert_array_equal(decoded(zeros, kind), zeros)
    assert lost(np.full((1, 256), -0.3, np.float32), kind) < 0.02
    assert lost(np.full((1, 256), 0.3, np.float32), kind) < 0.02
    alone = zeros.copy()
    alone[0, 100], alone[1, 7] = 5.0, -5.0
    np.testing.assert_allclose(decoded(alone, kind), alone, atol=0.03)
    positive = np.abs(normal(3, 256)) + np.float32(4)  # far from zero, which every offset reaches back to
    assert lost(positive, kind) < 0.04
    mixed = normal(1, 256)
    mixed[0, :128] *= np.float32(1e-6)  # parts that their block's scales cannot tell from nothing
    assert np.abs(decoded(mixed, kind)[0, :128]).max() < 0.2 and lost(mixed, kind) < LOST[kind] * 1.2


def test_more_bits_lose_less() -> None:
    values = normal(8, 512, seed=5)
    assert lost(values, Kind.Q6_K) < lost(values, Kind.Q5_K) / 1.5 < lost(values, Kind.Q4_K) / 2.5


def test_the_search_for_scales_beats_the_span_of_the_numbers() -> None:
    """The tries are worth it: beside one that takes smallest and largest number for the ends."""
    values = normal(16, 256, seed=7)
    parts = values.reshape(-1, 32)
    low = np.minimum(parts.min(1, keepdims=True), 0)
    step = (parts.max(1, keepdims=True) - low) / 15
    plain = np.rint((parts - low) / step) * step + low
    assert lost(values, Kind.Q4_K) < np.linalg.norm(plain - parts) / np.linalg.norm(parts)
