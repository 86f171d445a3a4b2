"""Caches of decoding: rows of independent length in preallocated tensors, one or two per layer.

`Cache` is what all kinds share; `KVCache`, for grouped-query attention, keeps keys and values [B, K, S, C], S the
capacity. Lengths are Python integers: a step counter in the model's dtype sticks (bfloat16 counts to 256), and a
common one breaks ragged batches. Rows are filled from the left and padded on the right. Pages that are never
written cost no memory on Linux.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Cache:
    """What decoding keeps of earlier tokens. One forward pass appends up to T tokens to every row.

    tensors: for each name one tensor per layer, [B, ..., S, width]; a row of n tokens fills `places(n)` of the S.
    """

    stride = 1  # tokens to a place

    def __init__(self, batch: int, capacity: int, tensors: dict[str, list[Tensor]]):
        self.capacity = capacity
        self.lengths = [0] * batch
        self.tensors = tensors
        self.layers = len(next(iter(tensors.values())))
        self.written = [0] * self.layers  # places that hold numbers in every row

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def places(self, tokens: int) -> int:
        return -(-tokens // self.stride)

    def bytes_per_token(self) -> float:
        """Bytes that one token of one row takes over all layers."""
        numbers = [t[0].numel() // t.shape[-2] * t.element_size() for group in self.tensors.values() for t in group]
        return sum(numbers) / self.stride

    def layer(self, index: int) -> Any:
        """What the attention of one layer appends to and reads."""
        raise NotImplementedError

    def require(self, counts: list[int]) -> None:
        """Raise ValueError when appending counts[b] tokens to row b would pass the capacity."""
        if len(counts) != self.batch:
            raise ValueError(f"the cache has {self.batch} rows, the tokens have {len(counts)}")
        longest = max(length + count for length, count in zip(self.lengths, counts, strict=True))
        if longest > self.capacity:
            raise ValueError(f"{longest} tokens do not fit a cache of capacity {self.capacity}")

    def advance(self, counts: list[int]) -> None:
        """Count the tokens that every layer has appended in this pass."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncatable(self, lengths: list[int]) -> list[int]:
        """For each row the longest start, of at most lengths[b] tokens, that `truncate` can cut to."""
        return list(lengths)

    def truncate(self, lengths: list[int]) -> None:
        """Forget all but the first lengths[b] tokens of row b."""
        if any(new > old or new < 0 for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"cannot truncate rows of {self.lengths} tokens to {lengths}")
        self.lengths = list(lengths)

    def reorder(self, rows: list[int]) -> None:
        """Make row b a copy of the old row rows[b]; rows may repeat, and there may be fewer or more of them."""
        used = self.places(max(self.lengths, default=0))
        for group in self.tensors.values():
            for i, old in enumerate(group):
                index = torch.tensor(rows, device=old.device)
                new = old.new_empty((len(rows), *old.shape[1:]))
                new[..., :used, :] = old[..., :used, :].index_select(0, index)
                group[i] = new
        self.written = [min(places, used) for places in self.written]
        self.lengths = [self.lengths[row] for row in rows]

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` takes back, cut to the longest row; safetensors can hold them."""
        used = self.places(max(self.lengths, default=0))
        state = {"lengths": torch.tensor(self.lengths, dtype=torch.int64)}
        for name, group in self.tensors.items():
            for i, tensor in enumerate(group):
                state[f"{name}.{i}"] = tensor[..., :used, :].clone()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises ValueError when it is of another shape."""
        lengths = state["lengths"].tolist()
        if len(lengths) != self.batch or max(lengths, default=0) > self.capacity:
            raise ValueError(f"a saved cache of rows {lengths} does not fit this one")
        used = self.places(max(lengths, default=0))
        for name, group in self.tensors.items():
            for i, tensor in enumerate(group):
                tensor[..., :used, :] = state[f"{name}.{i}"]
        self.written = [used] * self.layers
        self.lengths = lengths


class KVCache(Cache):
    """Keys and values of grouped-query attention."""

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (batch, kv_heads, capacity, head_width)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        super().__init__(batch, capacity, {"keys": self.keys, "values": self.values})

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, index)


class LayerCache:
    """One layer's view of a `KVCache`, as its attention sees it."""

    def __init__(self, cache: KVCache, index: int):
        self.cache = cache
        self.index = index

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row held before this pass."""
        return self.cache.lengths

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Write the first counts[b] of T tokens behind row b; return keys and values up to the longest row.

        The cache's lengths do not change here: every layer appends at the same place, then `advance` moves it.
        """
        cache, index = self.cache, self.index
        longest = write_rows(cache, index, [(cache.keys[index], k_BKTC), (cache.values[index], v_BKTC)], counts)
        return cache.keys[index][:, :, :longest], cache.values[index][:, :, :longest]


def write_rows(cache: Cache, index: int, pairs: list[tuple[Tensor, Tensor]], counts: list[int]) -> int:
    """Write the first counts[b] of the T new tokens [B, ..., T, width] behind row b, for a cache of stride 1.

    pairs: (a layer's tensor, its new tokens). -> tokens of the longest row.
    """
    lengths = cache.lengths
    tokens = pairs[0][1].shape[-2]
    longest = max(length + count for length, count in zip(lengths, counts, strict=True))
    if uniform(lengths) and all(count == tokens for count in counts):
        for held, new in pairs:
            held[..., lengths[0] : longest, :] = new
    else:
        for held, new in pairs:
            # What was never written may read as NaN, and masking cannot help: 0 · NaN is NaN.
            held[..., cache.written[index] : longest, :] = 0
            if tokens == 1:
                rows, starts = growing(lengths, counts)
                held[rows, ..., starts, :] = new[rows, ..., 0, :]
                continue
            for row, (start, count) in enumerate(zip(lengths, counts, strict=True)):
                held[row, ..., start : start + count, :] = new[row, ..., :count, :]
    cache.written[index] = max(cache.written[index], longest)
    return longest


def growing(lengths: list[int], counts: list[int]) -> tuple[Tensor, Tensor]:
    """Where each row's next token goes, for the rows that get one: (rows, their lengths)."""
    rows = [row for row, count in enumerate(counts) if count]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor([lengths[row] for row in rows], dtype=torch.int64)


def uniform(lengths: list[int]) -> bool:
    """Whether all rows are of one length."""
    return len(set(lengths)) == 1
