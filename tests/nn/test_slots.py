"""Which slots a pass reads, writes and joins, and that the others' memory is left alone."""

from __future__ import annotations

import pytest
import torch

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn.cache import KVCache, NewTokens
from shoestring.nn.context import make_context
from shoestring.nn.slots import CPU_UNREAD, adjacent

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def cut(slots, counts, lengths, device=CPU):
    """The slots of each range of a packed pass."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    new = [NewTokens(slot, 0, start, count) for slot, start, count in zip(slots, starts, counts, strict=True)]
    return [[one.slot for one in some] for some in adjacent(new, lengths, device)]


def test_neighbours_with_equally_many_tokens_are_attended_together():
    assert cut([0, 1, 2], [1, 1, 1], [5, 9, 7]) == [[0, 1, 2]]
    assert cut([0, 2, 3], [1, 1, 1], [5, 9, 7, 7]) == [[0], [2, 3]]
    assert cut([0, 1, 2], [1, 4, 4], [5, 9, 7]) == [[0], [1, 2]]
    assert cut([1, 0], [1, 1], [5, 5]) == [[1], [0]]
    assert cut([0, 1, 2], [1, 0, 1], [5, 5, 5]) == [[0], [2]]


def test_on_a_cpu_slots_of_very_unequal_lengths_are_attended_apart():
    far = 10 + CPU_UNREAD
    assert cut([0, 1], [1, 1], [10, far]) == cut([0, 1], [1, 1], [far, 10]) == [[0, 1]]
    assert cut([0, 1], [1, 1], [10, far + 1]) == [[0], [1]]
    assert cut([0, 1, 2], [1, 1, 1], [10, 10, far]) == [[0, 1], [2]]  # both would read what they do not see
    assert cut([0, 1, 2], [1, 1, 1], [10, 10, far], GPU) == [[0, 1, 2]]


def small_decoder():
    shape = {"vocabulary": 61, "width": 32, "layers": 2, "context": 64, "feed_forward": {"width": 48}}
    attention = {"attention": {"heads": 4, "kv_heads": 2, "head_width": 8}}
    return build(ModelConfig.model_validate({**shape, **attention}), seed=0).eval()


@torch.no_grad()
def test_keys_and_values_of_a_range_are_views_of_the_cache():
    decoder = small_decoder()
    cache = decoder.new_cache(5, 16)
    seen = []
    attention = decoder.blocks[0].attention
    attend = attention.over_keys

    def record(q, k, v, *rest):
        seen.append((k, v))
        return attend(q, k, v, *rest)

    attention.over_keys = record
    decoder(torch.arange(7).unsqueeze(0), cache=cache.rows([1, 2, 4], [1, 1, 5]))
    assert [tuple(k.shape) for k, _ in seen] == [(2, 2, 1, 8), (1, 2, 5, 8)]
    for (k, v), slot in zip(seen, (1, 4), strict=True):
        assert k.data_ptr() == cache.keys[0][slot].data_ptr() and v.data_ptr() == cache.values[0][slot].data_ptr()


@torch.no_grad()
def test_freeing_a_slot_writes_nothing():
    decoder = small_decoder()
    cache = decoder.new_cache(3, 16)
    decoder(torch.arange(12).view(3, 4), cache=cache)
    versions = [tensor._version for tensor in cache.keys + cache.values]
    cache.cut(1, 0)
    assert cache.lengths == [4, 0, 4]
    assert [tensor._version for tensor in cache.keys + cache.values] == versions


def test_a_pass_that_does_not_fit_is_refused_and_counts_nothing():
    decoder = small_decoder()
    cache = decoder.new_cache(3, 8)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of capacity 8"):
        decoder(torch.zeros(1, 10, dtype=torch.int64), cache=cache.rows([0, 2], [1, 9]))
    with pytest.raises(ValueError, match="one slot"):
        decoder(torch.zeros(1, 2, dtype=torch.int64), cache=cache.rows([1, 1], [1, 1]))
    with pytest.raises(ValueError, match="packed"):
        decoder(torch.zeros(2, 1, dtype=torch.int64), cache=cache.rows([0, 1], [1, 1]))
    assert cache.lengths == [0, 0, 0]


def test_packed_tokens_stand_where_their_slots_end():
    cache = KVCache(1, 4, 16, 2, 8)
    cache.lengths = [3, 0, 7, 0]
    context = make_context(torch.zeros(1, 6, dtype=torch.int64), None, cache=cache.rows([2, 0, 3], [1, 2, 3]))
    assert context.positions_BT.tolist() == [[7, 3, 4, 0, 1, 2]]
