"""Products through each library: the same numbers as float64's, within rounding, for every layout."""

import pytest
import torch
from torch.testing import assert_close

from shoestring.core import matmul
from shoestring.core.matmul_choice import LAYOUTS, Table
from shoestring.nn.linear import linear

SHAPES = [(1, 64, 96), (7, 130, 33), (128, 256, 192), (16, 9, 16)]
TRANSPOSED = list(LAYOUTS)


@pytest.fixture(params=["torch", "onednn"])
def library(request, monkeypatch):
    """Every product goes to this library, whatever its size."""
    use(request.param, monkeypatch)
    return request.param


def use(library, monkeypatch):
    monkeypatch.setattr(matmul, "WORTHWHILE", 0)
    monkeypatch.setattr(matmul, "TABLE", Table(matmul.libraries, library))


def lying(x, transposed):
    """The same numbers, as a transposed view or not."""
    return x.t().contiguous().t() if transposed else x


@pytest.mark.parametrize("transposed", TRANSPOSED, ids=LAYOUTS.values())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_equals_float64(library, shape, transposed):
    m, k, n = shape
    rows, weight = lying(torch.randn(m, k), transposed[0]), lying(torch.randn(n, k), transposed[1])
    expected = rows.double() @ weight.double().t()
    y = matmul.matmul(rows, weight)
    assert y.is_contiguous() and y.dtype == torch.float32
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("transposed", TRANSPOSED, ids=LAYOUTS.values())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_in_given_memory_and_one_added_to_it_equal_float64(library, shape, transposed):
    m, k, n = shape
    rows, weight = lying(torch.randn(m, k), transposed[0]), lying(torch.randn(n, k), transposed[1])
    expected = rows.double() @ weight.double().t()
    place = torch.full((m, n + 5), 7.0)
    y = matmul.matmul(rows, weight, place[:, :n])
    assert (y.data_ptr() == place.data_ptr()) == matmul.writes_in_place(m, n, k) == (library == "torch")
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    matmul.add_matmul(y, rows, weight)
    assert_close(y.double(), 2 * expected, rtol=1e-5, atol=2e-4)
    assert bool((place[:, n:] == 7).all())


@pytest.mark.parametrize("transposed", TRANSPOSED, ids=LAYOUTS.values())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", matmul.libraries(torch.bfloat16))
def test_a_bfloat16_product_is_float64s_rounded(name, shape, transposed):
    m, k, n = shape
    rows, weight = (
        lying(torch.randn(size, k).bfloat16(), lies) for size, lies in zip((m, n), transposed, strict=True)
    )
    expected = rows.double() @ weight.double().t()
    y = matmul.libraries(torch.bfloat16)[name](rows, weight)
    assert y.is_contiguous() and y.dtype == torch.bfloat16
    assert_close(y.double(), expected, rtol=2**-7, atol=0.02 * k**0.5)
    if name == "widened":  # sums in float32, rounded once
        assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)


