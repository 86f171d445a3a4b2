"""Approximate search for stores too large for an exact one: faiss's graphs (HNSW, arXiv 1603.09320), one a key head.

Optional: `faiss-cpu` is imported when a store first passes `exact_entries`, and its absence is a sentence. A graph
stands until a tenth of the store is new; until then it finds what was there when it was made, at the place where that
stood.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.core.extras import install_hint

_NEIGHBOURS = 32  # of each entry in the graph
_BREADTH = 128  # candidates held while searching, at least


class ApproximateIndex:
    """keys_KSC: the entries of one slot. stored: how many had ever been stored when this was made."""

    def __init__(self, keys_KSC: Tensor, stored: int):
        faiss = load_faiss()
        self.entries, self.stored = keys_KSC.shape[1], stored
        self.graphs: list[Any] = []
        for keys in keys_KSC:
            graph = faiss.IndexHNSWFlat(keys.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            graph.add(keys.detach().float().cpu().contiguous().numpy())
            self.graphs.append(graph)

    def is_current(self, entries: int, stored: int) -> bool:
        """Whether less than a tenth of the store was written since."""
        return stored - self.stored < max(1, entries // 10)

    def search(self, q_BKNC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """-> scores and places [B, K, N, k], best first; −1 where the graph found fewer."""
        batch, kv_heads, queries, width = q_BKNC.shape
        scores = q_BKNC.new_empty(batch, kv_heads, queries, k)
        places = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        for head, graph in enumerate(self.graphs):
            graph.hnsw.efSearch = max(_BREADTH, 2 * k)
            asked = q_BKNC[:, head].reshape(-1, width).detach().float().cpu().contiguous().numpy()
            found, where = graph.search(asked, k)
            scores[:, head] = torch.from_numpy(found).view(batch, queries, k).to(scores)
            places[:, head] = torch.from_numpy(where).view(batch, queries, k).to(places.device)
        return scores.masked_fill(places < 0, float("-inf")), places


def load_faiss() -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ConfigError(
            "the memory holds more entries than are searched exactly (memory.exact_entries), and there is no faiss",
            hint=f"{install_hint('memory')}; or a smaller memory.capacity, or a larger memory.exact_entries",
        ) from error
