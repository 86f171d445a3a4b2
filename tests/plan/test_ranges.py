"""Which layers lie on which machine."""

from __future__ import annotations

import pytest

from shoestring.core.errors import ConfigError
from shoestring.plan.ranges import Split, even_split


@pytest.mark.parametrize(("layers", "machines"), [(4, 1), (5, 2), (7, 3), (24, 5)])
def test_an_even_split_covers_all_layers_with_lengths_that_differ_by_one(layers, machines):
    split = even_split(layers, machines)
    split.check(layers, machines)
    lengths = [end - first for first, end in split.ranges]
    assert sum(lengths) == layers and max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        (((0, 2), (3, 4)), "its first one must be 2"),
        (((0, 2), (2, 2), (2, 4)), "machine 1 is to hold layers 2 to 1"),
        (((0, 2), (2, 3)), "the split ends behind layer 2, and the model has 4 layers"),
        (((0, 4),), "a split over 1 machines, and here are 2"),
    ],
)
def test_what_covers_not_all_layers_in_order_is_refused(ranges, said):
    with pytest.raises(ConfigError, match=said):
        Split(ranges).check(4, 2 if len(ranges) == 1 else None)


def test_more_machines_than_layers_are_refused():
    with pytest.raises(ConfigError, match="5 machines, and the model has 4 layers"):
        even_split(4, 5)
