"""Matrices as decoding keeps them: what is packed is what was given, and the kernel is its twin in every form."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.kernels import compiled, decode
from shoestring.kernels.blocks import COLUMNS, below, pack, quantize
from shoestring.kernels.decode import (
    BLOCK,
    FloatMatrix,
    RowsStruct,
    decode_kernels,
    multiply,
    multiply_plain,
    pick,
    rounded,
    struct_of,
    weights_of,
)

FORMS = [(4, False), (4, True), (8, False), (8, True)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
MACROS = [(), ("SHOESTRING_PLAIN",)]
needs_kernel = pytest.mark.skipif(decode_kernels() is None, reason="no compiler")


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


def through(kernels, x, matrix, threads=1):
    """multiply, by these kernels and so many threads."""
    rows, blocks = len(x), matrix.depth // BLOCK + 1
    codes, scales = torch.empty(rows, matrix.depth, dtype=torch.int8), torch.empty(rows, blocks)
    totals, found = torch.empty(rows, blocks), torch.full((rows, matrix.columns), float("nan"))
    struct, room = struct_of(matrix), RowsStruct(codes.data_ptr(), scales.data_ptr(), totals.data_ptr(), None)
    kernels.multiply_rows(
        ctypes.byref(struct), x.data_ptr(), rows, ctypes.byref(room), found.data_ptr(), threads
    )
    return found


@pytest.mark.parametrize(("bits", "offset"), FORMS)
@pytest.mark.parametrize("columns", [1, 16, 37])
def test_weights_are_what_was_packed(bits, offset, columns):
    parts = drawn(columns, 96, bits, offset)
    matrix = pack(*parts, bits)
    wanted = dense(*parts, bits)
    assert torch.allclose(weights_of(matrix).double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(matrix.rows(columns // 3, columns), weights_of(matrix)[columns // 3 :])
    per_weight = 8 * matrix.held.nbytes / (-(-columns // COLUMNS) * COLUMNS * 96)
    assert per_weight == bits + 0.5 * (1 + offset)


@pytest.mark.parametrize("matrix", [*(pack(*drawn(37, 96, *form), form[0]) for form in FORMS),
                                    *(FloatMatrix(torch.randn(37, 50).to(dtype)) for dtype in FLOATS)])  # fmt: skip
def test_columns_are_picked_as_they_are(matrix, monkeypatch):
    numbers = torch.tensor([36, 0, 17, 17, 16])
    found = pick(matrix, numbers)
    assert torch.allclose(found, weights_of(matrix)[numbers], rtol=1e-6, atol=1e-7)
    with pytest.raises(IndexError):
        pick(matrix, torch.tensor([37]))
    monkeypatch.setattr(decode, "decode_kernels", lambda: None)
    assert torch.equal(pick(matrix, numbers), weights_of(matrix)[numbers])
    with pytest.raises(IndexError):
        pick(matrix, torch.tensor([37]))


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_level(bits):
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    matrix = quantize(weight, bits)
    assert matrix.depth == 64
    padded = torch.nn.functional.pad(weight, (0, 14))
    blocks = padded.unflatten(1, (-1, BLOCK))
    span = (blocks.amax(-1).clamp_min(0) - blocks.amin(-1).clamp_max(0)) / 15
    step = span if bits == 4 else blocks.abs().amax(-1) / 127
    off = (weights_of(matrix) - padded).unflatten(1, (-1, BLOCK)).abs().amax(-1)
    assert (off <= step * 0.52 + 2e-3 * blocks.abs().amax(-1)).all()
    assert not weights_of(quantize(torch.zeros(16, 32), bits)).any()


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 70), groups=st.integers(1, 6), form=st.sampled_from(FORMS),
    threads=st.integers(1, 3), bias=st.booleans(), macro=st.sampled_from(MACROS),
)  # fmt: skip
def test_the_kernel_is_its_twin_with_blocks(rows, columns, groups, form, threads, bias, macro):
    bits, offset = form
    matrix = pack(*drawn(columns, groups * BLOCK, bits, offset, rows), bits, torch.randn(columns) if bias else None)
    x = torch.randn(rows, groups * BLOCK) * torch.logspace(-3, 3, rows).unsqueeze(1)
    x[0, :BLOCK] = 0
    found = through(decode_kernels(*macro), x, matrix, threads)
    size = rounded(x).abs().double() @ weights_of(matrix).abs().double().t() + (1 if bias else 1e-6)
    assert ((found.double() - multiply_plain(x, matrix).double()).abs() <= 3e-6 * size).all()


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 5), columns=st.integers(1, 40), depth=st.integers(1, 70), dtype=st.sampled_from(FLOATS),
    threads=st.integers(1, 3), bias=st.booleans(), macro=st.sampled_from(MACROS),
)  # fmt: skip
def test_the_kernel_is_its_twin_with_floats(rows, columns, depth, dtype, threads, bias, macro):
    matrix = FloatMatrix(torch.randn(columns, depth).to(dtype), torch.randn(columns) if bias else None)
    x = torch.randn(rows, depth)
    found = through(decode_kernels(*macro), x, matrix, threads)
    assert torch.allclose(found, multiply_plain(x, matrix), rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_exact(bits, macro):
    """The greatest codes, and scales of one: the kernel's sum is the integer that it is by definition."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(*((0, 16) if bits == 4 else (-128, 128)), (COLUMNS, BLOCK), generator=generator)
    codes[0], codes[1] = codes.max(), codes.min()
    matrix = pack(codes.to(torch.uint8 if bits == 4 else torch.int8), torch.ones(COLUMNS, 1), None, bits)
    x = torch.randint(-127, 128, (5, BLOCK), generator=generator).float()
    x[:, 0] = 127  # so that a step is one
    x[0], x[1] = 127, -127
    x[1, 0] = 127
    wanted = x.long() @ (codes - (8 if bits == 4 else 0)).t()
    assert torch.equal(through(decode_kernels(*macro), x, matrix).double(), wanted.double())


