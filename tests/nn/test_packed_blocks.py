"""Packed linears laid out in blocks of 32 stand for the same weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels.decode import weights_of
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.decoding import DecodingLinear
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.nn.quantized.packed_blocks import blocks_of


def packed(**settings: object) -> PackedLinear:
    torch.manual_seed(0)
    linear = Linear(96, 20, bias=True)
    torch.nn.init.normal_(linear.weight, 0.02, 0.1)
    return PackedLinear.from_linear(linear, PackedConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [*itertools.product((3, 4, 5, 8), (32, 96, None), (True, False))]
)
def test_blocks_stand_for_the_same_weights(bits: int, group: int | None, symmetric: bool) -> None:
    linear = packed(bits=bits, group=group, symmetric=symmetric)
    matrix = blocks_of(linear)
    assert matrix is not None and matrix.bits == (4 if bits <= 4 else 8)
    weights = linear.weights()
    if symmetric:
        assert torch.equal(weights_of(matrix), weights)
    else:  # offsets are rounded to float16
        assert_close(weights_of(matrix), weights, rtol=0, atol=float(weights.abs().max()) * 2**-10)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    y = DecodingLinear(matrix, 96)(x)
    assert_close(y, linear(x), rtol=0, atol=0.05)


def test_groups_that_are_no_blocks_and_scales_beyond_float16_are_left() -> None:
    assert blocks_of(packed(group=16)) is None
    small = packed(group=32)
    small.scale.mul_(1e-9)
    assert blocks_of(small) is None
