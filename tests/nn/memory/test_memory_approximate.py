"""Stores larger than an exact search is meant for: faiss finds nearly the same, and its absence is a sentence."""

from __future__ import annotations

import sys

import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.nn.memory.search import search


def bank(exact: int, entries: int = 3000) -> MemoryBank:
    config = MemoryBankConfig(layers=(0,), scope="persistent", capacity=4000, exact_entries=exact)
    made = MemoryBank(config, 1, 1, kv_heads=2, head_width=16)
    random = torch.Generator().manual_seed(0)
    made.stage(0, 0, 0, *(torch.randn(2, entries, 16, generator=random) for _ in range(2)))
    made.commit()
    return made


def test_faiss_finds_nearly_what_an_exact_search_finds():
    held = bank(exact=1000)
    q = torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(1))
    own = (torch.randn(2, 2, 7, 16), torch.randn(2, 2, 7, 16))
    sources, index = [*held.persistent_sources(0), own], held.persistent_index(0)
    assert index is not None
    exact, near = search(q, sources, 8), search(q, sources, 8, index)
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(exact.view(-1, 8), near.view(-1, 8), strict=True)]
    assert sum(shared) >= 0.9 * exact.numel()
    assert len(set(near.flatten().tolist())) > 50


def test_a_store_within_the_limit_is_searched_exactly():
    assert bank(exact=3000).persistent_index(0) is None


def test_the_graph_is_made_again_once_a_tenth_is_new():
    held = bank(exact=1000)
    first = held.persistent_index(0)
    for count, same in [(100, True), (300, False)]:
        held.stage(0, 0, 0, torch.zeros(2, count, 16), torch.zeros(2, count, 16))
        held.commit()
        assert (held.persistent_index(0) is first) == same


def test_without_faiss_a_larger_store_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"more entries than are searched exactly.*\n.*pip install .*memory\]"):
        bank(exact=1000).persistent_index(0)