@needs_kernel
@pytest.mark.parametrize("matrix", [quantize(torch.randn(20, 64), 4), FloatMatrix(torch.randn(20, 70))])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(matrix):
    x = torch.randn(11, matrix.depth)
    whole = through(decode_kernels(), x, matrix, 2)
    for some in (slice(0, 1), slice(3, 5), slice(4, 11)):
        assert torch.equal(through(decode_kernels(), x[some].contiguous(), matrix), whole[some])


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_is_seen(bits):
    matrix, x = quantize(torch.randn(5, 64), bits), torch.randn(4, 64)
    x[1, 3], x[2, 40] = float("nan"), float("-inf")
    for found in (multiply(x, matrix), multiply_plain(x, matrix)):
        assert found[[0, 3]].isfinite().all() and not found[[1, 2]].isfinite().any()


def test_matrices_below_each_other_are_one():
    parts = [quantize(torch.randn(columns, 64), 4) for columns in (32, 16, 5)]
    whole = below(parts)
    assert torch.equal(weights_of(whole), torch.cat([weights_of(one) for one in parts]))


def test_without_a_compiler_the_twin_multiplies(monkeypatch):
    matrix, x = quantize(torch.randn(20, 64), 8, torch.randn(20)), torch.randn(3, 64)
    with_kernel = multiply(x, matrix)
    monkeypatch.setattr(decode, "decode_kernels", lambda: None)
    assert torch.equal(multiply(x, matrix), multiply_plain(x, matrix))
    assert torch.allclose(multiply(x, matrix), with_kernel, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("form", ["SHOESTRING_OWN", "SHOESTRING_PLAIN", "SHOESTRING_NARROW"])
def test_nothing_is_read_or_written_beside_its_memory(form, tmp_path):
    """Random shapes in memory of their exact size, under AddressSanitizer."""
    build = ["g++", "-std=c++17", "-O1", "-g", "-march=native", "-fopenmp", "-fsanitize=address,undefined", f"-D{form}"]
    build += ["-fno-sanitize-recover=all", "-I", str(Path(compiled.__file__).parent)]
    source, program = Path(__file__).with_name("decode_stress.cpp"), tmp_path / "stress"
    made = subprocess.run([*build, str(source), "-o", str(program)], capture_output=True, text=True)
    assert made.returncode == 0, f"g++ has no sanitizer here, or the program is wrong: {made.stderr}"
    run = subprocess.run([str(program), "150"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@pytest.mark.long
@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_narrower_processors(form):
    bits, offset = form
    matrix, x = pack(*drawn(70, 192, bits, offset), bits), torch.randn(7, 192)
    found = through(decode_kernels("SHOESTRING_NARROW"), x, matrix)
    assert torch.allclose(found, multiply_plain(x, matrix), rtol=1e-4, atol=1e-3)
