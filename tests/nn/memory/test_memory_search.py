"""Search and recall against the definition that holds every score."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.nn.memory import search as module
from shoestring.nn.memory.search import recall, recall_plain, search


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sources(*sizes: int, batch: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(random(batch, 2, n, 8, seed=n), random(batch, 2, n, 8, seed=n + 100)) for n in sizes]


@pytest.mark.parametrize("sizes", [(40,), (3,), (7, 30), (1, 2, 50)], ids=str)
@pytest.mark.parametrize("pieces", [1 << 22, 64])
def test_what_is_recalled_and_its_gradient_agree_with_the_definition(sizes, pieces, monkeypatch):
    monkeypatch.setattr(module, "_SCORES", pieces)
    monkeypatch.setattr(module, "_FOUND", pieces)
    q = random(2, 4, 5, 8).requires_grad_()
    entries, weighting = sources(*sizes), random(2, 4, 5, 8, seed=9)
    ours = recall(q, entries, search(q, entries, 5), 0.3)
    plain = recall_plain(q, entries, 5, 0.3)
    assert_close(ours, plain)
    assert_close(*(torch.autograd.grad((y * weighting).sum(), q)[0] for y in (ours, plain)))


def test_hits_are_the_largest_inner_products_best_first():
    q, entries = random(1, 4, 3, 8), sources(20, batch=1)
    keys = entries[0][0].repeat_interleave(2, dim=1)
    expected = (q @ keys.transpose(-1, -2)).sort(descending=True).indices[..., :6]
    assert torch.equal(search(q, entries, 6), expected)


def test_fewer_entries_than_hits_leave_places_empty():
    q = random(2, 4, 3, 8)
    hits = search(q, sources(2), 4)
    assert (hits[..., :2] >= 0).all() and (hits[..., 2:] == -1).all()
    assert (search(q, [], 4) == -1).all() and not recall(q, [], search(q, [], 4), 0.3).any()


def test_a_source_for_all_rows_is_the_same_as_one_for_each():
    q, shared = random(2, 4, 3, 8), sources(20, batch=1)
    own = [(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1)) for keys, values in shared]
    assert_close(recall(q, shared, search(q, shared, 4), 0.3), recall(q, own, search(q, own, 4), 0.3))


def test_no_gradient_reaches_the_entries():
    q, (keys, values) = random(2, 4, 3, 8).requires_grad_(), sources(20)[0]
    entries = [(keys.requires_grad_(), values.requires_grad_())]
    recall(q, entries, search(q, entries, 4), 0.3).sum().backward()
    assert q.grad is not None and keys.grad is None and values.grad is None


def test_the_gradient_passes_a_numerical_check():
    entries = sources(12)
    q = random(2, 4, 3, 8).requires_grad_()
    hits = search(q, entries, 4)
    assert torch.autograd.gradcheck(lambda q: recall(q, entries, hits, 0.3), (q,))
