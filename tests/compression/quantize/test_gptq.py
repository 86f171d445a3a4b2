"""GPTQ against its definition, solved anew for every input in float64, and its account of errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from shoestring.compression.quantize import gptq as module
from shoestring.compression.quantize.gptq import Hessian, gptq, inverse_factor, row_errors, to_nearest
from shoestring.core.errors import DataError
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import Grid, fit

INPUTS, OUTPUTS, DAMPING = 24, 7, 0.01


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [O, I] and inputs [N, I]: a few causes of all of them, and a little of their own; some are large."""
    random = torch.Generator().manual_seed(3)
    causes, effects = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((200, 8), (8, INPUTS)))
    x_NI = causes @ effects + 0.3 * torch.randn(200, INPUTS, generator=random, dtype=torch.float64)
    x_NI *= torch.linspace(0.5, 2, INPUTS, dtype=torch.float64)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=random, dtype=torch.float64) * 0.1
    return weight_OI.to(dtype), x_NI.to(dtype)


def hessian_of(x_NI: torch.Tensor) -> torch.Tensor:
    hessian = Hessian(x_NI.shape[1])
    for part in x_NI.split(64):
        hessian.add(part)
    return hessian.sum_II


def by_definition(weight_OI: torch.Tensor, hessian_II: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes, each input rounded in its turn, and the inputs still to come moved to where the damped error is least."""
    damped = hessian_II + DAMPING * hessian_II.diagonal().mean() * torch.eye(INPUTS, dtype=torch.float64)
    order = sorted(range(INPUTS), key=lambda i: -float(hessian_II[i, i]))
    left, codes = weight_OI.clone(), torch.zeros(weight_OI.shape, dtype=torch.int8)
    for place, i in enumerate(order):
        codes[:, i] = grid.codes(left)[:, i]
        error = grid.values(codes, torch.float64)[:, i] - left[:, i]
        rest = order[place + 1 :]
        if rest:
            within, across = damped[rest][:, rest], damped[rest, i]
            left[:, rest] -= torch.outer(error, torch.linalg.solve(within, across))
    return codes


@pytest.mark.parametrize(("bits", "group", "symmetric"), [*itertools.product((3, 4), (8, None), (True, False))])
def test_codes_are_those_of_the_definition(monkeypatch, bits: int, group: int | None, symmetric: bool) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)  # so that errors reach over several blocks
    weight, x = problem()
    config, hessian = PackedConfig(bits=bits, group=group, symmetric=symmetric), hessian_of(x)
    grid = fit(weight, config, hessian.diagonal())
    expected = by_definition(weight, hessian, grid)
    assert torch.equal(module._one_by_one(weight, hessian, grid, DAMPING)[0], expected)
    assert not torch.equal(expected, grid.codes(weight))  # or rounding to nearest would pass
    found = gptq(weight, hessian, config, DAMPING)
    own, nearest = ((found.codes_OI == codes).all(1) for codes in (expected, fit(weight, config).codes(weight)))
    assert own.any() and (own | nearest).all()


def test_errors_are_those_of_the_outputs_and_never_above_those_of_rounding_to_nearest() -> None:
    weight, x = problem()
    for bits, group, symmetric in itertools.product((3, 4, 8), (8, None), (True, False)):
        config = PackedConfig(bits=bits, group=group, symmetric=symmetric)
        found, nearest = gptq(weight, hessian_of(x), config, DAMPING), to_nearest(weight, config)
        outputs = x @ weight.t()
        off = x @ found.grid.values(found.codes_OI, torch.float64).t() - outputs
        plain = x @ nearest.grid.values(nearest.codes_OI, torch.float64).t() - outputs
        assert found.error == pytest.approx(float(off.square().sum()), rel=1e-9)
        assert found.nearest == pytest.approx(float(plain.square().sum()), rel=1e-9)
        assert found.whole == pytest.approx(float(outputs.square().sum()), rel=1e-9)
        assert (off.square().sum(0) <= plain.square().sum(0) * (1 + 1e-9)).all()
        assert found.error < 0.7 * found.nearest


def test_float32_weights_and_sums_agree_with_float64() -> None:
    weight, x = problem()
    config = PackedConfig(bits=4, group=8)
    exact = gptq(weight, hessian_of(x), config, DAMPING)
    assert hessian_of(x.float()).dtype == torch.float64
    single = gptq(weight.float(), hessian_of(x.float()).float(), config, DAMPING)
    assert single.error == pytest.approx(exact.error, rel=0.05)


def test_the_factor_is_upper_triangular_and_that_of_the_damped_inverse(monkeypatch) -> None:
    monkeypatch.setattr(module, "COLUMNS", 7)
    _, x = problem()
    hessian = hessian_of(x)
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(0))
    factor = inverse_factor(hessian, order, DAMPING)
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(INPUTS, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    assert_close(factor.t() @ factor, torch.linalg.inv(damped[order][:, order]), rtol=1e-8, atol=1e-12)


def test_inputs_that_are_never_other_than_zero_are_rounded_to_nearest() -> None:
    weight, x = problem()
    x[:, 5] = 0
    config = PackedConfig(bits=4, group=None)
    hessian = hessian_of(x)
    found = gptq(weight, hessian, config, DAMPING)
    assert torch.equal(found.codes_OI[:, 5], found.grid.codes(weight)[:, 5])
    nothing = gptq(weight, torch.zeros_like(hessian), config, DAMPING)
    assert torch.equal(nothing.codes_OI, to_nearest(weight, config).codes_OI) and nothing.error == 0


def test_fewer_rows_than_inputs_are_enough() -> None:
    weight, x = problem()
    found = gptq(weight, hessian_of(x[:5]), PackedConfig(bits=4, group=8), DAMPING)
    assert 0 < found.error < found.nearest < found.whole


def test_nan_in_the_inputs_is_a_sentence() -> None:
    weight, x = problem()
    x[0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinity"):
        gptq(weight, hessian_of(x), PackedConfig(group=8), DAMPING)


def test_rounding_to_nearest_counts_the_errors_of_the_weights() -> None:
    weight, _ = problem()
    found = to_nearest(weight, PackedConfig(group=8))
    off = found.grid.values(found.codes_OI, torch.float64) - weight
    assert found.error == found.nearest == pytest.approx(float(off.square().sum()), rel=1e-5)
    assert_close(row_errors(off, torch.eye(INPUTS, dtype=torch.float64)), off.square().sum(1))
