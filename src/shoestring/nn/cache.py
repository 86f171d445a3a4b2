"""The key/value cache of grouped-query attention: rows of independent length in one preallocated tensor per layer.

keys and values: [B, K, S, C] for each layer, S the capacity. Lengths are Python integers: a step counter in
the model's dtype sticks (bfloat16 counts to 256), and a common one breaks ragged batches. Rows are filled from
the left and padded on the right. Pages that are never written cost no memory on Linux.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """What decoding keeps of earlier tokens. One forward pass appends up to T tokens to every row."""

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
        self.capacity = capacity
        self.lengths = [0] * batch
        shape = (batch, kv_heads, capacity, head_width)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.written = [0] * layers  # columns that hold numbers in every row

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes over all layers."""
        _, kv_heads, _, head_width = self.keys[0].shape
        return 2 * len(self.keys) * kv_heads * head_width * self.keys[0].element_size()

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, index)

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

    def truncate(self, lengths: list[int]) -> None:
        """Forget all but the first lengths[b] tokens of row b."""
        if any(new > old or new < 0 for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"cannot truncate rows of {self.lengths} tokens to {lengths}")
        self.lengths = list(lengths)

    def reorder(self, rows: list[int]) -> None:
        """Make row b a copy of the old row rows[b]; rows may repeat, and there may be fewer or more of them."""
        index = torch.tensor(rows, device=self.keys[0].device)
        used = max(self.lengths, default=0)
        for tensors in (self.keys, self.values):
            for i, old in enumerate(tensors):
                new = old.new_empty((len(rows), *old.shape[1:]))
                new[:, :, :used] = old[:, :, :used].index_select(0, index)
                tensors[i] = new
        self.written = [min(columns, used) for columns in self.written]
        self.lengths = [self.lengths[row] for row in rows]

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` takes back, cut to the longest row; safetensors can hold them."""
        used = max(self.lengths, default=0)
        state = {"lengths": torch.tensor(self.lengths, dtype=torch.int64)}
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            state[f"keys.{i}"] = keys[:, :, :used].clone()
            state[f"values.{i}"] = values[:, :, :used].clone()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        lengths = state["lengths"].tolist()
        if len(lengths) != self.batch or max(lengths, default=0) > self.capacity:
            raise ValueError(f"a saved cache of rows {lengths} does not fit this one")
        used = max(lengths, default=0)
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[:, :, :used] = state[f"keys.{i}"]
            values[:, :, :used] = state[f"values.{i}"]
        self.written = [used] * len(self.keys)
        self.lengths = lengths


class LayerCache:
    """One layer's view of a `KVCache`, as its attention sees it."""

    def __init__(self, cache: KVCache, index: int):
        self.cache = cache
        self.index = index

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Write the first counts[b] of T tokens behind row b; return keys and values up to the longest row.

        The cache's lengths do not change here: every layer appends at the same place, then `advance` moves it.
        """
        keys, values = self.cache.keys[self.index], self.cache.values[self.index]
        lengths = self.cache.lengths
        tokens = k_BKTC.shape[2]
        longest = max(length + count for length, count in zip(lengths, counts, strict=True))
        if len(set(lengths)) == 1 and all(count == tokens for count in counts):
            keys[:, :, lengths[0] : lengths[0] + tokens] = k_BKTC
            values[:, :, lengths[0] : lengths[0] + tokens] = v_BKTC
        else:
            # What was never written may read as NaN, and masking cannot help: 0 · NaN is NaN.
            for tensor in (keys, values):
                tensor[:, :, self.cache.written[self.index] : longest] = 0
            for row, (start, count) in enumerate(zip(lengths, counts, strict=True)):
                keys[row, :, start : start + count] = k_BKTC[row, :, :count]
                values[row, :, start : start + count] = v_BKTC[row, :, :count]
        self.cache.written[self.index] = max(self.cache.written[self.index], longest)
        return keys[:, :, :longest], values[:, :, :longest]
