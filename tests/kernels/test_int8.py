"""The int8 kernel in all its forms against its twin, bit for bit, and the twin against float64 and big integers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels import compiled, int8
from shoestring.kernels.compiled import kernel
from shoestring.kernels.int8 import Rows, Thin

# Beyond a tile, a part of the depth (1,024) and the rows of a thread, and nowhere a multiple of them.
SHAPES = pytest.mark.parametrize(
    "rows,inputs,outputs",
    [(1, 64, 64), (5, 7, 3), (3, 1, 1), (37, 255, 191), (100, 130, 64), (131, 1041, 33), (7, 2500, 300)],
)
FORMS = {"own": (), "pairs": ("SHOESTRING_PAIRS",), "plain": ("SHOESTRING_PLAIN",)}  # of multiplying (int8_lanes.h)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel as it is compiled for this processor, and for lesser ones."""
    found = int8._typed_kernel(*FORMS[request.param])
    monkeypatch.setattr(int8, "_typed_kernel", lambda: found)
    return request.param


def problem(rows: int, inputs: int, outputs: int):
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    return torch.randn(rows, inputs), weight, torch.rand(outputs)


def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_typed_kernel", lambda: None)


@SHAPES
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_are_rounded_as_the_twin_rounds_them(rows: int, inputs: int, outputs: int, scaled: bool) -> None:
    x, _, _ = problem(rows, inputs, outputs)
    x[0] = 0
    columns = torch.rand(inputs) if scaled else None
    mine, twin = int8.quantize_rows(x, columns), int8.quantize_rows_plain(x, columns)
    assert_close(mine.codes, twin.codes, rtol=0, atol=0)
    assert_close(mine.scale, twin.scale, rtol=0, atol=0)
    assert mine.sums is None or torch.equal(mine.sums, twin.codes.int().sum(1, dtype=torch.int32))
    assert not twin.codes[0].any() and twin.scale[0] == 0
    exact = x.double() if columns is None else x.double() * columns
    error = (twin.codes.double() * twin.scale.double().unsqueeze(1) - exact).abs()
    assert bool((error <= 0.5001 * twin.scale.unsqueeze(1)).all())


@SHAPES
def test_dithered_rows_are_the_twins_and_right_on_average(rows: int, inputs: int, outputs: int) -> None:
    x, _, _ = problem(rows, inputs, outputs)
    x, columns = x.abs().pow(8), torch.rand(inputs) + 0.5  # most of them far under the largest
    x[0] = 0
    wide = torch.cat([x, x], 1)
    mine, twin = int8.dither_rows(wide[:, :inputs], columns), int8.dither_rows_plain(x, columns)
    assert torch.equal(mine.codes, twin.codes) and torch.equal(mine.scale, twin.scale)
    assert mine.sums is None or torch.equal(mine.sums, twin.codes.int().sum(1, dtype=torch.int32))
    exact, found = x.double() * columns, twin.codes.double() * twin.scale.double().unsqueeze(1)
    assert bool(((found - exact).abs() <= 1.0001 * twin.scale.unsqueeze(1)).all())
    steps = (found - exact) / twin.scale.double().clamp_min(1e-30).unsqueeze(1)
    assert abs(float(steps.sum())) <= 2 + 0.05 * float(steps.abs().sum())


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_dithering_never_leaves_the_range_of_codes(value: float) -> None:
    x = torch.full((300, 300), value) * torch.linspace(0.9, 1.1, 300).unsqueeze(1)
    for rows in (int8.dither_rows(x, torch.ones(300)), int8.dither_rows_plain(x, torch.ones(300))):
        assert bool((rows.codes == 127 * value).all())


@pytest.mark.parametrize("transposed", [False, True])
def test_the_largest_columns_stay_as_they_are(form: str, transposed: bool) -> None:
    x, weight, columns = problem(20, 70, 41)
    x[:, [3, 66]] *= 50
    x[7, 12] = -200
    given = weight.t().contiguous().t() if transposed else weight
    mine, twin = int8.quantize_rows(x, keep=3), int8.quantize_rows_plain(x, keep=3)
    assert twin.kept is not None and sorted(twin.kept.tolist()) == [3, 12, 66]
    assert mine.kept is not None and sorted(mine.kept.tolist()) == [3, 12, 66]
    assert torch.equal(mine.codes, twin.codes) and torch.equal(mine.scale, twin.scale)
    thin = Thin(torch.randn(20, 2), torch.randn(2, 41))
    y = int8.product(mine, given, columns, thin)
    assert_close(y, int8.product_plain(twin, weight, columns, thin), rtol=1e-4, atol=1e-2)
    exact = x.double() @ (weight.double() * columns.unsqueeze(1)).t() + thin.left.double() @ thin.right.double()
    error, without = (y - exact).norm(), (int8.product(int8.quantize_rows(x), weight, columns, thin) - exact).norm()
    assert float(error) < 0.1 * float(without)