def test_a_widened_product_of_many_tiles_is_whole(monkeypatch):
    monkeypatch.setattr(matmul, "_TILE", 16)
    rows, weight = torch.randn(2, 9, 37).bfloat16(), torch.randn(35, 37).bfloat16()
    expected = rows.double() @ weight.double().t()
    assert_close(matmul._widened(rows, weight).double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_formats_stay_with_torch(dtype):
    rows, weight = torch.randn(128, 128).to(dtype), torch.randn(128, 128).to(dtype)
    assert not matmul.worthwhile(rows, weight) and list(matmul.libraries(dtype)) == ["torch"]
    assert torch.equal(matmul.matmul(rows, weight), rows @ weight.t())


def test_slices_of_wider_rows_are_copied_first(library):
    """Transposed, they would send oneDNN to its reference code: seconds instead of milliseconds."""
    wide_rows, wide_weight = torch.randn(16, 12), torch.randn(16, 20)
    rows, weight = wide_rows[:, :7].t(), wide_weight[:, :9].t()
    assert_close(matmul.matmul(rows, weight), rows @ weight.t())
    assert_close(matmul.matmul(wide_rows[:, :7], wide_weight[:5, :7]), wide_rows[:, :7] @ wide_weight[:5, :7].t())
    assert matmul._without_gaps(rows).is_contiguous()
    assert matmul._without_gaps(wide_rows.t()).data_ptr() == wide_rows.data_ptr()


def test_leading_dimensions_stay(library):
    rows, weight = torch.randn(2, 3, 5, 24), torch.randn(40, 24)
    assert_close(matmul.matmul(rows, weight), torch.nn.functional.linear(rows, weight))


def test_a_kind_is_format_layout_and_size_class():
    x, g, weight = torch.empty(2, 300, 576), torch.empty(600, 1536), torch.empty(1536, 576)
    assert str(matmul.kind_of(x, weight)) == "float32 forward 768x768x768"
    assert str(matmul.kind_of(g, weight.t())) == "float32 input gradient 768x768x768"
    assert str(matmul.kind_of(g.t(), x.view(-1, 576).t())) == "float32 weight gradient 768x768x768"
    thin = torch.empty(600, 16).bfloat16()
    assert str(matmul.kind_of(thin.t(), g.bfloat16().t())) == "bfloat16 weight gradient 12x768x768"
    assert str(matmul.kind_of(g, torch.empty(16, 1536))) == "float32 forward 768x12x768"


def test_small_and_foreign_products_are_not_chosen_for(monkeypatch):
    monkeypatch.setattr(matmul, "TABLE", None)  # asking it would fail
    small, large = torch.randn(2, 16), torch.randn(2048, 1024)
    assert_close(matmul.matmul(small, small), small @ small.t())
    assert matmul.worthwhile(large, large)
    assert not matmul.worthwhile(large, large.bfloat16())
    assert not matmul.worthwhile(large.to("meta"), large.to("meta"))
    assert not matmul.worthwhile(large.view(-1), large), "a row without rows"


def test_one_step_asks_for_each_of_a_linears_products_separately(monkeypatch):
    table = Table(matmul.libraries, "torch")
    monkeypatch.setattr(matmul, "WORTHWHILE", 0)
    monkeypatch.setattr(matmul, "TABLE", table)
    x, weight = torch.randn(3, 4, 48, requires_grad=True), torch.randn(40, 48, requires_grad=True)
    linear(x, weight).square().sum().backward()
    layouts = [" ".join(kind.split()[1:-1]) for kind in table.choices()["choices"]]
    assert sorted(layouts) == ["forward", "input gradient", "weight gradient"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_has_the_gradients_of_float64(library, bias, dtype):
    given = [torch.randn(2, 5, 48), torch.randn(40, 48), torch.randn(40) if bias else None]
    upstream = torch.randn(2, 5, 40).to(dtype)
    ours, exact = (
        [None if x is None else x.to(dtype).to(final, copy=True).requires_grad_() for x in given]
        for final in (dtype, torch.float64)
    )
    linear(*ours).backward(upstream)
    torch.nn.functional.linear(*exact).backward(upstream.double())
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (2**-7, 0.1)
    for mine, true in zip(ours, exact, strict=True):
        if mine is not None:
            assert mine.grad.dtype == dtype
            assert_close(mine.grad.double(), true.grad, rtol=rtol, atol=atol)


def test_a_linear_keeps_only_what_its_gradients_need(library):
    def kept(x, weight):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
            linear(x, weight)
        return saved

    x, weight = torch.randn(5, 48), torch.randn(40, 48)
    trained = weight.clone().requires_grad_()
    assert kept(x.clone().requires_grad_(), weight) == [weight.data_ptr()], "a frozen weight needs no x"
    assert kept(x, trained) == [x.data_ptr()], "an x without a gradient needs no weight"
    assert kept(x, weight) == []


def test_autocast_stays_torchs(monkeypatch):
    monkeypatch.setattr(matmul, "WORTHWHILE", 0)
    monkeypatch.setattr(matmul, "TABLE", None)
    x, weight = torch.randn(5, 48), torch.randn(40, 48, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x, weight)
        assert torch.equal(y, torch.nn.functional.linear(x, weight)) and y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_libraries_are_counted_in_words():
    said = matmul.served_by({"a": "onednn", "b": "torch", "c": "onednn"})
    assert said.startswith("oneDNN 2, ") and said.endswith(" 1 kinds of product")
