"""Intervals and tests against what they are by definition."""

import itertools
import math

import pytest

from shoestring.evaluate.suite.statistics import holm, mcnemar, wilson


@pytest.mark.parametrize(("right", "of"), [(0, 10), (3, 10), (10, 10), (15, 30), (1, 1000)])
def test_an_interval_ends_where_the_score_test_does(right, of):
    """Its ends are the shares p at which (right/of − p) is 1.96 standard errors, √(p(1 − p)/of)."""
    low, high = wilson(right, of)
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            error = math.sqrt(end * (1 - end) / of)
            assert abs(right / of - end) / error == pytest.approx(1.959964, rel=1e-5)
    assert 0 <= low <= right / of <= high <= 1


def test_the_interval_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 5), (0, 9), (6, 6)])
def test_mcnemar_counts_all_ways_that_coins_could_have_fallen(first, second):
    n = first + second
    as_far = [abs(2 * sum(coins) - n) >= abs(first - second) for coins in itertools.product((0, 1), repeat=n)]
    assert mcnemar(first, second) == pytest.approx(sum(as_far) / len(as_far))


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
