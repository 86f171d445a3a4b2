"""CMA-ES (Hansen 2016, arXiv 1604.00772, the package cmaes) over a study's ranges.

The strategy's state is a function of the trials that are finished, so it is worked out from them anew for each trial:
nothing but the trials is kept, and a study that was killed goes on as if it had not been. Choices, and what has
conditions, are drawn at random. A generation is of trials that were proposed by it; those that were pruned or failed
count as its worst.
"""

from __future__ import annotations

import math
from typing import Any

from shoestring.search.parameters import Range
from shoestring.search.space import Space

_SIGMA = 1 / 6  # of the unit cube, as Optuna has it


def ranges(space: Space) -> list[Range]:
    """What the strategy moves."""
    return [one for one in space.parameters if isinstance(one, Range) and not one.when]


class Strategy:
    """What the finished trials make of CMA-ES. seed: of the next proposal. minimize: the direction."""

    def __init__(self, space: Space, seed: int, minimize: bool = True):
        import numpy
        from cmaes import CMA

        self.ranges, self.minimize = ranges(space), minimize
        size = len(self.ranges)
        self._cma = CMA(
            numpy.full(size, 0.5), _SIGMA, numpy.array([[0.0, 1.0]] * size), seed=seed,
            population_size=max(4 + math.floor(3 * math.log(size)), 2),
        )  # fmt: skip

    @property
    def generation(self) -> int:
        return self._cma.generation

    def replay(self, trials: list[tuple[int, dict[str, Any], float | None]]) -> None:
        """trials: (generation, values by parameter, objective or None) in the order of their numbers."""
        import numpy

        while True:
            mine = [one for one in trials if one[0] == self.generation][: self._cma.population_size]
            if len(mine) < self._cma.population_size:
                return
            sign = 1.0 if self.minimize else -1.0
            known = [sign * value for _, _, value in mine if value is not None]
            worst = max(known, default=0.0)
            told = [
                (
                    numpy.array([one.position(values[one.name]) for one in self.ranges]),
                    worst if value is None else sign * value,
                )
                for _, values, value in mine
            ]
            self._cma.tell(told)

    def ask(self) -> dict[str, Any]:
        return {one.name: one.at(float(x)) for one, x in zip(self.ranges, self._cma.ask(), strict=True)}
