"""silu(gate) · up: kernel and twin against float64, and what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels import swiglu


@pytest.fixture(params=["kernel", "twin"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swiglu, "WORTHWHILE", 1)
    if request.param == "twin":
        monkeypatch.setattr(swiglu, "_typed_kernel", lambda: None)


def operands() -> list[torch.Tensor]:
    torch.manual_seed(0)
    gate = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-1e-3, 1e-3, 1000), torch.randn(2_002)])
    return [gate, torch.randn_like(gate), torch.randn_like(gate)]


@pytest.mark.usefixtures("either")
def test_the_value_is_float64s_to_rounding() -> None:
    gate, up, _ = operands()
    exact = gate.double() * gate.double().sigmoid() * up.double()
    assert_close(swiglu.silu_product(gate, up).double(), exact, rtol=1e-6, atol=1e-35)


@pytest.mark.usefixtures("either")
def test_gradients_are_float64s_to_rounding() -> None:
    gate, up, gradient = operands()
    wide = [x.double().requires_grad_() for x in (gate, up)]
    (wide[0] * wide[0].sigmoid() * wide[1]).backward(gradient.double())
    mine = swiglu.silu_product_backward(gradient, gate, up)
    for one, exact in zip(mine, (wide[0].grad, wide[1].grad), strict=True):
        assert_close(one.double(), exact, rtol=2e-6, atol=1e-6)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_does_not_vanish(bad: float, where: int) -> None:
    gate, up, gradient = operands()
    (gate, up)[where][17] = bad
    assert not swiglu.silu_product(gate, up)[17].isfinite()
    assert not all(bool(x[17].isfinite()) for x in swiglu.silu_product_backward(gradient, gate, up))


@pytest.mark.usefixtures("either")
def test_bfloat16_is_float64s_rounded(request: pytest.FixtureRequest) -> None:
    gate, up, gradient = (x.bfloat16() for x in operands())
    wide = [x.double().requires_grad_() for x in (gate, up)]
    exact = wide[0] * wide[0].sigmoid() * wide[1]
    exact.backward(gradient.double())
    once = "kernel" in request.node.name  # torch rounds between its passes as well
    bounds = {"rtol": 2**-8 if once else 2**-6, "atol": 1e-30 if once else 1e-2}
    y = swiglu.silu_product(gate, up)
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), exact.detach(), **bounds)
    for one, other in zip(swiglu.silu_product_backward(gradient, gate, up), wide, strict=True):
        assert_close(one.double(), other.grad, rtol=bounds["rtol"], atol=1e-2 if not once else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_and_strides_go_to_the_twin(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 200, 200, dtype=dtype).unbind()
    assert torch.equal(swiglu.silu_product(gate, up), swiglu.silu_product_plain(gate, up))
    gate, up = torch.randn(2, 200, 200).unbind()
    assert_close(swiglu.silu_product(gate.t(), up), swiglu.silu_product_plain(gate.t(), up))
    mine, twins = (f(up, gate.t(), up) for f in (swiglu.silu_product_backward, swiglu.silu_product_backward_plain))
    for one, other in zip(mine, twins, strict=True):
        assert_close(one, other)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gate, up, gradient = operands()
            results.append([swiglu.silu_product(gate, up), *swiglu.silu_product_backward(gradient, gate, up)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