@SHAPES
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_products_are_the_twins_and_exact(
    form: str, rows: int, inputs: int, outputs: int, transposed: bool, added: bool
) -> None:
    x, weight, columns = problem(rows, inputs, outputs)
    given = weight.t().contiguous().t() if transposed else weight
    thin = Thin(torch.randn(rows, 3), torch.randn(outputs, 3).t(), 0.5) if added else None
    mine = int8.product(int8.quantize_rows(x), given, columns, thin)
    rounded = int8.quantize_rows_plain(x)
    twin = int8.product_plain(rounded, weight, columns, thin)
    assert_close(mine, twin, rtol=1e-5 if added else 0, atol=1e-5 if added else 0)
    exact = rounded.codes.double() @ weight.double().t() * rounded.scale.double().unsqueeze(1) * columns
    if thin is not None:
        exact += thin.left.double() @ thin.right.double() * thin.scale
    assert_close(twin.double(), exact, rtol=1e-5, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("transposed", [False, True])
def test_all_forms_give_the_same_numbers_floats_among_them(
    monkeypatch: pytest.MonkeyPatch, rows: int, inputs: int, outputs: int, transposed: bool
) -> None:
    x, weight, columns = problem(rows, inputs, outputs)
    given = weight.t().contiguous().t() if transposed else weight
    thin, before, results = Thin(torch.randn(rows, 3), torch.randn(3, outputs)), torch.randn(rows, outputs), []
    kernels = {name: int8._typed_kernel(*macros) for name, macros in FORMS.items()}
    for name in FORMS:
        monkeypatch.setattr(int8, "_typed_kernel", lambda name=name: kernels[name])
        rounded = int8.quantize_rows(x, keep=5)
        results.append(int8.product(rounded, given, columns, thin, onto=before.clone()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_kernel_is_at_work_where_it_can_be() -> None:
    rows = int8.quantize_rows(torch.randn(3, 4))
    assert (rows.sums is not None) == (kernel("int8") is not None)


def test_sums_do_not_overflow_up_to_the_longest_rows(form: str) -> None:
    longest = int8.LONGEST
    assert 127 * 127 * longest < 2**31 <= 127 * 127 * (longest + 1)
    codes = torch.full((1, longest), 127, dtype=torch.int8)
    weight = torch.full((2, longest), -127, dtype=torch.int8)
    weight[1] = 127
    mine = int8.product(int8.quantize_rows(torch.ones(1, longest)), weight)
    twin = int8.product_plain(Rows(codes, torch.full((1,), 1 / 127), None), weight)
    expected = torch.tensor([[-127.0, 127.0]]) * longest
    assert_close(mine, expected, rtol=1e-6, atol=0)
    assert_close(twin, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_vanish(monkeypatch: pytest.MonkeyPatch, kernel: bool, bad: float) -> None:
    if not kernel:
        without_kernel(monkeypatch)
    x, weight, columns = problem(4, 33, 8)
    x[2, 5] = bad
    y = int8.product(int8.quantize_rows(x), weight, columns)
    assert not y[2].isfinite().any() and bool(y[[0, 1, 3]].isfinite().all())


@pytest.mark.parametrize("size", [1e-38, 1e-29, 1e30])
def test_the_smallest_and_largest_rows_are_finite(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    x, weight, columns = problem(4, 33, 8)
    mine = int8.product(int8.quantize_rows(x * size), weight, columns)
    without_kernel(monkeypatch)
    twin = int8.product(int8.quantize_rows(x * size), weight, columns)
    assert bool(mine.isfinite().all())
    assert_close(mine, twin, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("inputs", [48, 1100])
def test_a_product_is_added_to_columns_of_something_wider(
    monkeypatch: pytest.MonkeyPatch, form: str, kernel: bool, inputs: int
) -> None:
    if not kernel:
        without_kernel(monkeypatch)
    x, weight, columns = problem(20, inputs, 33)
    wide = torch.full((20, 50), 7.0)
    out = int8.product(int8.quantize_rows(x), weight, columns, onto=wide[:, 10:43])
    assert_close(out, int8.product(int8.quantize_rows(x), weight, columns) + 7)
    assert out.data_ptr() == wide[:, 10:].data_ptr()
    assert bool((wide[:, :10] == 7).all()) and bool((wide[:, 43:] == 7).all())


def test_columns_of_something_wider_are_rounded_like_any_rows() -> None:
    wide = torch.randn(9, 50)
    mine, expected = int8.quantize_rows(wide[:, 10:43]), int8.quantize_rows_plain(wide[:, 10:43].contiguous())
    assert_close(mine.codes, expected.codes)


def test_padding_for_gpus_changes_no_sum() -> None:
    _, weight, _ = problem(20, 13, 11)
    codes = torch.randint(-127, 128, (20, 13), dtype=torch.int8)
    expected = codes.long() @ weight.long().t()
    for multiple in (1, 8):
        assert torch.equal(int8.integer_product(codes, weight, multiple).long(), expected)


@pytest.mark.parametrize("inputs", [1, 1040, 1041, 3000])
def test_sums_of_floats_in_parts_are_exact(inputs: int) -> None:
    codes = torch.full((2, inputs), 127, dtype=torch.int8)
    codes[1] = torch.randint(-127, 128, (inputs,), dtype=torch.int8)
    assert torch.equal(int8.product_in_floats(codes, codes).long(), codes.long() @ codes.long().t())


@pytest.mark.parametrize("inputs", [96, 1100])
def test_results_do_not_depend_on_the_number_of_threads(form: str, inputs: int) -> None:
    x, weight, columns = problem(150, inputs, 200)
    thin, before, results = Thin(torch.randn(150, 2), torch.randn(2, 200)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(int8.product(int8.quantize_rows(x), weight, columns, thin))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_KERNELS", "off")
    assert compiled.kernel.__wrapped__("int8") is None


def test_without_a_compiler_or_after_a_failed_compilation_the_twin_works(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_KERNELS", "")
    monkeypatch.setattr(compiled, "_FLAGS", ("--no-such-flag",))
    for _ in range(2):
        assert compiled.kernel.__wrapped__("int8") is None
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert compiled.kernel.__wrapped__("int8") is None
