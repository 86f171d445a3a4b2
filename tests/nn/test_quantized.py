"""Quantized linears: rounding to nearest by brute force, gradients of the rounded weights, and what they hold."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.core.errors import ConfigError
from shoestring.nn.config import LowRankConfig
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
from shoestring.nn.quantized.four_bit import NF4_LEVELS, FourBitLinear
from shoestring.nn.quantized.int8 import Int8Linear
from shoestring.nn.replace import from_linear

CONFIGS = {"int8": Int8Config(), "int4": Int4Config(group=16), "nf4": NF4Config(group=16)}
KINDS = pytest.mark.parametrize("kind", CONFIGS)


def dense(inputs: int = 48, outputs: int = 20, bias: bool = True, dtype=torch.float64, std: float = 0.1) -> Linear:
    torch.manual_seed(0)
    linear = Linear(inputs, outputs, bias=bias).to(dtype)
    torch.nn.init.normal_(linear.weight, 0, std)
    return linear


@KINDS
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient_are_those_of_the_rounded_weights(kind: str, bias: bool) -> None:
    quantized = from_linear(dense(bias=bias), CONFIGS[kind])
    rounded = quantized.to_linear()
    assert rounded.weight.dtype == torch.float64
    results = []
    for linear in (quantized, rounded):
        x = torch.linspace(-1, 1, 2 * 3 * 48, dtype=torch.float64).view(2, 3, 48).requires_grad_()
        y = linear(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    for mine, expected in zip(*results, strict=True):
        assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_int8_codes_are_the_nearest_of_each_row() -> None:
    linear = dense()
    quantized = from_linear(linear, CONFIGS["int8"])
    assert isinstance(quantized, Int8Linear)
    for row, codes, scale in zip(linear.weight, quantized.codes, quantized.scale, strict=True):
        assert_close(scale, row.abs().max() / 127)
        grid = torch.arange(-127, 128) * scale
        nearest = (row.unsqueeze(1) - grid).abs().amin(1)
        assert_close((row - codes * scale).abs(), nearest, rtol=0, atol=1e-12)


def test_int4_codes_are_the_nearest_of_each_groups_grid() -> None:
    linear = dense().requires_grad_(False)
    quantized = from_linear(linear, CONFIGS["int4"])
    assert isinstance(quantized, FourBitLinear) and quantized.lowest is not None
    weight, rounded = linear.weight.view(20, 3, 16), quantized.weights(torch.float64).view(20, 3, 16)
    scale, lowest = quantized.scale.double() * quantized.unit, quantized.lowest.double() * quantized.unit
    grid = lowest.unsqueeze(-1) + torch.arange(16) * scale.unsqueeze(-1)
    nearest = (weight.unsqueeze(-1) - grid.unsqueeze(-2)).abs().amin(-1)
    assert_close((weight - rounded).abs(), nearest, rtol=0, atol=1e-12)
    assert float((weight - rounded).abs().max()) <= 0.52 * float(scale.max())


def test_nf4_codes_are_the_nearest_level_and_zero_stays_zero() -> None:
    linear = dense()
    with torch.no_grad():
        linear.weight[3, 5] = 0
    quantized = from_linear(linear, CONFIGS["nf4"])
    assert isinstance(quantized, FourBitLinear)
    weight, rounded = linear.weight.view(20, 3, 16), quantized.weights(torch.float64).view(20, 3, 16)
    scale = weight.abs().amax(-1)
    assert_close(quantized.scale.double() * quantized.unit, scale, rtol=1e-3, atol=0)
    grid = (quantized.scale.double() * quantized.unit).unsqueeze(-1) * torch.tensor(NF4_LEVELS).double()
    nearest = (weight.unsqueeze(-1) - grid.unsqueeze(-2)).abs().amin(-1)
    assert_close((weight - rounded).abs(), nearest, rtol=0, atol=1e-12)
    assert rounded.view(20, 48)[3, 5] == 0


@KINDS
@pytest.mark.parametrize("inputs", [48, 41, 7])
def test_any_number_of_inputs_and_rows_of_zeros_are_fine(kind: str, inputs: int) -> None:
    linear = dense(inputs, dtype=torch.float32)
    with torch.no_grad():
        linear.weight[2] = 0
    quantized = from_linear(linear, CONFIGS[kind])
    rounded = quantized.to_linear().weight
    assert rounded.shape == (20, inputs) and not rounded[2].any() and bool(rounded.isfinite().all())
    x = torch.randn(3, inputs, requires_grad=True)
    quantized(x).sum().backward()
    assert_close(x.grad, rounded.sum(0).expand(3, -1))


@KINDS
@pytest.mark.parametrize("std", [1e-7, 1e-3, 1e4])
def test_the_error_does_not_depend_on_the_size_of_the_weights(kind: str, std: float) -> None:
    linear = dense(std=std, dtype=torch.float32)
    error = (from_linear(linear, CONFIGS[kind]).to_linear().weight - linear.weight).norm() / linear.weight.norm()
    assert float(error) < {"int8": 0.01, "int4": 0.08, "nf4": 0.09}[kind]


def test_what_was_rounded_once_is_not_changed_by_rounding_again() -> None:
    for kind in ("int8", "int4", "nf4"):
        once = from_linear(dense(dtype=torch.float32), CONFIGS[kind]).to_linear()
        again = from_linear(once, CONFIGS[kind]).to_linear()
        assert_close(again.weight, once.weight, rtol=1e-3, atol=2e-5)


@KINDS
def test_the_dense_weights_are_gone(kind: str) -> None:
    quantized = from_linear(Linear(512, 256), {"int8": Int8Config(), "int4": Int4Config(), "nf4": NF4Config()}[kind])
    bytes_held = sum(buffer.nbytes for buffer in quantized.buffers()) - 4 * 256
    assert not list(quantized.parameters())
    bits = 8 * bytes_held / (512 * 256)
    assert bits < {"int8": 8.1, "int4": 5.01, "nf4": 4.26}[kind]


@KINDS
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_a_quantized_base_train_as_on_the_rounded_weights(kind: str, dora: bool) -> None:
    quantized = from_linear(dense(), CONFIGS[kind])
    results = []
    for base in (quantized, quantized.to_linear()):
        linear = from_linear(base, LoRAConfig(rank=2, dora=dora), random=torch.Generator().manual_seed(1))
        assert isinstance(linear, LoRALinear)
        torch.manual_seed(2)
        with torch.no_grad():
            linear.adapters["default"].lora_B.normal_()
        linear.double()
        x = torch.linspace(-1, 1, 4 * 48, dtype=torch.float64).view(4, 48).requires_grad_()
        y = linear(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *linear.adapters.parameters()])
        results.append([y, *gradients, linear.to_linear().weight])
    for mine, expected in zip(*results, strict=True):
        assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@KINDS
def test_the_order_of_replacements_is_kept(kind: str) -> None:
    quantized = from_linear(dense(), CONFIGS[kind])
    for later in (CONFIGS["int8"], LowRankConfig(rank=2)):
        with pytest.raises(ConfigError, match="quantized cannot become"):
            from_linear(quantized, later)
    factorized = from_linear(dense(), LowRankConfig(rank=2))
    assert type(from_linear(factorized, CONFIGS[kind])) is type(quantized)
    with pytest.raises(ConfigError, match="adapted cannot become quantized"):
        from_linear(from_linear(dense(), LoRAConfig()), CONFIGS[kind])


@KINDS
def test_under_autocast_the_products_are_low_precision(kind: str) -> None:
    quantized = from_linear(dense(dtype=torch.float32), CONFIGS[kind])
    x = torch.randn(3, 48, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = quantized(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


# --- products of integers ---------------------------------------------------------------------------------------


def in_integers(linear: Linear) -> Int8Linear:
    made = from_linear(linear, Int8Config(compute="int8"))
    assert isinstance(made, Int8Linear)
    return made


def rounding_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far x·weightᵀ can be off when each row of x is rounded to 127 steps: half a step times Σ|weight|."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return 0.501 * step * weight.abs().sum(1) + 1e-5


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [48, 41])
def test_int8_products_stay_within_what_rounding_their_rows_allows(adapted: bool, bias: bool, inputs: int) -> None:
    base = in_integers(dense(inputs, bias=bias, dtype=torch.float32))
    linear, weight = base, base.to_linear().weight.double().detach()
    expected_bias = 0 if base.bias is None else base.bias.double()
    update = torch.zeros(20, inputs, dtype=torch.float64)
    if adapted:
        linear = from_linear(base, LoRAConfig(rank=2))
        adapter = linear.adapters["default"]
        torch.nn.init.normal_(adapter.lora_B)
        update = (adapter.scale * adapter.lora_B @ adapter.lora_A).double().detach()
    torch.manual_seed(1)
    x = torch.randn(3, 10, inputs)
    x[1, 4] = 0
    x.requires_grad_()
    gradient = torch.randn(3, 10, 20)
    y = linear(x)
    y.backward(gradient)
    x64, g64 = x.detach().double(), gradient.double()
    error = (y.double() - (x64 @ (weight + update).t() + expected_bias)).abs()
    assert bool((error <= rounding_bound(x64, weight)).all()) and float(error.max()) > 1e-4
    scaled, codes = g64 * base.scale.double(), base.codes.double()
    error = (x.grad.double() - g64 @ (weight + update)).abs()
    assert bool((error <= rounding_bound(scaled, codes.t())).all()) and float(error.max()) > 1e-5
    assert not base(torch.zeros(20, inputs)).sub(expected_bias).any()


def test_few_rows_keep_their_activations_as_they_are() -> None:
    linear = in_integers(dense(dtype=torch.float32))
    x = torch.randn(16, 48)
    assert_close(linear(x), linear.to_linear()(x))
    assert not torch.allclose(linear(x.repeat(2, 1)), linear.to_linear()(x.repeat(2, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_int8_products_come_in_the_dtype_of_their_input(dtype: torch.dtype) -> None:
    linear = in_integers(dense(dtype=torch.float32))
    x = torch.randn(40, 48).to(dtype).requires_grad_()
    y = linear(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    expected = linear.to_linear()(x.detach().float())
    assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    if dtype == torch.float64:  # whoever asks for this precision gets it
        assert_close(y.float(), expected)


def test_products_read_the_codes_that_stand_there_when_they_are_made() -> None:
    linear = in_integers(dense(dtype=torch.float32, bias=False))
    adapted = from_linear(linear, LoRAConfig(rank=2))
    x = torch.randn(20, 48)
    before = adapted(x)
    linear.codes = -linear.codes
    assert_close(adapted(x), -before)


def test_with_and_without_the_kernel_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.kernels import int8

    linear = from_linear(in_integers(dense(dtype=torch.float32)), LoRAConfig(rank=2))
    torch.nn.init.normal_(linear.adapters["default"].lora_B)
    x = torch.randn(20, 48, requires_grad=True)
    results = []
    for _ in range(2):
        y = linear(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *linear.adapters.parameters()])])
        monkeypatch.setattr(int8, "_typed_kernel", lambda: None)
    for mine, twin in zip(*results, strict=True):
        assert_close(mine, twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [Int8Config(), Int4Config(), NF4Config()], ids=lambda config: config.kind)
def test_without_memory_it_has_the_shapes_that_it_will_have(config):
    linear = Linear(70, 48, bias=True)
    with torch.device("meta"):
        empty = Linear(70, 48, bias=True)
    expected = {name: (value.shape, value.dtype) for name, value in from_linear(linear, config).named_buffers()}
    made = from_linear(empty, config)
    assert all(value.is_meta for _, value in made.named_buffers())
    assert {name: (value.shape, value.dtype) for name, value in made.named_buffers()} == expected
