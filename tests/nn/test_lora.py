"""The adapted linear against its definition, and what it keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.core.errors import ConfigError
from shoestring.nn.config import LowRankConfig
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear, adapted_plain
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.recompute import recomputing
from shoestring.nn.replace import from_linear

IN, OUT = 12, 20


def adapted(dora: bool = False, bias: bool = True, dropout: float = 0.0, dtype=torch.float64) -> LoRALinear:
    torch.manual_seed(0)
    base = Linear(IN, OUT, bias=bias).to(dtype)
    made = from_linear(base, LoRAConfig(rank=3, alpha=5, dora=dora, dropout=dropout))
    assert isinstance(made, LoRALinear)
    with torch.no_grad():
        for parameter in made.adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def plain(linear: LoRALinear, x: torch.Tensor) -> torch.Tensor:
    adapter = linear.adapters["default"]
    return adapted_plain(
        x, linear.base.weight, linear.base.bias, adapter.lora_A, adapter.lora_B, adapter.scale, adapter.magnitude
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_value_and_gradients_equal_the_definition(dora: bool, bias: bool) -> None:
    linear = adapted(dora, bias)
    x = torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, OUT, dtype=torch.float64)
    results = []
    for function in (linear, lambda x: plain(linear, x)):
        y = function(x)
        gradients = torch.autograd.grad((y * weights).sum(), [x, *linear.adapters.parameters()])
        results.append([y, *gradients])
    for mine, expected in zip(*results, strict=True):
        assert_close(mine, expected, rtol=1e-11, atol=1e-11)
    assert len(results[0]) == (5 if dora else 4)


def test_dora_with_a_magnitude_of_zero_has_its_gradient_all_the_same() -> None:
    linear = adapted(dora=True, bias=False)
    with torch.no_grad():
        linear.adapters["default"].magnitude[4] = 0.0
    x = torch.randn(7, IN, dtype=torch.float64)
    magnitude = linear.adapters["default"].magnitude
    mine = torch.autograd.grad(linear(x).sum(), magnitude)[0]
    assert_close(mine, torch.autograd.grad(plain(linear, x).sum(), magnitude)[0])
    assert mine[4] != 0


@pytest.mark.parametrize("dora", [False, True])
def test_merging_computes_the_same(dora: bool) -> None:
    linear = adapted(dora)
    x = torch.randn(4, IN, dtype=torch.float64)
    assert_close(linear.to_linear()(x), linear(x), rtol=1e-11, atol=1e-11)


def test_a_fresh_adapter_changes_nothing() -> None:
    torch.manual_seed(0)
    base = Linear(IN, OUT).double()
    x = torch.randn(4, IN, dtype=torch.float64)
    expected = base(x).detach()
    for dora in (False, True):
        assert_close(from_linear(base, LoRAConfig(dora=dora))(x), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_thins_what_goes_into_the_update_and_only_while_training(dora: bool) -> None:
    linear = adapted(dora, dropout=0.5)
    x = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    adapter, base = linear.adapters["default"], linear.base
    torch.manual_seed(4)
    y = linear(x)
    torch.manual_seed(4)
    dropped = torch.nn.functional.dropout(x, 0.5)
    expected = x @ base.weight.t() + adapter.scale * dropped @ adapter.lora_A.t() @ adapter.lora_B.t()
    if dora:
        weight = base.weight + adapter.scale * adapter.lora_B @ adapter.lora_A
        expected = expected * (adapter.magnitude / weight.norm(dim=1).detach())
    expected = expected + base.bias
    assert_close(y, expected)
    wanted = [x, *linear.adapters.parameters()]
    weights = torch.randn_like(y)
    mine = torch.autograd.grad((y * weights).sum(), wanted)
    for one, other in zip(mine, torch.autograd.grad((expected * weights).sum(), wanted), strict=True):
        assert_close(one, other)
    assert_close(linear.eval()(x), plain(linear, x))


@pytest.mark.parametrize("dora", [False, True])
def test_a_factorized_base_can_be_adapted(dora: bool) -> None:
    base = from_linear(Linear(IN, OUT).double(), LowRankConfig(rank=4))
    assert isinstance(base, LowRankLinear)
    linear = from_linear(base, LoRAConfig(rank=2, dora=dora))
    with torch.no_grad():
        linear.adapters["default"].lora_B.normal_()
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    dense = linear.to_linear()
    assert_close(linear(x), dense(x))
    assert_close(torch.autograd.grad(linear(x).sum(), x)[0], torch.autograd.grad(dense(x).sum(), x)[0])


def test_what_is_adapted_cannot_be_factorized() -> None:
    with pytest.raises(ConfigError, match="adapted cannot become factorized"):
        from_linear(adapted(), LowRankConfig(rank=2))


@pytest.mark.parametrize("dora", [False, True])
def test_only_the_input_once_and_thin_tensors_are_kept(dora: bool) -> None:
    linear = adapted(dora, bias=False)
    x = torch.randn(50, IN, dtype=torch.float64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = linear(x)
    wide = [t for t in kept if t.numel() >= 50 * IN and t.data_ptr() != x.data_ptr()]
    assert {t.data_ptr() for t in wide} <= ({y.data_ptr()} if dora else set())
    assert not any(t.data_ptr() == linear.base.weight.data_ptr() for t in kept)


def test_an_input_that_is_recomputed_gives_the_same_gradients() -> None:
    linear = adapted(dora=True)
    x = torch.randn(9, IN, dtype=torch.float64, requires_grad=True)
    wanted = [x, *linear.adapters.parameters()]
    expected = torch.autograd.grad(linear(x.tanh()).square().sum(), wanted)
    made = 0

    def recipe(x: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        return x.tanh()

    value = x.tanh()
    with recomputing(value, recipe, x):
        y = linear(value)
    mine = torch.autograd.grad(y.square().sum(), wanted)
    assert made == 1
    for one, other in zip(mine, expected, strict=True):
        assert_close(one, other)


def test_under_autocast_products_are_low_precision_and_gradients_reach_the_adapter() -> None:
    linear = adapted(dora=True, dtype=torch.float32)
    x = torch.randn(4, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in linear.adapters.parameters())
    assert_close(y.float(), linear(x), rtol=0.05, atol=0.05)


def test_large_products_through_the_other_library_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.core import matmul
    from shoestring.core.matmul_choice import Table

    torch.manual_seed(0)
    linear = from_linear(Linear(64, 256, bias=False), LoRAConfig(rank=4))
    with torch.no_grad():
        linear.adapters["default"].lora_B.normal_()
    x = torch.randn(2, 256, 64, requires_grad=True)
    results = []
    for library in ("torch", "onednn"):
        monkeypatch.setattr(matmul, "TABLE", Table(matmul.libraries, library))
        y = linear(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *linear.adapters.parameters()])])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-3)
