"""Products with weights in blocks: what is packed is what was given, and the kernel is its twin in every form."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.kernels import blocks
from shoestring.kernels.blocks import BLOCK, COLUMNS, block_kernels, joined, multiply, multiply_plain, pack, quantize

FORMS = [(4, False), (4, True), (8, False), (8, True)]
needs_kernel = pytest.mark.skipif(block_kernels() is None, reason="no compiler")


def drawn(columns, depth, bits, offset, seed=1):
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (columns, depth), generator=generator)
    codes = codes.to(torch.uint8 if bits == 4 else torch.int8)
    scales = torch.rand(columns, depth // BLOCK, generator=generator) * 0.1
    offsets = torch.randn(columns, depth // BLOCK, generator=generator) if offset else None
    return codes, scales, offsets


def dense(codes, scales, offsets, bits):
    middle = 8 if bits == 4 and offsets is None else 0
    values = (codes.double() - middle).unflatten(1, (-1, BLOCK)) * scales.half().double().unsqueeze(-1)
    return (values if offsets is None else values + offsets.half().double().unsqueeze(-1)).flatten(1)


@pytest.mark.parametrize(("bits", "offset"), FORMS)
@pytest.mark.parametrize("columns", [1, 16, 37])
def test_weights_are_what_was_packed(bits, offset, columns):
    parts = drawn(columns, 96, bits, offset)
    matrix = pack(*parts, bits)
    assert torch.equal(matrix.weights().double(), dense(*parts, bits).float().double())
    some = torch.tensor([columns - 1, 0, columns // 2])
    assert torch.equal(matrix.rows(some), matrix.weights()[some])
    per_weight = 8 * matrix.nbytes / (-(-columns // COLUMNS) * COLUMNS * 96)
    assert per_weight == bits + 0.5 * (1 + offset)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_level(bits):
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    matrix = quantize(weight, bits)
    step = matrix.weights().unflatten(1, (-1, BLOCK)).diff(dim=-1).abs()
    blocks_of = weight.unflatten(1, (-1, BLOCK))
    span = (blocks_of.amax(-1).clamp_min(0) - blocks_of.amin(-1).clamp_max(0)) / 15 if bits == 4 else (
        blocks_of.abs().amax(-1) / 127
    )  # fmt: skip
    off = (matrix.weights() - weight).unflatten(1, (-1, BLOCK)).abs().amax(-1)
    assert (off <= span * 0.52 + 2e-3 * blocks_of.abs().amax(-1)).all() and step.max() > 0
    zeros = quantize(torch.zeros(16, 32), bits)
    assert torch.equal(zeros.weights(), torch.zeros(16, 32))


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 70), groups=st.integers(1, 6), form=st.sampled_from(FORMS),
    threads=st.integers(1, 3), bias=st.booleans(), macro=st.sampled_from([(), ("SHOESTRING_PLAIN",)]),
)  # fmt: skip
def test_the_kernel_is_its_twin(rows, columns, groups, form, threads, bias, macro):
    bits, offset = form
    matrix = pack(*drawn(columns, groups * BLOCK, bits, offset, seed=rows), bits, torch.randn(columns) if bias else None)
    x = torch.randn(rows, groups * BLOCK) * torch.logspace(-3, 3, rows).unsqueeze(1)
    x[0, :BLOCK] = 0
    wanted = multiply_plain(x.double().float(), matrix).double()
    found = torch.full((rows, columns), float("nan"))
    codes = torch.empty(rows, matrix.depth, dtype=torch.int8)
    scales, sums = torch.empty(rows, groups), torch.empty(rows, groups)
    struct, kernels = matrix.struct(), block_kernels(*macro)
    kernels.multiply_rows(
        ctypes.byref(struct), x.data_ptr(), rows, codes.data_ptr(), scales.data_ptr(), sums.data_ptr(),
        found.data_ptr(), columns, threads,
    )  # fmt: skip
    size = blocks.rounded(x).abs().double() @ matrix.weights().abs().double().t() + 1e-6
    assert ((found.double() - wanted).abs() <= 2e-6 * size).all()


@needs_kernel
def test_integers_are_exact():
    """Codes of one block, scales of one: the kernel's sum is the integer that it is by definition."""
    codes = torch.randint(-128, 128, (COLUMNS, BLOCK), dtype=torch.int8)
    matrix = pack(codes, torch.ones(COLUMNS, 1), None, 8)
    x = torch.randint(-127, 128, (3, BLOCK)).float()
    x[:, 0] = 127  # so that a step is one
    assert torch.equal(multiply(x, matrix).long(), x.long() @ codes.long().t())


def test_matrices_are_joined():
    parts = [quantize(torch.randn(columns, 64), 4, torch.randn(columns)) for columns in (32, 16, 5)]
    whole = joined(parts)
    x = torch.randn(4, 64)
    assert torch.equal(whole.weights(), torch.cat([one.weights() for one in parts]))
    assert torch.allclose(multiply(x, whole), torch.cat([multiply(x, one) for one in parts], 1), atol=1e-5)
