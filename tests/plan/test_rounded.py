"""Weights rounded when a model is loaded: the bytes that the allocator counts, and those that are predicted."""

from __future__ import annotations

import gc

import pytest
import torch

from shoestring.kernels import allocator
from shoestring.models.decoding_weights import load_for_decoding
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.rounded import predict_rounded, rounded_bytes, rounding_bytes
from shoestring.plan.shapes import Machine
from tests.plan import counted

MACHINE = Machine(0, 1e11, bandwidth=2e10)


@pytest.mark.parametrize(("width", "vocabulary"), [(80, 5000), (64, 20_000), (64, 5000)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_kept_and_while_the_head_is_rounded(bits, tied, width, vocabulary, tmp_path):
    """Also of widths that are no whole blocks, and of rows that are no whole tiles."""
    assert allocator.install()
    config = counted.config(width, vocabulary, tied_head=tied)
    folder = counted.folder(config, tmp_path / "model", torch.float32)
    gc.collect()
    before = allocator.counts().live
    allocator.reset_peaks()
    decoder = load_for_decoding(folder, f"int{bits}")
    peak, kept = (allocator.counts().live_peak - before, allocator.counts().live - before)
    assert decoder.config == config
    assert abs(kept - rounded_bytes(config, bits)) <= 5000
    assert peak == pytest.approx(rounding_bytes(config), rel=0.02)


def test_fewer_bits_are_written_faster_and_take_less():
    config, use = counted.config(256, vocabulary=2000, layers=12), Use(1, 400, 50)
    plain = predict_use(config, use, MACHINE, "float32")
    eight, four = (predict_rounded(config, use, MACHINE, "float32", bits) for bits in (8, 4))
    assert plain.total > eight.total > four.total and plain.seconds > eight.seconds > four.seconds
    reading = {dict(one.time)["reading the prompt"] for one in (plain, eight, four)}
    assert len(reading) == 1
