"""Ranks of all matrices by one budget: what each parameter buys, dearest first.

A matrix of rank r has r·(I + O) parameters and keeps the part E(r) of what it gives on the calibration inputs, squared;
whole it has I·O and keeps all. Over these points lies a concave hull: its segments, of all matrices together, are taken
by what they keep for each parameter until the budget is full (the optimum of the relaxed problem, so that no choice
keeps more than this one by more than one segment's worth). What is left over goes to single further ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.core.units import format_count


@dataclass(frozen=True)
class Matrix:
    """kept: E(1), E(2), ... up to the last rank whose factors are smaller than the matrix."""

    inputs: int
    outputs: int
    kept: tuple[float, ...]

    @classmethod
    def of(cls, inputs: int, outputs: int, energies: Tensor) -> Matrix:
        """energies: Σ², largest first."""
        total = float(energies.sum())
        parts = (energies / total if total > 0 else energies).cumsum(0).tolist()
        return cls(inputs, outputs, tuple(parts[: (inputs * outputs - 1) // (inputs + outputs)]))

    @property
    def each(self) -> int:
        """Parameters of a rank."""
        return self.inputs + self.outputs

    @property
    def whole(self) -> int:
        return self.inputs * self.outputs

    def parameters(self, rank: int) -> int:
        """rank 0: one matrix."""
        return rank * self.each if rank else self.whole


@dataclass(frozen=True)
class _Step:
    """From one rank to another, 0 the whole matrix: for so many parameters so much more is kept."""

    to: int
    cost: int
    gain: float

    @property
    def worth(self) -> float:
        return self.gain / self.cost


def choose(matrices: Mapping[str, Matrix], budget: int) -> dict[str, int]:
    """The rank of each matrix, 0 where it stays whole, with at most `budget` parameters in all. Raises ConfigError
    where not even rank 1 fits."""
    ranks = {name: 1 if matrix.kept else 0 for name, matrix in matrices.items()}
    left = budget - sum(matrix.parameters(ranks[name]) for name, matrix in matrices.items())
    if left < 0:
        wanted, least = format_count(budget), format_count(budget - left)
        raise ConfigError(f"the blocks' matrices are to have {wanted} parameters, and have {least} at rank 1")
    steps = {name: _steps(matrix) for name, matrix in matrices.items() if matrix.kept}
    left = _take(ranks, left, steps)
    # Single ranks of matrices that are not whole, where the step to the whole one was too dear.
    singles = {
        name: iter([_Step(r + 1, matrix.each, matrix.kept[r] - matrix.kept[r - 1])
                    for r in range(ranks[name], len(matrix.kept))])
        for name, matrix in matrices.items() if ranks[name]
    }  # fmt: skip
    _take(ranks, left, singles)
    return ranks


def _take(ranks: dict[str, int], left: int, steps: Mapping[str, Iterator[_Step]]) -> int:
    """Take steps while they fit, each matrix's in their order; -> what is left of the budget."""
    heap: list[tuple[float, str, _Step]] = []

    def offer(name: str) -> None:
        if (step := next(steps[name], None)) is not None:
            heapq.heappush(heap, (-step.worth, name, step))

    for name in steps:
        offer(name)
    while heap:
        _, name, step = heapq.heappop(heap)
        if step.cost <= left:
            ranks[name], left = step.to, left - step.cost
            offer(name)
    return left


def _steps(matrix: Matrix) -> Iterator[_Step]:
    """Along the hull from rank 1: single ranks while each is worth more than going from there to the whole matrix."""
    for rank in range(1, len(matrix.kept) + 1):
        whole = _Step(0, matrix.whole - rank * matrix.each, 1 - matrix.kept[rank - 1])
        if rank == len(matrix.kept):
            yield whole
            return
        single = _Step(rank + 1, matrix.each, matrix.kept[rank] - matrix.kept[rank - 1])
        if single.worth < whole.worth:
            yield whole
            return
        yield single
