"""The set of hashes, against Python's."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.quality.duplicates import Seen, text_hash

LAST = 2**64 - 1
# Anything; few places near the end, so that they go on at the beginning; and the same place again and again.
NUMBERS = st.one_of(
    st.integers(0, LAST), st.integers(LAST - 2**55, LAST), st.integers(0, 9), st.integers(2**63, 2**63 + 50)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, max_size=1500), st.lists(NUMBERS, max_size=200))
def test_it_is_a_set(first, more):
    seen, judge = Seen(), set()
    for value in first:
        assert seen.add(value) == (value not in judge)
        judge.add(value)
    assert len(seen) == len(judge) and seen.dump().tolist() == sorted(judge)
    assert all((value in seen) == (value in judge) for value in [*first, *more, 0, LAST])
    again = Seen.load(seen.dump())
    for value in more:
        assert again.add(value) == (value not in judge)
        judge.add(value)
    seen.update(np.array(more, np.uint64))
    assert again.dump().tolist() == seen.dump().tolist() == sorted(judge)
    assert all(value in seen for value in judge)


@pytest.mark.parametrize("crowded", [False, True])
def test_it_grows_as_a_whole_load_lays_it(crowded):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 800 if crowded else 40_000, np.uint64)
    if crowded:  # all in the last of 16 parts, so that most are pushed on to the beginning
        values = values >> np.uint64(4) | np.uint64(0xF << 60)
    one_by_one = Seen()
    assert sum(map(one_by_one.add, values.tolist())) == len({*values.tolist()})
    whole = Seen.load(values)
    assert (one_by_one.dump() == whole.dump()).all() and len(whole) == len({*values.tolist()})
    assert all(value in whole and value in one_by_one for value in values[:2000].tolist())
    assert not any(value in whole for value in rng.integers(0, 2**53, 500, np.uint64).tolist())


def test_a_number_takes_at_most_22_bytes():
    values = np.random.default_rng(0).integers(0, 2**64, 300_000, np.uint64)
    tracemalloc.start()
    seen = Seen.load(values)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * len(seen) < held < 22 * len(seen)


def test_texts_are_told_apart_by_64_bits_of_their_bytes():
    assert text_hash("ä") == int.from_bytes(hashlib.blake2b(b"\xc3\xa4", digest_size=8).digest(), "little")
    assert len({*map(text_hash, ("a", "a ", "A", ""))}) == 4
    assert text_hash("\ud800") != text_hash("")  # half a character, as a broken JSON escape gives it
