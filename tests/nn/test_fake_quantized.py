"""Fake quantization: torchao's values, the products of what is quantized afterwards, straight-through gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from shoestring.core.errors import ConfigError
from shoestring.nn.bundle import bundled
from shoestring.nn.config import LowRankConfig
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import FakeQuantizedConfig, Int8Config, PackedConfig
from shoestring.nn.quantized.fake import FakeQuantized, FakeQuantizedLinear, FakeQuantizedLoRA
from shoestring.nn.quantized.packed import PackedLinear, round_rows
from shoestring.nn.replace import FAKE_QUANTIZED, from_linear, stage_of

GRIDS = [
    PackedConfig(bits=4, group=8),
    PackedConfig(bits=4, group=8, symmetric=False),
    PackedConfig(bits=3, group=16),
    PackedConfig(bits=8, group=None, activations="int8"),
]


def dense(bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> Linear:
    torch.manual_seed(seed)
    return Linear(32, 12, bias=bias).to(dtype)


def adapted(dtype: torch.dtype = torch.float32, **settings) -> LoRALinear:
    linear = LoRALinear.from_linear(dense(dtype=dtype), LoRAConfig(rank=4, **settings))
    with torch.no_grad():
        linear.adapters["default"].lora_B.normal_(0, 0.1)
    return linear


def fake(linear: nn.Module, grid: PackedConfig) -> FakeQuantized:
    made = from_linear(linear, FakeQuantizedConfig(grid=grid))
    assert isinstance(made, FakeQuantized)
    return made


def straight_through(weight: torch.Tensor, grid: PackedConfig) -> torch.Tensor:
    """The definition, in ordinary autograd operations."""
    rounded = PackedLinear.from_linear(dense_of(weight.detach()), grid).weights(weight.dtype)
    return weight + (rounded - weight).detach()


def dense_of(weight: torch.Tensor) -> Linear:
    made = Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    made.weight = nn.Parameter(weight.clone())
    return made


def entering(x: torch.Tensor, grid: PackedConfig) -> torch.Tensor:
    return x if grid.activations is None else x + (round_rows(x) - x).detach()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_its_packed_form_does_and_follows_its_weight(grid: PackedConfig, training: bool) -> None:
    linear = fake(dense(), grid).train(training)
    assert isinstance(linear, FakeQuantizedLinear)
    x = torch.randn(5, 32)
    for _ in range(2):
        packed = PackedLinear.from_linear(linear.to_linear(), grid)
        assert torch.equal(linear.rounded(linear.weight).codes_OI, packed.codes())
        assert_close(linear(x), packed(x), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(linear(x), linear.to_linear()(x), atol=1e-4)  # it is rounded
        with torch.no_grad():
            linear.weight.mul_(1.3).add_(0.01)


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_go_straight_through(grid: PackedConfig) -> None:
    linear = fake(dense(dtype=torch.float64), grid)
    assert isinstance(linear, FakeQuantizedLinear) and linear.bias is not None
    weight, bias = (each.detach().clone().requires_grad_() for each in (linear.weight, linear.bias))
    x, other = (torch.randn(3, 5, 32, dtype=torch.float64, generator=torch.manual_seed(1)) for _ in range(2))
    x, plain = x.requires_grad_(), x.detach().clone().requires_grad_()
    (linear(x) * other[..., :12]).sum().backward()
    expected = torch.nn.functional.linear(entering(plain, grid), straight_through(weight, grid), bias)
    (expected * other[..., :12]).sum().backward()
    for ours, theirs in ((x, plain), (linear.weight, weight), (linear.bias, bias)):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("grid", GRIDS)
def test_base_and_adapter_are_rounded_as_the_merged_weight_is(grid: PackedConfig) -> None:
    linear = fake(adapted(torch.float64), grid)
    assert isinstance(linear, FakeQuantizedLoRA)
    adapter, base = linear.adapters["default"], linear.base
    x = torch.randn(3, 5, 32, dtype=torch.float64).requires_grad_()
    merged = linear.to_linear()
    assert_close(linear(x), PackedLinear.from_linear(merged, grid)(x), rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(linear(x).square().sum(), [x, adapter.lora_A, adapter.lora_B])
    A, B = (each.detach().clone().requires_grad_() for each in (adapter.lora_A, adapter.lora_B))
    weight = straight_through(base.weight.detach() + adapter.scale * B @ A, grid)
    y = torch.nn.functional.linear(entering(x, grid), weight, base.bias)
    for one, other in zip(ours, torch.autograd.grad(y.square().sum(), [x, A, B]), strict=True):
        assert_close(one, other)
    linear.active = None  # what a run is to stay near is the base as it was
    assert torch.equal(linear(x), base(x))


def test_adapters_that_share_their_input_are_not_computed_as_one() -> None:
    linears = [fake(adapted(), GRIDS[0]) for _ in range(3)]
    x = torch.randn(4, 32)
    for one, other in zip(bundled(linears, x), linears, strict=True):
        assert torch.equal(one, other(x))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_values_and_gradients_are_torchaos(symmetric: bool) -> None:
    """But at a symmetric group's ends: a tie there falls by the last bit of the scale, and where torchao clips it has
    no gradient. Its QAT has zero points that are floats; those that are whole numbers come from its primitives."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
    from torchao.quantization.quant_primitives import MappingType, _fake_quantize_affine, choose_qparams_affine

    linear = fake(dense(bias=False), PackedConfig(bits=4, group=8, symmetric=symmetric, scale="float32"))
    assert isinstance(linear, FakeQuantizedLinear)
    weight = linear.weight.detach().clone().requires_grad_()
    if symmetric:
        theirs = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=8, is_symmetric=True))(weight)
    else:
        shape, ends = (1, 8), (-8, 7)
        found = choose_qparams_affine(
            weight.detach(), MappingType.ASYMMETRIC, shape, torch.int8, *ends, scale_dtype=torch.float32
        )
        theirs = _fake_quantize_affine(weight, shape, *found, torch.int32, *ends)
    groups = weight.detach().unflatten(1, (-1, 8)).abs()
    inside = (groups < (groups.amax(-1, keepdim=True) if symmetric else torch.inf)).flatten(1)
    values = linear.rounded(linear.weight).values(torch.float32)
    assert_close(values[inside], theirs.detach()[inside], rtol=1e-5, atol=1e-6)
    x = torch.randn(6, 32)
    (x @ theirs.t()).sum().backward()
    linear(x).sum().backward()
    assert linear.weight.grad is not None and weight.grad is not None
    unclipped = inside & (weight.grad != 0)
    assert unclipped.sum() > 300
    assert_close(linear.weight.grad[unclipped], weight.grad[unclipped])


