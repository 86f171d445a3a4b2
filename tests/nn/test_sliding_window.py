"""Sliding windows against a mask with every score held, in float64, forward and backward, and through the cache."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.nn.attention import window as module
from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.attention.window import attend_window, attend_window_plain
from shoestring.nn.cache import KVCache
from shoestring.nn.config import GQAConfig, RopeConfig
from shoestring.nn.context import PADDING, make_context
from shoestring.nn.rope import RotaryEmbedding

TOKENS, HEADS, KV_HEADS, WIDTH = 23, 4, 2, 8
ROTARY = RotaryEmbedding(RopeConfig(theta=100.0), WIDTH)
every_window = pytest.mark.parametrize("window", [1, 2, 5, 8, 23, 40])


@pytest.fixture(autouse=True, params=[4, 256])
def block(request, monkeypatch):
    """Blocks of 4 queries or of the window, and ordinary ones."""
    monkeypatch.setattr(module, "_BLOCK", request.param)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_windowed(context, mask_B1TS: torch.Tensor, window: int, batch: int = 2) -> None:
    shapes = [(batch, TOKENS, HEADS, WIDTH), *[(batch, TOKENS, KV_HEADS, WIDTH)] * 2]
    leaves = [random(*shape, seed=i).transpose(1, 2).requires_grad_() for i, shape in enumerate(shapes)]
    results = []
    for y in (
        attend_window(*leaves, context, 0.3, window),
        attend_window_plain(*leaves, mask_B1TS, 0.3, window),
    ):
        results.append([y, *torch.autograd.grad((y * random(*y.shape, seed=9)).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


def test_the_definition_is_a_band():
    """An oracle of the oracle: brute force over pairs."""
    q, k, v = (random(1, 2, 6, 4, seed=i) for i in range(3))
    y = attend_window_plain(q, k, v, torch.ones(6, 6, dtype=torch.bool).tril()[None, None], 0.5, 3)
    for t in range(6):
        keys = [s for s in range(6) if s <= t and s > t - 3]
        shares = torch.stack([q[0, 1, t] @ k[0, 1, s] * 0.5 for s in keys]).softmax(0)
        assert_close(y[0, 1, t], sum(share * v[0, 1, s] for share, s in zip(shares, keys, strict=True)))


@every_window
def test_blocks_are_the_definition(window):
    context = make_context(torch.zeros(2, TOKENS, dtype=torch.long), None)
    assert_windowed(context, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None], window)


@every_window
def test_packed_documents_keep_their_windows_inside(window):
    segments = torch.tensor([[0] * 3 + [1] * 13 + [2] * 7, [0] * 9 + [PADDING] * 14])
    context = make_context(segments, None, segments_BT=segments)
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    assert_windowed(context, mask, window)


@every_window
def test_a_mask_of_documents_gives_what_spans_give(window):
    """What other devices than the CPU use."""
    from dataclasses import replace

    segments = torch.tensor([[0] * 3 + [1] * 13 + [2] * 7] * 2)
    context = make_context(segments, None, segments_BT=segments)
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    assert_windowed(replace(context, visibility=replace(context.visibility, mask_B1TS=mask)), mask, window)


def attention(window: int | None) -> GroupedQueryAttention:
    torch.manual_seed(0)
    config = GQAConfig(heads=HEADS, kv_heads=KV_HEADS, head_width=WIDTH, window=window)
    return GroupedQueryAttention(config, 12, 1e-5).double()


def whole(layer: GroupedQueryAttention, x: torch.Tensor) -> torch.Tensor:
    return layer(x, make_context(x[..., 0].long(), ROTARY))


def feed(layer, cache, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    rows = torch.tensor([[0] * count + [PADDING] * (x.shape[1] - count) for count in counts])
    context = make_context(x[..., 0].long(), ROTARY, segments_BT=rows, cache=cache)
    y = layer(x, context, cache.layer(0))
    cache.advance(context.counts)
    return y


@every_window
@pytest.mark.parametrize("counts", [[7, 7], [9, 2], [1, 1]])
def test_cached_decoding_equals_the_whole_sequence(window, counts):
    layer, x = attention(window), random(2, TOKENS, 12)
    expected = whole(layer, x)
    cache = KVCache(1, 2, TOKENS, KV_HEADS, WIDTH, dtype=torch.float64)
    for tensor in cache.keys + cache.values:
        tensor.fill_(float("nan"))
    y = feed(layer, cache, x[:, : max(counts)], counts)
    for row, count in enumerate(counts):
        assert_close(y[row, :count], expected[row, :count])
    for step in (1, 4, 1, 1, 3):
        starts = list(cache.lengths)
        new = torch.stack([x[row, start : start + step] for row, start in enumerate(starts)])
        y = feed(layer, cache, new, [step, step])
        for row, start in enumerate(starts):
            assert_close(y[row], expected[row, start : start + step])


def test_the_cache_keeps_all_tokens_so_that_any_truncation_is_exact():
    layer, x = attention(3), random(1, TOKENS, 12)
    cache = KVCache(1, 1, TOKENS, KV_HEADS, WIDTH, dtype=torch.float64)
    feed(layer, cache, x[:, :20], [20])
    cache.truncate([5])
    assert_close(feed(layer, cache, x[:, 5:6], [1]), whole(layer, x)[:, 5:6])


def test_a_token_outside_the_window_is_not_seen_and_one_inside_is():
    layer, x = attention(4), random(1, 10, 12)
    before = whole(layer, x)
    changed = x.clone()
    changed[:, 3] = random(1, 12, seed=5)
    moved = (whole(layer, changed) - before)[0].abs().amax(-1) > 1e-9
    assert moved.tolist() == [3 <= t <= 6 for t in range(10)]


def test_training_reads_scores_in_proportion_to_the_window(monkeypatch):
    """Twice the tokens, twice the pairs; without a window, four times."""

    def pairs(tokens: int, window: int) -> int:
        seen: list[int] = []

        def count(q, k, v, visibility, scale):
            seen.append(q.shape[2] * k.shape[2])
            return q

        monkeypatch.setattr(module, "attend", count)
        x = torch.empty(1, 1, tokens, 2)
        attend_window(x, x, x, make_context(torch.zeros(1, tokens, dtype=torch.long), None), 1.0, window)
        return sum(seen)

    monkeypatch.setattr(module, "_BLOCK", 16)
    assert pairs(2048, 16) < 2.05 * pairs(1024, 16)
    assert pairs(2048, 4096) == 4 * pairs(1024, 4096)
