"""Products through the library that suits the processor: the same numbers as torch's, within rounding."""

import pytest
import torch

from shoestring.core import matmul
from shoestring.nn.linear import linear

SHAPES = [(1, 64, 96), (7, 130, 33), (128, 256, 192)]


@pytest.fixture(params=["mkl", "onednn"])
def library(request, monkeypatch):
    """Every product goes to this library, whatever its size."""
    monkeypatch.setenv("SHOESTRING_MATMUL", request.param)
    monkeypatch.setattr(matmul, "WORTHWHILE", 0)
    matmul.prefers_onednn.cache_clear()
    yield request.param
    matmul.prefers_onednn.cache_clear()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_equals_float64(library, shape):
    m, k, n = shape
    rows, weight = torch.randn(m, k), torch.randn(n, k)
    expected = rows.double() @ weight.double().t()
    torch.testing.assert_close(matmul.product(rows, weight).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_views_give_what_copies_give(library, shape):
    m, k, n = shape
    rows, weight = torch.randn(k, m).t(), torch.randn(k, n).t()
    expected = rows.double() @ weight.double().t()
    torch.testing.assert_close(matmul.product(rows, weight).double(), expected, rtol=1e-5, atol=1e-4)


def test_slices_of_wider_rows_are_copied_first(library, monkeypatch):
    """Transposed, they would send oneDNN to its reference code: seconds instead of milliseconds."""
    wide_rows, wide_weight = torch.randn(16, 12), torch.randn(16, 20)
    rows, weight = wide_rows[:, :7].t(), wide_weight[:, :9].t()
    torch.testing.assert_close(matmul.product(rows, weight), rows @ weight.t())
    assert matmul._without_gaps(rows).is_contiguous()
    assert matmul._without_gaps(wide_rows.t()).data_ptr() == wide_rows.data_ptr()


def test_the_override_decides_who_computes(library):
    rows, weight = torch.randn(8, 16), torch.randn(4, 16)
    assert matmul.goes_to_onednn(rows, weight) == (library == "onednn" and torch.backends.mkldnn.is_available())
    assert not matmul.goes_to_onednn(rows.double(), weight.double())


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_has_the_gradients_of_torchs(library, bias):
    inputs = [torch.randn(2, 5, 48), torch.randn(40, 48), torch.randn(40) if bias else None]
    ours, plain = ([None if x is None else x.clone().requires_grad_() for x in inputs] for _ in range(2))
    upstream = torch.randn(2, 5, 40)
    linear(*ours).backward(upstream)
    torch.nn.functional.linear(*plain).backward(upstream)
    for mine, theirs in zip(ours, plain, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_small_products_stay_with_torch(monkeypatch):
    monkeypatch.setenv("SHOESTRING_MATMUL", "onednn")
    matmul.prefers_onednn.cache_clear()
    assert not matmul.goes_to_onednn(torch.randn(2, 16), torch.randn(4, 16))
    matmul.prefers_onednn.cache_clear()