def test_the_order_is_kept_and_what_is_not_float_is_refused() -> None:
    wanted = FakeQuantizedConfig(grid=GRIDS[0])
    for linear in (fake(dense(), GRIDS[0]), fake(adapted(), GRIDS[0])):
        assert stage_of(linear) == FAKE_QUANTIZED
        for config in (wanted, LoRAConfig(rank=2), Int8Config()):
            with pytest.raises(ConfigError, match="fake-quantized cannot become"):
                from_linear(linear, config)
    for other in (Int8Config(), LowRankConfig(rank=2)):
        with pytest.raises(ConfigError, match="weights in floats"):
            from_linear(from_linear(dense(), other), wanted)
    for settings, what in (({"dora": True}, "DoRA"), ({"dropout": 0.1}, "dropout")):
        with pytest.raises(ConfigError, match=what):
            from_linear(adapted(**settings), wanted)
    with pytest.raises(ConfigError, match="groups of 7 do not divide"):
        from_linear(dense(), FakeQuantizedConfig(grid=PackedConfig(group=7)))


def test_codes_are_made_once_for_each_state_of_the_weight_and_anew_after_a_move() -> None:
    linear = fake(dense(), GRIDS[0])
    assert isinstance(linear, FakeQuantizedLinear)
    first = linear.rounded(linear.weight)
    assert linear.rounded(linear.weight) is first
    linear.to(torch.float64)
    assert linear.rounded(linear.weight) is not first
    other = copy.deepcopy(linear)
    with torch.no_grad():
        other.weight.mul_(2)
    assert torch.equal(other.rounded(other.weight).codes_OI, linear.rounded(linear.weight).codes_OI)  # scales grow
    assert not torch.equal(other(torch.ones(1, 32).double()), linear(torch.ones(1, 32).double()))
