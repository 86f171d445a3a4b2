"""Ranks of all matrices by one budget: what each parameter buys, dearest first.

A matrix of rank r has r·(I + O) parameters and keeps E(r) of what it gives on the calibration inputs, squared and
weighed by what the loss feels of it (`factorize.sensitivity`), or as a part of all that it gives; whole it has I·O and
keeps all. Over these points lies a concave hull: its segments, of all matrices together, are taken by what they keep
for each parameter until the budget is full (the optimum of the relaxed problem, so that no choice keeps more than this
one by more than one segment's worth). What is left over goes to single further ranks. Weights hold for small errors;
so each matrix first gets a part of what it would have if all were shrunk alike.
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
    """kept: E(1), E(2), ... up to the last rank whose factors are smaller than the matrix. all: what it keeps whole."""

    inputs: int
    outputs: int
    kept: tuple[float, ...]
    all: float = 1.0

    @classmethod
    def of(cls, inputs: int, outputs: int, energies: Tensor, weight: float | None = None) -> Matrix:
        """energies: Σ², largest first. weight: of each; None: of all together 1."""
        total, most = float(energies.sum()), (inputs * outputs - 1) // (inputs + outputs)
        parts = (energies * (weight if weight is not None else 1 / total if total > 0 else 1.0)).cumsum(0).tolist()
        return cls(inputs, outputs, tuple(parts[:most]), 1.0 if weight is None else parts[-1])

    def least(self, share: float) -> int:
        """The rank of factors with this part of the matrix's parameters, 1 at least."""
        return min(max(int(share * self.whole / self.each), 1), len(self.kept))

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


def choose(matrices: Mapping[str, Matrix], budget: int, floor: float = 0.0) -> dict[str, int]:
    """The rank of each matrix, 0 where it stays whole, with at most `budget` parameters in all. floor: the part that
    each gets, at least, of what it would have if all were shrunk alike. Raises ConfigError where not even rank 1
    fits."""
    alike = floor * budget / max(sum(matrix.whole for matrix in matrices.values()), 1)
    ranks = {name: matrix.least(alike) if matrix.kept else 0 for name, matrix in matrices.items()}
    if sum(matrix.parameters(ranks[name]) for name, matrix in matrices.items()) > budget:
        ranks = {name: 1 if matrix.kept else 0 for name, matrix in matrices.items()}
    left = budget - sum(matrix.parameters(ranks[name]) for name, matrix in matrices.items())
    if left < 0:
        wanted, least = format_count(budget), format_count(budget - left)
        raise ConfigError(f"the blocks' matrices are to have {wanted} parameters, and have {least} at rank 1")
    steps = {name: _steps(matrix, ranks[name]) for name, matrix in matrices.items() if matrix.kept}
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


def _steps(matrix: Matrix, first: int) -> Iterator[_Step]:
    """Along the hull from a rank: single ranks while each is worth more than going from there to the whole matrix."""
    for rank in range(first, len(matrix.kept) + 1):
        whole = _Step(0, matrix.whole - rank * matrix.each, matrix.all - matrix.kept[rank - 1])
        if rank == len(matrix.kept):
            yield whole
            return
        single = _Step(rank + 1, matrix.each, matrix.kept[rank] - matrix.kept[rank - 1])
        if single.worth < whole.worth:
            yield whole
            return
        yield single
