"""Linears that share an input: bundled equals one by one, x is kept once, and what cannot be bundled is not."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels import int8 as kernel
from shoestring.nn import bundle
from shoestring.nn.bundle import bundled
from shoestring.nn.feed_forward import SwiGLU
from shoestring.nn.feed_forward_config import SwiGLUConfig
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized import four_bit, int8  # noqa: F401  importing them makes their configs known
from shoestring.nn.quantized.config import Int4Config, Int8Config
from shoestring.nn.recompute import recomputing
from shoestring.nn.replace import from_linear

IN, OUTS, RANKS = 32, (40, 24, 16), (3, 2, 4)


def members(
    kind: str = "dense", bias: bool = True, dtype=torch.float64, dora: bool = False, dropout: float = 0.0
) -> list[LoRALinear]:
    torch.manual_seed(0)
    made = []
    for outputs, rank in zip(OUTS, RANKS, strict=True):
        base: torch.nn.Module = Linear(IN, outputs, bias=bias).to(dtype)
        if kind != "dense":
            base = from_linear(base, Int4Config(group=16) if kind == "int4" else Int8Config(compute=kind))
        linear = from_linear(base, LoRAConfig(rank=rank, alpha=5, dora=dora, dropout=dropout))
        assert isinstance(linear, LoRALinear)
        with torch.no_grad():
            for parameter in linear.adapters.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        made.append(linear)
    return made


def results(linears: list[LoRALinear], function, x: torch.Tensor) -> list[torch.Tensor]:
    """Values and all gradients, each output weighing differently."""
    outputs = function(linears, x)
    loss = sum((y.cos() * (i + 1)).sum() for i, y in enumerate(outputs))
    wanted = [x, *(p for linear in linears for p in linear.adapters.parameters())]
    return [*outputs, *torch.autograd.grad(loss, wanted)]


def one_by_one(linears: list[LoRALinear], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(linear(x) for linear in linears)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["dense", "float", "int4"])
def test_values_and_gradients_equal_those_of_each_linear_alone(kind: str, bias: bool) -> None:
    linears = members(kind, bias)
    x = torch.randn(2, 20, IN, dtype=torch.float64, requires_grad=True)
    mine, expected = results(linears, bundled, x), results(linears, one_by_one, x)
    assert len(mine) == 3 + 1 + 6
    for one, other in zip(mine, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_rounded_inputs_and_gradients_are_those_of_each_linear_alone() -> None:
    linears = members("int8", dtype=torch.float32)
    x = torch.randn(2, 20, IN, requires_grad=True)
    for one, other in zip(results(linears, bundled, x), results(linears, one_by_one, x), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4)
    exact = results([from_linear(linear.base.to_linear(), LoRAConfig(rank=1)) for linear in linears], one_by_one, x)
    assert not torch.allclose(results(linears, bundled, x)[0], exact[0], rtol=1e-4, atol=1e-4)


def test_the_input_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = kernel.quantize_rows
    monkeypatch.setattr(kernel, "quantize_rows", lambda *given, **more: calls.append(given) or plain(*given, **more))
    linears, x = members("int8", dtype=torch.float32), torch.randn(20, IN, requires_grad=True)
    outputs = bundled(linears, x)
    assert len(calls) == 1
    sum(y.sum() for y in outputs).backward()
    assert len(calls) == 1 + 3


@pytest.mark.parametrize("case", ["dora", "dropout", "resting", "one without an adapter"])
def test_what_is_more_than_an_update_runs_one_by_one(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    linears: list = members(dora=case == "dora", dropout=0.5 if case == "dropout" else 0.0)
    if case == "resting":
        linears[1].active = None
    if case == "one without an adapter":
        linears[1] = linears[1].base
    monkeypatch.setattr(bundle, "_Bundle", None)
    x = torch.randn(5, IN, dtype=torch.float64)
    torch.manual_seed(1)
    mine = bundled(linears, x)
    torch.manual_seed(1)
    for one, other in zip(mine, one_by_one(linears, x), strict=True):
        assert torch.equal(one, other)
    if case == "dropout":
        for linear in linears:
            linear.eval()
        with pytest.raises(AttributeError):
            bundled(linears, x)


def test_each_follows_its_own_active_adapter() -> None:
    linears = members()
    linears[1].add("other", LoRAConfig(rank=5))
    torch.nn.init.normal_(linears[1].adapters["other"].lora_B)
    x = torch.randn(5, IN, dtype=torch.float64)
    for one, other in zip(bundled(linears, x), one_by_one(linears, x), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_input_is_kept_once_and_no_weight_is() -> None:
    linears = members(bias=False)
    x = torch.randn(50, IN, dtype=torch.float64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        outputs = bundled(linears, x)
    assert [t.data_ptr() for t in kept].count(x.data_ptr()) == 1
    others = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert max(t.numel() for t in others) <= 50 * sum(RANKS)
    assert not {t.data_ptr() for t in others} & {linear.base.weight.data_ptr() for linear in linears}
    storages = {y.untyped_storage().data_ptr() for y in outputs}  # keeping one must not keep the others alive
    assert len(storages) == 3 and all(y.untyped_storage().nbytes() == y.nbytes for y in outputs)


def test_an_input_that_is_recomputed_is_made_again_once() -> None:
    linears, made = members(), []
    x = torch.randn(9, IN, dtype=torch.float64, requires_grad=True)
    expected = results(linears, one_by_one, x.tanh().detach().requires_grad_())[:3]

    def recipe(x: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return x.tanh()

    value = x.tanh()
    with recomputing(value, recipe, x):
        outputs = bundled(linears, value)
    for one, other in zip(outputs, expected, strict=True):
        assert_close(one, other)
    mine = torch.autograd.grad(sum(y.sum() for y in outputs), x)[0]
    assert len(made) == 1
    assert_close(mine, torch.autograd.grad(sum(y.sum() for y in one_by_one(linears, x.tanh())), x)[0])


def test_weights_that_come_and_go_are_looked_up_in_each_pass() -> None:
    linears = members(bias=False)
    x = torch.randn(5, IN, dtype=torch.float64, requires_grad=True)
    expected = results(linears, one_by_one, x)
    for linear in linears:
        linear.base.weight.data = linear.base.weight.data.clone()
    for one, other in zip(results(linears, bundled, x), expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen_input", [False, True])
def test_only_the_gradients_that_are_wanted_are_made(frozen_input: bool) -> None:
    linears = members()
    linears[0].requires_grad_(False)
    x = torch.randn(5, IN, dtype=torch.float64, requires_grad=not frozen_input)
    sum(y.sum() for y in bundled(linears, x)).backward()
    assert (x.grad is None) == frozen_input
    for i, linear in enumerate(linears):
        assert all((p.grad is None) == (i == 0) for p in linear.adapters.parameters())


def test_under_autocast_the_products_are_low_precision() -> None:
    linears = members(dtype=torch.float32)
    x = torch.randn(4, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = bundled(linears, x)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    sum(y.float().sum() for y in outputs).backward()
    assert all(p.grad.dtype == torch.float32 for linear in linears for p in linear.adapters.parameters())
    for one, other in zip(outputs, one_by_one(linears, x), strict=True):
        assert_close(one.float(), other, rtol=0.05, atol=0.05)


def test_gate_and_up_are_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = SwiGLU(SwiGLUConfig(width=24), IN).double()
    for name in ("gate", "up", "down"):
        setattr(layer, name, from_linear(getattr(layer, name), LoRAConfig(rank=2)))
        torch.nn.init.normal_(getattr(layer, name).adapters["default"].lora_B)
    x = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    mine = torch.autograd.grad(layer(x)[0].square().sum(), wanted)
    y = layer(x)[0]  # held: in torch 2.11 the graph is gone with it
    nodes, todo = [], [y.grad_fn]
    while todo:
        node = todo.pop()
        nodes.append(node.name())
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_BundleBackward" in nodes
    monkeypatch.setattr(bundle, "_plain_adapter", lambda linear: None)
    for one, other in zip(mine, torch.autograd.grad(layer(x)[0].square().sum(), wanted), strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-11)
