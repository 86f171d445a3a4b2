"""CMA-ES worked out anew from a study's trials is the strategy that was never interrupted."""

import numpy
import pytest
from cmaes import CMA

from shoestring.search.cma import Strategy, ranges
from shoestring.search.space import read_space

SPACE = read_space(
    {
        "a": {"uniform": [0, 1]}, "b": {"log": [1e-4, 1]}, "kind": ["x", "y"],
        "c": {"uniform": [0, 1], "when": {"kind": "x"}},
    }, {},
)  # fmt: skip


def test_it_moves_ranges_without_conditions():
    assert [one.name for one in ranges(SPACE)] == ["a", "b"]


@pytest.mark.parametrize("minimize", [True, False])
def test_its_state_is_that_of_the_package_told_the_same(minimize):
    def value(point):
        distance = float(((point - numpy.array([0.2, 0.9])) ** 2).sum())
        return distance if minimize else -distance

    theirs = CMA(
        numpy.full(2, 0.5),
        1 / 6,
        numpy.array([[0.0, 1.0]] * 2),
        seed=3,
        population_size=Strategy(SPACE, 0)._cma.population_size,
    )
    trials = []
    for generation in range(6):
        points = [theirs.ask() for _ in range(theirs.population_size)]
        theirs.tell([(point, value(point) if minimize else -value(point)) for point in points])
        a, b = ranges(SPACE)
        trials += [(generation, {"a": a.at(x), "b": b.at(y)}, value(numpy.array([x, y]))) for x, y in points]
    ours = Strategy(SPACE, 9, minimize)
    ours.replay(trials)
    assert ours.generation == 6 == theirs.generation
    numpy.testing.assert_allclose(ours._cma._mean, theirs._mean, rtol=1e-6)
    numpy.testing.assert_allclose(ours._cma._C, theirs._C, rtol=1e-5)
    half = Strategy(SPACE, 9, minimize)
    half.replay(trials[: 3 * theirs.population_size + 2])  # a generation that is not whole waits
    assert half.generation == 3


def test_one_that_came_to_nothing_counts_as_the_worst_of_its_generation():
    size = Strategy(SPACE, 0)._cma.population_size
    rows = [(0, {"a": number / 10, "b": 10.0 ** -(number % 4)}, float(number)) for number in range(size)]
    failed, worst = Strategy(SPACE, 1), Strategy(SPACE, 1)
    failed.replay([*rows[:-1], (*rows[-1][:2], None)])
    worst.replay([*rows[:-1], (*rows[-1][:2], float(size - 2))])
    assert failed.generation == 1 and failed.ask() == worst.ask()
