"""The temporal cache: its size, long counts in half precision, truncation of merged columns, reorder, state."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.nn.temporal_cache import TemporalCache
from tests.nn.test_mtla import attention, context_of, every_stride, feed, inputs, new_cache, whole


@every_stride
@pytest.mark.parametrize("tokens", [1, 7, 8])
def test_a_cache_of_t_tokens_fills_t_over_s_columns_rounded_up(stride, tokens):
    module = attention(stride)
    cache = new_cache(module, 1, 24)
    feed(module, cache, inputs(1, tokens))
    filled = cache.columns[0][0].isfinite().all(-1)
    assert int(filled.sum()) == -(-tokens // stride) and filled[: -(-tokens // stride)].all()
    assert cache.columns[0].shape[1] == -(-24 // stride)


@every_stride
def test_bytes_per_token_are_those_of_latent_and_rotary_key_over_the_stride(stride):
    cache = TemporalCache(3, 2, 24, 16, 20, stride, 4)
    assert cache.bytes_per_token() == 3 * 20 * 4 / stride
    assert cache.bytes_per_token() * 24 * 2 == sum(tensor.nbytes for tensor in cache.columns)


def test_columns_are_still_counted_past_256_in_bfloat16():
    """A counter kept in bfloat16 sticks at 256."""
    module = attention(2).to(torch.bfloat16)
    cache = TemporalCache(1, 1, 300, 16, 20, 2, 4, dtype=torch.bfloat16)
    x = inputs(1, 300).bfloat16()
    with torch.no_grad():
        expected = whole(module, x)
        feed(module, cache, x[:, :250])
        y = torch.cat([feed(module, cache, x[:, i : i + 1]) for i in range(250, 300)], dim=1)
    assert cache.lengths == [300]
    assert (y - expected[:, 250:]).float().norm() < 0.03 * expected[:, 250:].float().norm()


@every_stride
@pytest.mark.parametrize("how", ["one by one", "at once", "ragged"])
@pytest.mark.parametrize("back", [1, 2, 3, 4])
def test_truncating_by_up_to_the_rollback_is_exact(stride, how, back):
    module, x = attention(stride), inputs(2, 20)
    cache = new_cache(module, 2, 20)
    if how == "ragged":
        feed(module, cache, x[:, :13], [13, 11])
    else:
        feed(module, cache, x[:, :5])
        for i in range(5, 13):
            if how == "one by one":
                feed(module, cache, x[:, i : i + 1])
        if how == "at once":
            feed(module, cache, x[:, 5:13])
    lengths = [length - back for length in cache.lengths]
    assert cache.truncatable(lengths) == lengths
    cache.truncate(lengths)
    assert cache.lengths == lengths
    new = inputs(2, 3, seed=8)
    y = feed(module, cache, new)
    for row, length in enumerate(lengths):
        alone = torch.cat([x[row, :length], new[row]])[None]
        assert_close(y[row], whole(module, alone)[0, length:])


def test_a_longer_truncation_is_refused_and_changes_nothing():
    module, x = attention(4), inputs(2, 20)
    cache = new_cache(module, 2, 20)
    feed(module, cache, x[:, :19])
    before = cache.state()
    with pytest.raises(ValueError, match="cannot truncate row 1 from 19 to 6"):
        cache.truncate([18, 6])
    after = cache.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert cache.truncatable([18, 6]) == [18, 4]
    cache.truncate([18, 4])
    assert cache.lengths == [18, 4]


@every_stride
def test_any_length_can_be_cut_to_the_nearest_border(stride):
    module, x = attention(stride), inputs(1, 20)
    for wanted in range(20):
        cache = new_cache(module, 1, 24)
        feed(module, cache, x[:, :19])
        (length,) = cache.truncatable([min(wanted, 19)])
        assert wanted - stride < length <= wanted
        cache.truncate([length])
        if length:
            y = feed(module, cache, x[:, length : length + 1])
            assert_close(y, whole(module, x)[:, length : length + 1])


def test_truncations_one_after_another_reach_no_further_than_one():
    """The ring holds what the last tokens were, not what came before them."""
    module, x = attention(4), inputs(1, 20)
    cache = new_cache(module, 1, 24)
    feed(module, cache, x[:, :19])
    cache.truncate([15])
    assert cache.truncatable([13]) == [13]  # tokens 11 .. 18 were kept apart: rollback and stride
    assert cache.truncatable([11]) == [8]
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate([10])
    cache.truncate([13])
    y = feed(module, cache, x[:, 13:15])
    assert_close(y, whole(module, x)[:, 13:15])


@every_stride
@pytest.mark.parametrize("rows", [[1, 0], [1, 1, 0], [0]])
def test_a_reordered_cache_continues_the_rows_it_copied_and_can_be_truncated(stride, rows):
    module, x = attention(stride), inputs(2, 12)
    cache = new_cache(module, 2, 20)
    feed(module, cache, x[:, :9], [9, 6])
    cache.reorder(rows)
    lengths = [[9, 6][row] - 2 for row in rows]
    cache.truncate(lengths)
    new = inputs(len(rows), 2, seed=8)
    y = feed(module, cache, new)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = torch.cat([x[row, :length], new[place]])[None]
        assert_close(y[place], whole(module, alone)[0, length:])


@every_stride
def test_a_restored_cache_continues_and_can_be_truncated(stride):
    module, x = attention(stride), inputs(2, 12)
    cache = new_cache(module, 2, 12)
    feed(module, cache, x[:, :9], [9, 6])
    state = cache.state()
    assert all(tensor.isfinite().all() for tensor in state.values())
    other = new_cache(module, 2, 30)
    other.restore(state)
    other.truncate([7, 6])
    y = feed(module, other, x[:, 7:8].expand(2, -1, -1))
    for row, length in enumerate([7, 6]):
        alone = torch.cat([x[row, :length], x[row if row == 0 else 1, 7:8]])[None]
        assert_close(y[row, 0], whole(module, alone)[0, -1])


def test_a_state_of_another_stride_is_refused():
    with pytest.raises(ValueError, match="stride or rollback"):
        new_cache(attention(2), 1, 8).restore(new_cache(attention(3), 1, 8).state())


def test_a_full_cache_refuses():
    module = attention(2)
    cache = new_cache(module, 1, 5)
    feed(module, cache, inputs(1, 5))
    with pytest.raises(ValueError, match="capacity"):
        feed(module, cache, inputs(1, 1))


@every_stride
def test_an_abandoned_pass_can_be_taken_again(stride):
    """Its tokens may have been merged into the open column of some layers, and pushed others out of the ring."""
    module, x = attention(stride), inputs(2, 20)
    cache = new_cache(module, 2, 24)
    feed(module, cache, x[:, :7])
    context = context_of(x[:, 7:16], cache)
    module(x[:, 7:16], context, cache.layer(0))  # and nobody counts it
    for slot in range(2):
        cache.abandon(slot, 7)
    (start,) = set(cache.lengths)
    assert 7 - stride < start <= 7
    assert_close(feed(module, cache, x[:, start:19]), whole(module, x)[:, start:19])
    assert cache.truncatable([17, 17]) == [17, 17]
    cache.truncate([17, 17])
    assert_close(feed(module, cache, x[:, 17:18]), whole(module, x)[:, 17:18])
