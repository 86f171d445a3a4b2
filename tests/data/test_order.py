"""Computed permutations: each is one, they differ, they look like chance, and they stay the same for all time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.order import Shuffle, permutation


@given(seed=st.integers(-3, 2**70), epoch=st.integers(0, 2**40), count=st.integers(0, 300))
def test_every_number_comes_once(seed, epoch, count):
    shuffle = Shuffle(seed, epoch, count)
    assert sorted(shuffle[n] for n in range(count)) == list(range(count)) and len(shuffle) == count


def test_places_outside_are_refused():
    for place in (-1, 5):
        with pytest.raises(IndexError):
            Shuffle(0, 0, 5)[place]


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(Shuffle(seed, epoch, 50)[n] for n in range(50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_neighbours_are_far_apart_and_every_place_is_as_likely():
    """Against what chance gives: the mean distance of two places is a third; counts of a place have a chi-square."""
    shuffle = Shuffle(3, 0, 10_000)
    order = np.array([shuffle[n] for n in range(10_000)])
    assert abs(np.abs(np.diff(order)).mean() / 10_000 - 1 / 3) < 0.01
    counts = np.zeros((20, 20))
    for seed in range(4000):
        small = Shuffle(seed, 1, 20)
        for n in range(20):
            counts[n, small[n]] += 1
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 361 + 4 * np.sqrt(2 * 361)


def test_a_place_of_a_trillion_is_found_at_once():
    shuffle = Shuffle(1, 2, 10**12)
    found = [shuffle[n] for n in (0, 1, 10**12 - 1)]
    assert len(set(found)) == 3 and all(0 <= n < 10**12 for n in found)


def test_orders_are_fixed_for_all_time():
    shuffle = Shuffle(5, 1, 60)
    assert [shuffle[n] for n in range(8)] == [24, 56, 15, 23, 13, 28, 20, 2]
    assert permutation(0, 0, 60)[:8].tolist() == [57, 43, 31, 50, 2, 21, 29, 6]
