"""What followed the last time that a text read like this, against a search through the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.generate.lookup import Places, common


def searched(tokens, most):
    """The same by looking at every place, latest first."""
    for length in (3, 2):
        for start in range(len(tokens) - 1, length - 1, -1):
            if tokens[start - length : start] == tokens[len(tokens) - length :]:
                return [tokens[start + i % (len(tokens) - start)] for i in range(most)]
    return []


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(1, 5), max_size=20), st.integers(1, 6))
def test_the_latest_place_that_reads_alike_is_followed_however_the_text_grows(tokens, steps, most):
    places, size = Places(), 0
    for step in steps:
        size = min(size + step, len(tokens))
        assert places.follow(tokens[:size], most) == searched(tokens[:size], most)
    shorter = tokens[: size // 2]  # taken back
    assert places.follow(shorter, most) == searched(shorter, most)


def test_what_repeats_goes_round_and_what_is_new_has_no_guess():
    assert Places().follow([7, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert Places().follow([5, 5, 5], 3) == [5, 5, 5]
    assert Places().follow([1, 2, 3, 4], 3) == Places().follow([], 3) == Places().follow([1], 3) == []
    assert Places().follow([1, 2, 9, 4, 1, 2], 3) == [9, 4, 1]


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30), st.integers(0, 30))
def test_what_texts_have_in_common_is_what_they_begin_with(one, other, shared):
    other = one[:shared] + other
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common(one, other) == expected
