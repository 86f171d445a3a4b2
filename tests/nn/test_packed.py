"""Packed linears: bits where the format has them, the nearest codes by brute force, gradients of rounded weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from shoestring.core.errors import ConfigError
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config, PackedConfig
from shoestring.nn.quantized.grid import Grid, fit
from shoestring.nn.quantized.packed import PackedLinear, round_rows
from shoestring.nn.quantized.packing import pack, unpack, words
from shoestring.nn.replace import from_linear

BITS = pytest.mark.parametrize("bits", range(2, 9))


def codes_of(bits: int, rows: int, count: int) -> torch.Tensor:
    half = 1 << bits - 1
    random = torch.Generator().manual_seed(bits)
    return torch.randint(-half, half, (rows, count), generator=random, dtype=torch.int8)


def dense(inputs: int = 48, outputs: int = 20, bias: bool = True, dtype: torch.dtype = torch.float64) -> Linear:
    torch.manual_seed(0)
    linear = Linear(inputs, outputs, bias=bias).to(dtype)
    torch.nn.init.normal_(linear.weight, 0.02, 0.1)
    return linear


@BITS
@pytest.mark.parametrize("count", [1, 7, 32, 45, 64])
def test_code_i_stands_at_bits_i_times_b_of_a_row(bits: int, count: int) -> None:
    codes = codes_of(bits, 3, count)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (3, words(count, bits))
    for row, found in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum((code + (1 << bits - 1)) << i * bits for i, code in enumerate(row))
        assert [word % (1 << 32) for word in found] == [number >> 32 * w & 0xFFFFFFFF for w in range(len(found))]


@BITS
@pytest.mark.parametrize("count", [1, 7, 32, 45, 64])
def test_what_is_packed_comes_back(bits: int, count: int) -> None:
    codes = codes_of(bits, 3, count)
    assert torch.equal(unpack(pack(codes, bits), bits, count), codes)
    turned = pack(codes.t(), bits).t()  # as zero points are packed, and read without being in one stretch
    assert torch.equal(unpack(turned.t(), bits, 3).t(), codes)


@pytest.mark.parametrize(("bits", "symmetric"), [*itertools.product((3, 4, 8), (True, False))])
def test_codes_are_the_nearest_of_each_groups_grid(bits: int, symmetric: bool) -> None:
    config = PackedConfig(bits=bits, group=16, symmetric=symmetric, scale="float32")
    weight = dense().weight.detach()
    grid = fit(weight, config)
    codes, half = grid.codes(weight), 1 << bits - 1
    every = torch.arange(-half, half, dtype=torch.float64)
    for row, group in itertools.product(range(20), range(3)):
        part, scale = weight[row, 16 * group : 16 * group + 16], grid.scale_OG[row, group].double()
        low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
        steps = 2 * half - 1
        assert_close(float(scale), (2 * max(-low, high) if symmetric else high - low) / steps, rtol=1e-6, atol=0)
        zero = 0 if grid.zero_OG is None else int(grid.zero_OG[row, group])
        levels = (every - zero) * scale
        found = (codes[row, 16 * group : 16 * group + 16].double() - zero) * scale
        assert_close((found - part).abs(), (levels - part.unsqueeze(1)).abs().amin(1), rtol=0, atol=1e-12)
        assert (found - part).abs().max() <= scale * 0.5001


def test_a_narrower_range_is_taken_where_it_brings_what_counts_nearer() -> None:
    config = PackedConfig(bits=3, group=16, symmetric=False, scale="float32")
    weight, counts = dense().weight.detach(), torch.linspace(0.1, 5, 48, dtype=torch.float64)

    def error(grid: Grid) -> torch.Tensor:
        off = grid.values(grid.codes(weight), torch.float64) - weight
        return (off.square() * counts).unflatten(1, (3, 16)).sum(-1)

    whole, chosen = error(fit(weight, config)), error(fit(weight, config, counts))
    assert (chosen <= whole).all() and chosen.sum() < 0.95 * whole.sum()


def test_a_group_of_zeros_stays_zeros() -> None:
    linear = dense(bias=False)
    with torch.no_grad():
        linear.weight[:, 16:32] = 0
    for symmetric in (True, False):
        packed = from_linear(linear, PackedConfig(group=16, symmetric=symmetric))
        assert isinstance(packed, PackedLinear)
        assert not packed.weights()[:, 16:32].any() and packed.weights()[:, :16].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(3, 16), (4, 8), (4, None), (8, None)])
def test_value_and_gradient_are_those_of_the_rounded_weights(bits: int, group: int | None, symmetric: bool) -> None:
    packed = from_linear(dense(), PackedConfig(bits=bits, group=group, symmetric=symmetric))
    rounded = packed.to_linear()
    assert rounded.weight.dtype == torch.float64 and not torch.equal(rounded.weight, dense().weight)
    results = []
    for linear in (packed, rounded):
        x = torch.linspace(-1, 1, 2 * 3 * 48, dtype=torch.float64).view(2, 3, 48).requires_grad_()
        y = linear(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    for mine, expected in zip(*results, strict=True):
        assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_inputs_of_8_bits_are_rounded_row_by_row_and_pass_gradients_unchanged() -> None:
    config = PackedConfig(bits=8, group=None, activations="int8")
    packed = from_linear(dense(dtype=torch.float32), config)
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scale = x.detach().abs().amax(-1, keepdim=True) / 127.5
    steps = round_rows(x.detach()) / scale
    assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.min() >= -128.001 and steps.max() <= 127.001
    assert (round_rows(x.detach()) - x.detach()).abs().max() <= scale.max() * 0.501
    assert not round_rows(torch.zeros(1, 4)).any()
    y = packed(x)
    assert_close(y, packed.to_linear()(round_rows(x.detach())), rtol=1e-5, atol=1e-6)
    y.sum().backward()
    assert_close(x.grad, packed.to_linear().weight.sum(0).expand(2, 3, 48), rtol=1e-5, atol=1e-6)


def test_an_adapter_trains_on_packed_weights_and_they_are_not_quantized_again() -> None:
    packed = from_linear(dense(dtype=torch.float32), PackedConfig(group=16))
    with pytest.raises(ConfigError, match="a linear that is quantized cannot become quantized"):
        from_linear(packed, Int4Config())
    adapted = from_linear(packed, LoRAConfig(rank=2), random=torch.Generator().manual_seed(0))
    assert isinstance(adapted, LoRALinear)
    x = torch.randn(3, 48)
    assert_close(adapted(x), packed(x))
    adapted(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


def test_groups_that_do_not_divide_a_row_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="groups of 32 do not divide the 48 inputs") as caught:
        from_linear(dense(), PackedConfig(group=32))
    assert "16, 8 would do" in str(caught.value)
