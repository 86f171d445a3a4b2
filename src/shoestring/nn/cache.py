"""Caches of decoding: slots of fixed capacity in preallocated tensors, one or two per layer.

`Cache` is what all kinds share; `KVCache`, for grouped-query attention, keeps keys and values [B, K, S, C], B the slots
and S the capacity. A slot holds one text, filled from the left. Lengths are Python integers, one for each slot: a step
counter in the model's dtype sticks (bfloat16 counts to 256), and a common one breaks ragged batches. A pass reads and
writes the slots that take part in it (`rows`) and no others. Pages that are never written cost no memory on Linux.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoestring.nn.slots import SlotRange

_AHEAD = 256  # places padded beyond what a pass needs, so that not every pass pads


@dataclass(frozen=True)
class NewTokens:
    """`count` tokens that `slot` gets in one pass: where they begin in its tokens [B, T]."""

    slot: int
    row: int
    start: int
    count: int


class Cache:
    """What decoding keeps of earlier tokens. Given to a decoder as it is, row b of its tokens goes on in slot b.

    tensors: for each name one tensor per layer, [B, ..., S, width]; a slot of n tokens fills `places(n)` of the S.
    """

    stride = 1  # tokens to a place

    def __init__(self, batch: int, capacity: int, tensors: dict[str, list[Tensor]]):
        self.capacity = capacity
        self.lengths = [0] * batch
        self.tensors = tensors
        self._numbers = [0] * batch  # places of each slot, from the first, that are known to hold numbers

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def places(self, tokens: int) -> int:
        return -(-tokens // self.stride)

    def bytes_per_token(self) -> float:
        """Bytes that one token of one slot takes over all layers."""
        numbers = [t[0].numel() // t.shape[-2] * t.element_size() for group in self.tensors.values() for t in group]
        return sum(numbers) / self.stride

    def layer(self, index: int) -> Any:
        """What the attention of one layer appends to and reads."""
        raise NotImplementedError

    def rows(self, slots: list[int], counts: list[int]) -> CacheRows:
        """For a pass over these slots alone: its tokens are [1, sum of counts], counts[i] of them for slots[i].

        Nothing is padded and nothing is copied. Slots that stand one after another, and get equally many tokens, are
        attended together.
        """
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return CacheRows(self, [NewTokens(*new) for new in zip(slots, [0] * len(slots), starts, counts, strict=True)])

    def all_rows(self, counts: list[int]) -> CacheRows:
        """For a pass whose row b goes on in slot b, with the first counts[b] of its tokens."""
        if len(counts) != self.batch:
            raise ValueError(f"the cache has {self.batch} slots, the tokens have {len(counts)} rows")
        return CacheRows(self, [NewTokens(row, row, 0, count) for row, count in enumerate(counts)])

    def advance(self, counts: list[int]) -> None:
        """Count the tokens that every layer has appended in a pass over all slots."""
        for slot, count in enumerate(counts):
            self.count(slot, count)

    def count(self, slot: int, tokens: int) -> None:
        """The same for one slot."""
        self.lengths[slot] += tokens
        self._numbers[slot] = max(self._numbers[slot], self.places(self.lengths[slot]))

    def pad(self, slots: slice, tokens: int) -> None:
        """Let slots hold numbers up to `tokens` tokens, zeros where nothing was written.

        For a pass that reads slots of unequal lengths together and masks what lies behind the shorter ones: fresh
        memory may read as NaN, and 0 · NaN is NaN.
        """
        for slot in range(slots.start, slots.stop):
            start = max(self._numbers[slot], self.places(self.lengths[slot]))
            if start < self.places(tokens):
                end = self.places(min(tokens + _AHEAD, self.capacity))
                for group in self.tensors.values():
                    for tensor in group:
                        tensor[slot, ..., start:end, :] = 0
                self._numbers[slot] = end

    def cuttable(self, slot: int, length: int) -> int:
        """The longest start of a slot, of at most `length` tokens, that `cut` can cut to."""
        return length

    def cut(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot; this writes nothing for 0. Raises ValueError."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"cannot truncate row {slot} from {self.lengths[slot]} tokens to {length}")
        self.lengths[slot] = length
        self._numbers[slot] = min(self._numbers[slot], self.places(length))

    def abandon(self, slot: int, length: int) -> None:
        """Go back to a slot's `length` tokens, or fewer, after a pass that began there and did not end."""
        self.lengths[slot] = length

    def truncatable(self, lengths: list[int]) -> list[int]:
        """`cuttable` for every slot."""
        return [self.cuttable(slot, length) for slot, length in enumerate(lengths)]

    def truncate(self, lengths: list[int]) -> None:
        """`cut` for every slot, or for none where one of them cannot be cut."""
        for slot, (new, old) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"cannot truncate row {slot} from {old} tokens to {new}")
        for slot, length in enumerate(lengths):
            self.cut(slot, length)

    def grow(self, capacity: int) -> None:
        """Give every slot this capacity; what they hold is copied, a layer at a time."""
        places, used = self.places(capacity), self.places(max(self.lengths, default=0))
        for group in self.tensors.values():
            for i, old in enumerate(group):
                new = old.new_empty((*old.shape[:-2], places, old.shape[-1]))
                new[..., :used, :] = old[..., :used, :]
                group[i] = new
        self.capacity = capacity
        self._numbers = [min(places, used) for places in self._numbers]

    def slot_tensors(self, slot: int, length: int) -> dict[str, Tensor]:
        """The part of every tensor that the first `length` tokens of a slot take, as views by name: to be read, or
        filled and then told with `hold`."""
        used = self.places(length)
        return {
            f"{name}.{i}": tensor[slot, ..., :used, :]
            for name, group in self.tensors.items()
            for i, tensor in enumerate(group)
        }

    def apart(self, slot: int, length: int) -> int:
        """The longest start of a slot, of at most `length` tokens, whose part of the tensors holds nothing of later
        tokens."""
        return length if length == self.lengths[slot] else length - length % self.stride

    def hold(self, slot: int, length: int) -> None:
        """Say that a slot, cut to nothing before, has been filled with so many tokens. Raises ValueError."""
        if self.lengths[slot] or not 0 <= length <= self.capacity:
            raise ValueError(f"slot {slot} of {self.lengths[slot]} tokens cannot take {length} more")
        self.count(slot, length)

    def reorder(self, rows: list[int]) -> None:
        """Make slot b a copy of the old slot rows[b]; rows may repeat, and there may be fewer or more of them."""
        used = self.places(max(self.lengths, default=0))
        for group in self.tensors.values():
            for i, old in enumerate(group):
                index = torch.tensor(rows, device=old.device)
                new = old.new_empty((len(rows), *old.shape[1:]))
                new[..., :used, :] = old[..., :used, :].index_select(0, index)
                group[i] = new
        self._numbers = [min(self._numbers[row], used) for row in rows]
        self.lengths = [self.lengths[row] for row in rows]

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` takes back, cut to the longest slot; safetensors can hold them."""
        longest = max(self.lengths, default=0)
        self.pad(slice(0, self.batch), longest)
        used = self.places(longest)
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
        self._numbers = [used] * self.batch
        self.lengths = lengths


class CacheRows:
    """Some slots of a cache with the tokens that each gets in one pass: made by `Cache.rows`, given to a decoder."""

    def __init__(self, cache: Cache, new: list[NewTokens]):
        self.cache = cache
        self.new = new

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row's slot holds."""
        return [self.cache.lengths[new.slot] for new in self.new]

    @property
    def counts(self) -> list[int]:
        """Tokens that each gets."""
        return [new.count for new in self.new]

    def layer(self, index: int) -> Any:
        return self.cache.layer(index)

    def require(self) -> None:
        """Raise ValueError where the new tokens would pass the capacity, or two rows share a slot."""
        longest = max((length + count for length, count in zip(self.lengths, self.counts, strict=True)), default=0)
        if longest > self.cache.capacity:
            raise ValueError(f"{longest} tokens do not fit a cache of capacity {self.cache.capacity}")
        slots = [new.slot for new in self.new]
        if len(set(slots)) < len(slots):
            raise ValueError(f"two rows of one pass cannot go on in one slot: {slots}")

    def advance(self, counts: list[int]) -> None:
        """Count the tokens that every layer has appended in this pass."""
        for new, count in zip(self.new, counts, strict=True):
            self.cache.count(new.slot, count)


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

    def append(self, slots: SlotRange, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T tokens behind each of these slots; return their keys and values up to the longest.

        The cache's lengths do not change here: every layer appends at the same place, then the pass counts them.
        """
        keys, values = self.cache.keys[self.index], self.cache.values[self.index]
        return slots.append(keys, k_BKTC), slots.append(values, v_BKTC)
