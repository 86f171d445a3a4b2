"""Ranks by one budget, held to the best of all choices."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from shoestring.compression.factorize.ranks import Matrix, choose
from shoestring.core.errors import ConfigError


def drawn(seed: int) -> dict[str, Matrix]:
    rng, found = random.Random(seed), {}
    for name in "abc":
        inputs, outputs = rng.choice([(6, 9), (8, 8), (12, 5)])
        values = sorted((rng.random() ** rng.choice([1, 4]) for _ in range(min(inputs, outputs))), reverse=True)
        found[name] = Matrix.of(inputs, outputs, torch.tensor(values, dtype=torch.float64))
    return found


def kept(matrices: dict[str, Matrix], ranks: dict[str, int]) -> float:
    return sum(1.0 if not rank else matrices[name].kept[rank - 1] for name, rank in ranks.items())


def cost(matrices: dict[str, Matrix], ranks: dict[str, int]) -> int:
    return sum(matrices[name].parameters(rank) for name, rank in ranks.items())


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_keeps_more_by_more_than_one_step(seed: int) -> None:
    matrices = drawn(seed)
    every = [dict(zip(matrices, ranks, strict=True))
             for ranks in itertools.product(*(range(len(m.kept) + 1) for m in matrices.values()))]  # fmt: skip
    for share in (0.4, 0.55, 0.7, 0.85):
        budget = int(share * sum(matrix.whole for matrix in matrices.values()))
        ranks = choose(matrices, budget)
        assert cost(matrices, ranks) <= budget and all(0 <= r <= len(matrices[n].kept) for n, r in ranks.items())
        best = max(kept(matrices, one) for one in every if cost(matrices, one) <= budget)
        single = max(1 - matrix.kept[-1] + matrix.kept[-1] / len(matrix.kept) for matrix in matrices.values())
        assert best - single <= kept(matrices, ranks) <= best + 1e-12


def test_of_matrices_of_one_shape_the_largest_energies_are_kept() -> None:
    """There the greedy choice is the best one: brute force over all."""
    random = torch.Generator().manual_seed(0)
    matrices = {name: Matrix.of(40, 40, torch.rand(40, generator=random, dtype=torch.float64).sort(descending=True)[0])
                for name in "ab"}  # fmt: skip
    budget = 16 * 80
    best = max(
        kept(matrices, {"a": a, "b": 16 - a}) for a in range(1, 16)
    )
    assert kept(matrices, choose(matrices, budget)) == pytest.approx(best, abs=1e-12)


def test_a_matrix_that_factors_keep_badly_stays_whole() -> None:
    flat = Matrix.of(8, 8, torch.ones(8))
    steep = Matrix.of(8, 8, torch.tensor([1.0, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]))
    assert choose({"flat": flat, "steep": steep}, 64 + 16) == {"flat": 0, "steep": 1}
    assert choose({"flat": flat, "steep": steep}, 128) == {"flat": 0, "steep": 0}
    assert len(flat.kept) == 3  # of rank 4 the factors have 64 parameters, as the matrix


def test_what_is_left_over_goes_to_single_ranks() -> None:
    """The step to the whole matrix does not fit: two of its ranks do."""
    flat = Matrix.of(8, 8, torch.ones(8))
    assert choose({"flat": flat}, 63) == {"flat": 3}
    assert choose({"flat": flat}, 64) == {"flat": 0}


def test_less_than_rank_one_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="have 32 at rank 1"):
        choose({name: Matrix.of(8, 8, torch.ones(8)) for name in "ab"}, 31)


def test_weights_say_of_which_matrix_more_is_kept() -> None:
    energies = torch.linspace(1, 0.1, 40, dtype=torch.float64)
    matrices = {name: Matrix.of(40, 40, energies, weight) for name, weight in (("felt", 10.0), ("little", 0.1))}
    assert matrices["felt"].all == pytest.approx(10 * float(energies.sum()))
    ranks = choose(matrices, 1600 + 80)
    assert ranks == {"felt": 0, "little": 1}


@pytest.mark.parametrize("floor", [0.25, 0.5, 1.0])
def test_each_matrix_gets_its_part_of_what_it_would_have_if_all_were_shrunk_alike(floor: float) -> None:
    energies = torch.linspace(1, 0.1, 40, dtype=torch.float64)
    matrices = {name: Matrix.of(40, 40, energies, weight) for name, weight in (("felt", 10.0), ("little", 1e-3))}
    for budget in (800, 1600, 2400):
        ranks = choose(matrices, budget, floor)
        alike = budget / 3200 * 1600 / 80  # ranks
        assert cost(matrices, ranks) <= budget
        assert all(rank == 0 or rank >= int(floor * alike) for rank in ranks.values())
    assert choose(matrices, 160, 1.0) == {"felt": 1, "little": 1}
