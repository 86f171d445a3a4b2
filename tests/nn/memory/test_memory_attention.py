"""Attention with a memory: the definition token by token, cached = uncached, rows that go on, stores that last."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from shoestring.nn.config import GQAConfig, RopeConfig
from shoestring.nn.context import PADDING, Context, make_context
from shoestring.nn.memory.attention import MemoryAttention
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.memory.cache import MemoryCache
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.nn.replay import Replay
from shoestring.nn.rope import RotaryEmbedding

HEADS, KV_HEADS, WIDTH, MODEL = 4, 2, 8, 16
ROTARY = RotaryEmbedding(RopeConfig(theta=100.0), WIDTH)


def layer(**settings) -> MemoryAttention:
    torch.manual_seed(0)
    memory = MemoryBankConfig(**{"layers": (0,), "top_k": 3, "block": 4, "capacity": 10, **settings})
    config = GQAConfig(heads=HEADS, kv_heads=KV_HEADS, head_width=WIDTH)
    made = MemoryAttention(config, memory, MODEL, 1e-5).double()
    with torch.no_grad():
        made.gate_bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        for part in (made.query, made.key):  # sharper than fresh weights, so that hits matter
            part.weight.mul_(4)
    return made


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(x: torch.Tensor, **settings) -> Context:
    return make_context(torch.zeros(x.shape[:2], dtype=torch.int64), ROTARY, **settings)


@torch.no_grad()
def definition(made: MemoryAttention, x_TD: torch.Tensor, before: int = 0, local_from: int = 0) -> torch.Tensor:
    """One document x, token by token in plain loops. Outputs from token `before` on; local sight begins there too."""
    q = (x_TD @ made.query.weight.T).view(-1, HEADS, WIDTH)
    k = (x_TD @ made.key.weight.T).view(-1, KV_HEADS, WIDTH)
    v = (x_TD @ made.value.weight.T).view(-1, KV_HEADS, WIDTH)
    settings, rows = made.memory, []
    for t in range(before, len(x_TD)):
        heads = []
        for h in range(HEADS):
            own = h * KV_HEADS // HEADS
            scores = []
            for s in range(local_from, t + 1):
                turned_q, turned_k = (
                    torch.cat([a[:4] * c - a[4:] * d, a[4:] * c + a[:4] * d])
                    for a, p in ((q[t, h], t), (k[s, own], s))
                    for angles in [p * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)]
                    for c, d in [(angles.cos(), angles.sin())]
                )
                scores.append(turned_q @ turned_k / math.sqrt(WIDTH))
            result = torch.stack(scores).softmax(0) @ v[local_from : t + 1, own]
            block = t // settings.block * settings.block
            candidates = range(max(0, block - settings.capacity), block)
            if len(candidates):
                found = sorted(candidates, key=lambda s: -float(q[t, h] @ k[s, own]))[: settings.top_k]
                weights = torch.stack([q[t, h] @ k[s, own] / math.sqrt(WIDTH) for s in found]).softmax(0)
                gate = made.gate_bias[h].sigmoid()
                result = gate * (weights @ v[found, own]) + (1 - gate) * result
            heads.append(result)
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ made.output.weight.T


@pytest.mark.parametrize("settings", [{}, {"capacity": 3}, {"block": 1}, {"top_k": 50}, {"block": 64}], ids=str)
def test_every_token_agrees_with_the_definition(settings):
    made, x = layer(**settings), random(2, 15, MODEL)
    y = made(x, context(x))
    for row in range(2):
        assert_close(y[row], definition(made, x[row]), rtol=1e-6, atol=1e-6)


def test_a_memory_that_is_never_reached_is_plain_attention():
    made, x = layer(block=64), random(2, 15, MODEL)
    with torch.no_grad():
        q, k, v = made.project(x, context(x))
        plain = made.finish(made.attend(made.turn(q, context(x)), made.turn(k, context(x)), v, context(x), None))
    assert_close(made(x, context(x)), plain)


def test_packed_documents_find_nothing_of_each_other():
    made, x = layer(), random(2, 17, MODEL)
    segments = torch.tensor([[0] * 6 + [1] * 11, [0] * 17])
    positions = torch.tensor([[*range(6), *range(11)], [*range(17)]])
    y = made(x, context(x, segments_BT=segments, positions_BT=positions))
    for row, start, end in [(0, 0, 6), (0, 6, 17), (1, 0, 17)]:
        assert_close(y[row, start:end], definition(made, x[row, start:end]), rtol=1e-6, atol=1e-6)


def test_later_tokens_change_nothing_earlier():
    made, x = layer(), random(1, 17, MODEL)
    y = made(x, context(x))
    for t in (3, 4, 9):
        changed = x.clone()
        changed[:, t:] = random(1, 17 - t, MODEL, seed=t)
        other = made(changed, context(changed))
        assert_close(other[:, :t], y[:, :t], rtol=0, atol=1e-12)
        assert not torch.allclose(other[:, t], y[:, t])


# The cache


def new_cache(batch: int, capacity: int = 24) -> MemoryCache:
    return MemoryCache(2, batch, capacity, KV_HEADS, WIDTH, searching=[1], dtype=torch.float64)


def feed(made: MemoryAttention, x: torch.Tensor, cache: MemoryCache, counts: list[int] | None = None) -> torch.Tensor:
    """One pass over a model whose second layer is `made`."""
    segments = None
    if counts is not None:
        columns = torch.arange(x.shape[1]).unsqueeze(0)
        segments = torch.where(columns < torch.tensor(counts).unsqueeze(1), 0, PADDING)
    seen = context(x, cache=cache, segments_BT=segments)
    y = made(x, seen, cache.layer(1))
    cache.advance(seen.counts)
    return y


@pytest.mark.parametrize("chunks", [[1] * 17, [5, 1, 7, 4], [9, 8], [17]], ids=str)
@pytest.mark.parametrize("capacity", [3, 10])
def test_cached_equals_uncached(chunks, capacity):
    made, x = layer(capacity=capacity), random(2, 17, MODEL)
    cache = new_cache(2)
    with torch.no_grad():
        parts = [feed(made, part, cache) for part in x.split(chunks, dim=1)]
        assert_close(torch.cat(parts, 1), made(x, context(x)))


def test_ragged_rows_truncated_and_reordered_equal_uncached():
    made, x = layer(), random(2, 20, MODEL)
    cache = new_cache(2)
    with torch.no_grad():
        feed(made, x[:, :7], cache, [7, 3])
        cache.truncate([5, 2])
        second = torch.stack([x[0, 5:14], x[1, 2:11]])
        y = feed(made, second, cache, [6, 9])
        whole = made(x, context(x))
        assert_close(y[0, :6], whole[0, 5:11])
        assert_close(y[1], whole[1, 2:11])
        cache.reorder([1, 0, 1])
        y = feed(made, torch.stack([x[1, 11], x[0, 11], x[1, 11]]).unsqueeze(1), cache)
        assert_close(y[:, 0], torch.stack([whole[1, 11], whole[0, 11], whole[1, 11]]))
        again = new_cache(3)
        again.restore(cache.state())
        last = torch.stack([x[1, 12], x[0, 12], x[1, 12]]).unsqueeze(1)
        assert_close(feed(made, last, again)[0, 0], whole[1, 12])


# The bank


def bank(made: MemoryAttention, rows: int, **settings) -> MemoryBank:
    return MemoryBank(made.memory, 1, rows, KV_HEADS, WIDTH, dtype=torch.float64, **settings)


def run_rows(made: MemoryAttention, x: torch.Tensor, held: MemoryBank, cuts: list[int]) -> torch.Tensor:
    """x as rows that go on from pass to pass: local attention sees a row alone, the memory what came before."""
    outputs, start = [], 0
    for size in cuts:
        part = x[:, start : start + size]
        positions = torch.arange(start, start + size).unsqueeze(0)
        outputs.append(made(part, context(part, positions_BT=positions, memory=held)))
        held.commit()
        start += size
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("capacity", [3, 10, 100])
@pytest.mark.parametrize("cuts", [[4, 4, 4, 7], [5, 1, 6, 7], [19]], ids=str)
def test_a_document_in_several_rows_finds_what_came_before(capacity, cuts):
    made, x = layer(capacity=capacity), random(2, 19, MODEL)
    y, start = run_rows(made, x, bank(made, 2), cuts), 0
    for size in cuts:
        for row in range(2):
            expected = definition(made, x[row, : start + size], before=start, local_from=start)
            assert_close(y[row, start : start + size], expected, rtol=1e-6, atol=1e-6)
        start += size


def test_a_new_document_in_a_row_finds_nothing_of_the_old_one():
    made, x = layer(), random(1, 12, MODEL)
    held = bank(made, 1)
    run_rows(made, random(1, 12, MODEL, seed=5), held, [12])
    assert_close(run_rows(made, x, held, [12]), made(x, context(x)))
    # Only the last document of a row is kept, and it goes on in the next row.
    segments, positions = torch.tensor([[0] * 4 + [1] * 8]), torch.tensor([[*range(4), *range(8)]])
    made(x, context(x, segments_BT=segments, positions_BT=positions, memory=held))
    held.commit()
    more = random(1, 5, MODEL, seed=7)
    y = made(more, context(more, positions_BT=torch.arange(8, 13).unsqueeze(0), memory=held))
    whole = torch.cat([x[0, 4:], more[0]])
    assert_close(y[0], definition(made, whole, before=8, local_from=8), rtol=1e-6, atol=1e-6)


def test_a_persistent_store_is_searched_by_every_document():
    made = layer(scope="persistent", capacity=30, block=64, top_k=2)
    stored, x = random(1, 20, MODEL, seed=5), random(2, 6, MODEL)
    held = bank(made, 2)
    made(stored, context(stored, memory=held))
    assert_close(made(x, context(x, memory=held)), made(x, context(x)))  # staged is not stored
    held.discard()
    made(stored, context(stored, memory=held))
    held.commit()
    y = made(x, context(x, memory=held))
    q, k, v = made.project(x, context(x))
    _, keys, values = made.project(stored, context(stored))
    local = made.attend(made.turn(q, context(x)), made.turn(k, context(x)), v, context(x), None)
    gates = made.gate_bias.sigmoid().view(-1, 1, 1)
    scores = q @ keys.repeat_interleave(2, 1).transpose(-1, -2)
    best = scores.topk(2)
    weights = (best.values / math.sqrt(WIDTH)).softmax(-1)
    chosen = values.repeat_interleave(2, 1).expand(2, -1, -1, -1)
    found = chosen.gather(2, best.indices.flatten(2).unsqueeze(-1).expand(-1, -1, -1, WIDTH))
    recalled = (weights.unsqueeze(-1) * found.view(2, HEADS, 6, 2, WIDTH)).sum(3)
    assert_close(y, made.finish(gates * recalled + (1 - gates) * local))


def test_a_full_ring_forgets_the_oldest():
    made = layer(scope="persistent", capacity=8, block=64, top_k=50)
    held, x = bank(made, 1), random(1, 6, MODEL)
    for seed, size in [(5, 5), (6, 20), (7, 3)]:
        part = random(1, size, MODEL, seed=seed)
        made(part, context(part, memory=held))
        held.commit()
    newest = torch.cat([random(1, 20, MODEL, seed=6)[:, -5:], random(1, 3, MODEL, seed=7)], 1)
    small = bank(made, 1)
    made(newest, context(newest, memory=small))
    small.commit()
    with torch.no_grad():
        assert_close(made(x, context(x, memory=held)), made(x, context(x, memory=small)))


@pytest.mark.parametrize("store", ["ram", "file"])
def test_a_store_survives_save_and_load(store, tmp_path):
    made, x = layer(store=store, capacity=7), random(2, 19, MODEL)
    held = bank(made, 2, folder=tmp_path / "a")
    run_rows(made, x[:, :9], held, [5, 4])
    loaded = bank(made, 2, folder=tmp_path / "b")
    loaded.restore({name: tensor.clone() for name, tensor in held.state().items()})
    rest, positions = x[:, 9:], torch.arange(9, 19).unsqueeze(0)
    ours, other = (made(rest, context(rest, positions_BT=positions, memory=b)) for b in (held, loaded))
    assert_close(ours, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit"):
        bank(made, 3, folder=tmp_path / "c").restore(held.state())


def test_a_store_in_files_agrees_with_one_in_memory(tmp_path):
    x = random(2, 19, MODEL)
    ram, file = layer(capacity=7), layer(capacity=7, store="file")
    y = run_rows(ram, x, bank(ram, 2), [5, 4, 10])
    assert_close(run_rows(file, x, bank(file, 2, folder=tmp_path), [5, 4, 10]), y, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "keys").stat().st_size == 2 * KV_HEADS * (7 + 3) * WIDTH * 4


def test_a_recomputed_layer_stages_once_and_has_the_same_gradients():
    made, x = layer(), random(2, 17, MODEL).requires_grad_()
    results = []
    for again in (False, True):
        held = bank(made, 2)
        made(x[:, :8].detach(), context(x[:, :8], memory=held))
        held.commit()
        part, positions, choices = x[:, 8:], torch.arange(8, 17).unsqueeze(0), Replay()
        seen = context(part, positions_BT=positions, memory=held)

        def run(part: torch.Tensor, seen: Context = seen, choices: Replay = choices) -> torch.Tensor:
            with choices.run():
                return made(part, seen)

        y = checkpoint(run, part, use_reentrant=False) if again else run(part)
        gradients = torch.autograd.grad(y.pow(2).sum(), [x, *made.parameters()])
        held.commit()
        results.append([*gradients, held.keys, held.values])
        assert held.ends == [17, 17]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_recomputation_keeps_the_hits_of_changed_inputs():
    made, x, other = layer(), random(1, 17, MODEL), random(1, 17, MODEL, seed=4)
    choices = Replay()
    with choices.run():
        made(x, context(x))
    with choices.run():
        replayed = made(other, context(other))
    assert not torch.allclose(replayed, made(other, context(other)))


def test_writing_before_the_backward_pass_is_an_error():
    made, x = layer(), random(1, 8, MODEL)
    held = bank(made, 1)
    run_rows(made, x, held, [8])
    part = random(1, 8, MODEL, seed=3)
    y = made(part, context(part, positions_BT=torch.arange(8, 16).unsqueeze(0), memory=held))
    held.commit()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_gate_learns_and_the_store_does_not():
    made, x = layer(), random(1, 17, MODEL)
    held = bank(made, 1)
    run_rows(made, x, held, [8, 9])
    assert not held.keys.requires_grad and not held.values.requires_grad
    made(x, context(x)).sum().backward()
    assert made.gate_bias.grad is not None and made.gate_bias.grad.all()
