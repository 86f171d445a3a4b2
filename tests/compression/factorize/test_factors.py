"""The best factors for given inputs: held to brute force in float64, and to the factorization of whitened weights."""

from __future__ import annotations

import pytest
import torch

from shoestring.compression.factorize.low_rank import Moments, best_factors, energies
from shoestring.core.errors import DataError
from shoestring.nn.low_rank import factorize

SHAPES = [(7, 5), (5, 7), (6, 6)]


def drawn(outputs: int, inputs: int, tokens: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(outputs * 10 + inputs)
    mix = torch.randn(inputs, inputs, generator=random, dtype=torch.float64)
    x_NI = torch.randn(tokens, inputs, generator=random, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=random, dtype=torch.float64), x_NI


def moments_of(x_NI: torch.Tensor) -> Moments:
    return Moments.of(x_NI.t() @ x_NI).with_root()


def error(weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor], x_NI: torch.Tensor) -> float:
    first, second = factors
    return float((x_NI @ (weight - second @ first).t()).square().sum())


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_no_factors_that_a_search_finds_are_nearer(outputs: int, inputs: int, rank: int) -> None:
    """Alternating least squares over the data itself, from many beginnings."""
    weight, x_NI = drawn(outputs, inputs)
    wanted_NO = x_NI @ weight.t()
    least = float("inf")
    for seed in range(6):
        second = torch.randn(outputs, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(400):
            inner_NR = wanted_NO @ second @ torch.linalg.inv(second.t() @ second)
            first = torch.linalg.lstsq(x_NI, inner_NR).solution.t()
            second = torch.linalg.lstsq(x_NI @ first.t(), wanted_NO).solution.t()
        least = min(least, error(weight, (first, second), x_NI))
    found = error(weight, best_factors(weight, rank, moments_of(x_NI)), x_NI)
    assert found == pytest.approx(least, rel=1e-7)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_each_rank_takes_its_energy_off_the_error(outputs: int, inputs: int) -> None:
    weight, x_NI = drawn(outputs, inputs)
    moments = moments_of(x_NI)
    parts = energies(weight, moments)
    assert len(parts) == min(outputs, inputs) and bool((parts.diff() <= 0).all())
    expected = torch.linalg.svdvals(weight @ x_NI.t()).square()[: len(parts)]
    torch.testing.assert_close(parts, expected, rtol=1e-7, atol=1e-9 * float(expected[0]))
    for rank in range(1, len(parts)):
        found = error(weight, best_factors(weight, rank, moments), x_NI)
        assert found == pytest.approx(float(parts[rank:].sum()), rel=1e-6)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_they_are_those_of_the_whitened_weights(outputs: int, inputs: int) -> None:
    weight, x_NI = drawn(outputs, inputs)
    for moments, second in ((None, None), (moments_of(x_NI), x_NI.t() @ x_NI)):
        first, last = best_factors(weight, 2, moments)
        theirs = factorize(weight, 2, second)
        torch.testing.assert_close(last @ first, theirs[1] @ theirs[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(first.norm(dim=1), last.norm(dim=0))


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_with_fewer_tokens_than_inputs_what_was_seen_is_exact_and_the_rest_is_the_weights(
    outputs: int, inputs: int
) -> None:
    weight, x_NI = drawn(outputs, inputs, tokens=2)
    first, second = best_factors(weight, 4, moments_of(x_NI))
    assert bool(torch.isfinite(first).all() and torch.isfinite(second).all())
    assert error(weight, (first, second), x_NI) < 1e-6 * float((x_NI @ weight.t()).square().sum())
    assert float((weight - second @ first).square().sum()) < 0.7 * float(weight.square().sum())
    dead = best_factors(weight, 2, Moments.of(torch.zeros(inputs, inputs)).with_root())
    plain = best_factors(weight, 2, None)
    torch.testing.assert_close(dead[1] @ dead[0], plain[1] @ plain[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_a_sentence(value: float) -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        Moments.of(torch.full((3, 3), value))
