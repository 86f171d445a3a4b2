"""The fast parts against their plain twins and against torch's own, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shoestring.nn.config import LinearScaling, Llama3Scaling, RopeConfig, SwiGLUConfig, YarnScaling
from shoestring.nn.feed_forward import SwiGLU, _SiluProduct, silu_product_plain
from shoestring.nn.norm import RMSNorm, rms_norm_plain
from shoestring.nn.rope import RotaryEmbedding, rotate, rotate_plain, scaled_frequencies


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def results(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradient of each input, for one random weighting of the outputs."""
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*copies)
    weighting = random(*output.shape, seed=9).detach().to(output.dtype)
    return [output, *torch.autograd.grad((output * weighting).sum(), copies)]


# RMSNorm


def test_rms_norm_agrees_with_its_twin():
    x, weight = random(2, 5, 16), random(16, seed=1)
    norm = RMSNorm(16, 1e-3)

    def fast(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, x)

    for ours, plain in zip(
        results(fast, x, weight), results(lambda x, w: rms_norm_plain(x, w, 1e-3), x, weight), strict=True
    ):
        assert_close(ours, plain)


def test_rms_norm_agrees_with_torch_in_float64():
    x, weight = random(3, 16, dtype=torch.float64), random(16, seed=1, dtype=torch.float64)
    expected = results(lambda x, w: F.rms_norm(x, (16,), w, 1e-3), x, weight)
    norm = RMSNorm(16, 1e-3)
    ours = results(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        x.detach().float(),
        weight.detach().float(),
    )
    for one, other in zip(ours, expected, strict=True):
        assert_close(one, other.float())


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = (random(4, 64) * 100).to(torch.bfloat16)
    norm = RMSNorm(64, 1e-5)
    exact = F.rms_norm(x.double(), (64,), None, 1e-5)
    assert norm(x).dtype == torch.bfloat16
    assert_close(norm(x), exact.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_rms_norm_under_autocast_is_computed_in_float32(grad):
    x, norm = random(4, 64), RMSNorm(64, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(grad):
        assert_close(norm(x), F.rms_norm(x, (64,), None, 1e-5))


def test_rms_norm_of_a_frozen_weight_still_gives_the_inputs_gradient():
    x, norm = random(2, 16), RMSNorm(16, 1e-5).requires_grad_(False)
    (norm(x) * random(2, 16, seed=1)).sum().backward()
    assert x.grad is not None and norm.weight.grad is None


# Rotary positions

SCALINGS = {
    "none": None,
    "linear": LinearScaling(factor=3.0),
    "llama3": Llama3Scaling(factor=8.0, original_context=64),
    "yarn": YarnScaling(factor=4.0, original_context=64),
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotate_agrees_with_its_twin(scaling):
    rotary = RotaryEmbedding(RopeConfig(theta=1e4, scaling=SCALINGS[scaling]), 8)
    tables = rotary(torch.tensor([[0, 1, 2, 50, 3], [9, 8, 7, 100, 2]]))
    x = random(2, 5, 3, 8).transpose(1, 2)  # the layout that attention hands over
    for ours, plain in zip(
        results(lambda x: rotate(x, tables), x), results(lambda x: rotate_plain(x, tables), x), strict=True
    ):
        assert_close(ours, plain)


def test_rotation_is_multiplication_by_a_complex_number():
    x = random(1, 2, 6, 8, dtype=torch.float64)
    tables = RotaryEmbedding(RopeConfig(theta=100.0), 8)(torch.arange(6).unsqueeze(0))
    planes = torch.complex(x[..., :4].detach(), x[..., 4:].detach())
    frequency = 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = planes * torch.exp(1j * torch.arange(6, dtype=torch.float64).unsqueeze(1) * frequency)
    assert_close(rotate(x.float(), tables).detach(), torch.cat([turned.real, turned.imag], -1).float())


def test_scores_depend_on_the_distance_alone():
    rotary = RotaryEmbedding(RopeConfig(), 16)
    q, k = random(1, 1, 1, 16), random(1, 1, 1, 16, seed=1)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        turned = rotate(q, rotary(torch.tensor([[query_position]])))
        return (turned * rotate(k, rotary(torch.tensor([[key_position]])))).sum()

    assert_close(score(7, 3), score(1007, 1003), rtol=1e-4, atol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    plain, _ = scaled_frequencies(RopeConfig(theta=5e5), 64)
    scaling = Llama3Scaling(factor=8.0, original_context=8192)
    scaled, _ = scaled_frequencies(RopeConfig(theta=5e5, scaling=scaling), 64)
    wavelengths = 2 * math.pi / plain
    assert_close(scaled[wavelengths < 2048], plain[wavelengths < 2048])
    assert_close(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8)
    between = (wavelengths >= 2048) & (wavelengths <= 8192)
    assert between.any()
    assert ((scaled[between] <= plain[between]) & (scaled[between] >= plain[between] / 8)).all()


def test_yarn_has_the_papers_temperature_unless_given_one():
    def temperature(**settings) -> float:
        scaling = YarnScaling(factor=4.0, original_context=64, **settings)
        return scaled_frequencies(RopeConfig(scaling=scaling), 16)[1]

    assert temperature() == pytest.approx(0.1 * math.log(4) + 1)
    assert temperature(attention_factor=1.5) == 1.5


# SwiGLU


def test_the_gated_product_agrees_with_its_twin_in_float64():
    gate, up = random(2, 3, 8, dtype=torch.float64), random(2, 3, 8, seed=1, dtype=torch.float64)
    for ours, plain in zip(
        results(_SiluProduct.apply, gate, up), results(silu_product_plain, gate, up), strict=True
    ):
        assert_close(ours, plain)
    assert torch.autograd.gradcheck(_SiluProduct.apply, (gate, up))


@pytest.mark.parametrize("bias", [False, True])
def test_a_swiglu_layer_is_down_of_silu_of_gate_times_up(bias):
    layer = SwiGLU(SwiGLUConfig(width=24, bias=bias), 16).double()
    names = [name for name, _ in layer.named_parameters()]

    def ours(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)[0]

    def plain(x, *values):
        p = dict(zip(names, values, strict=True))
        inner = F.silu(F.linear(x, p["gate.weight"], p.get("gate.bias")))
        inner = inner * F.linear(x, p["up.weight"], p.get("up.bias"))
        return F.linear(inner, p["down.weight"], p.get("down.bias"))

    inputs = [random(2, 3, 16, dtype=torch.float64), *layer.parameters()]
    for one, other in zip(results(ours, *inputs), results(plain, *inputs), strict=True):
        assert_close(one, other)
