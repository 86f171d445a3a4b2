"""The cache of multi-head temporal latent attention: s neighbouring tokens share one column of R + Cr numbers.

columns: [B, ⌈S/s⌉, R+Cr] for each layer. Column j holds Σ w·c over the tokens of chunk j so far, and the rotary key of
the last of them. A merged column cannot be split, so each slot also keeps its last rollback + s tokens unmerged, in a
ring `recent` [B, rollback+s, R+Cr]: cutting back by at most `rollback` tokens is exact, and so is cutting to a
chunk's border.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.cache import Cache
from shoestring.nn.slots import SlotRange


class TemporalCache(Cache):
    """rank: R. numbers: R + Cr. stride: s. The next column of a slot follows from its length, kept as an integer."""

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        rank: int,
        numbers: int,
        stride: int,
        rollback: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.rank, self.stride, self.rollback = rank, stride, rollback
        self.ring = rollback + stride
        places = self.places(capacity)
        self.columns = [torch.empty((batch, places, numbers), device=device, dtype=dtype) for _ in range(layers)]
        self.recent = [torch.empty((batch, self.ring, numbers), device=device, dtype=dtype) for _ in range(layers)]
        self.recent_from = [0] * batch  # the first token of each slot that the ring still holds
        super().__init__(batch, capacity, {"columns": self.columns})

    def layer(self, index: int) -> TemporalLayerCache:
        return TemporalLayerCache(self, index)

    def count(self, slot: int, tokens: int) -> None:
        super().count(slot, tokens)
        self.recent_from[slot] = max(self.recent_from[slot], self.lengths[slot] - self.ring)

    def hold(self, slot: int, length: int) -> None:
        super().hold(slot, length)
        self.recent_from[slot] = length  # the tokens behind the merged columns are not known apart

    def cuttable(self, slot: int, length: int) -> int:
        """The longest start of a slot, of at most `length` tokens, that `cut` can cut to."""
        return length if self._exact(slot, length) else length - length % self.stride

    def _exact(self, slot: int, length: int) -> bool:
        start = length - length % self.stride
        return length == self.lengths[slot] or start == length or start >= self.recent_from[slot]

    def cut(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError where a merged column would be split."""
        old = self.lengths[slot]
        self._check(slot, length)
        super().cut(slot, length)
        if length < old and length % self.stride:
            self._rebuild_last_column(slot)
        self.recent_from[slot] = min(self.recent_from[slot], length)

    def _check(self, slot: int, length: int) -> None:
        old = self.lengths[slot]
        if 0 <= length <= old and not self._exact(slot, length):
            raise ValueError(
                f"cannot truncate row {slot} from {old} to {length} tokens: every {self.stride} tokens share a column, "
                f"and only the last {old - self.recent_from[slot]} are kept apart"
            )

    def truncate(self, lengths: list[int]) -> None:
        for slot, length in enumerate(lengths):
            self._check(slot, length)
        super().truncate(lengths)

    def abandon(self, slot: int, length: int) -> None:
        """The border of a chunk: the pass may have merged tokens into the column that was open, in some layers."""
        border = length - length % self.stride
        super().abandon(slot, border)
        self.recent_from[slot] = border

    def _rebuild_last_column(self, slot: int) -> None:
        length = self.lengths[slot]
        tokens = range(length - length % self.stride, length)
        for columns, recent in zip(self.columns, self.recent, strict=True):
            column, ring = columns[slot, length // self.stride], recent[slot]
            total = ring[tokens[0] % self.ring, : self.rank]
            for token in tokens[1:]:
                total = total + ring[token % self.ring, : self.rank]
            column[: self.rank] = total
            column[self.rank :] = ring[tokens[-1] % self.ring, self.rank :]

    def reorder(self, rows: list[int]) -> None:
        super().reorder(rows)
        for i, recent in enumerate(self.recent):
            self.recent[i] = recent[torch.tensor(rows)]
        self.recent_from = [self.recent_from[row] for row in rows]

    def state(self) -> dict[str, Tensor]:
        state = super().state()
        state["recent_from"] = torch.tensor(self.recent_from, dtype=torch.int64)
        # What was never written may hold anything, NaN too: it is not part of the state.
        kept = [range(first, length) for first, length in zip(self.recent_from, self.lengths, strict=True)]
        for i, recent in enumerate(self.recent):
            saved = torch.zeros_like(recent)
            for slot, tokens in enumerate(kept):
                places = [token % self.ring for token in tokens]
                saved[slot, places] = recent[slot, places]
            state[f"recent.{i}"] = saved
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        if state["recent.0"].shape != self.recent[0].shape:
            raise ValueError("a saved cache of another stride or rollback does not fit this one")
        super().restore(state)
        self.recent_from = state["recent_from"].tolist()
        for i, recent in enumerate(self.recent):
            recent.copy_(state[f"recent.{i}"])


class TemporalLayerCache:
    """One layer's view of a `TemporalCache`."""

    def __init__(self, cache: TemporalCache, index: int):
        self.cache = cache
        self.index = index

    def append(self, slots: SlotRange, weighted_BTR: Tensor, keys_BTC: Tensor) -> Tensor:
        """Merge T tokens into the columns of each of these slots; weighted: w·c, keys: rotary.

        -> [B, T, R+Cr]: what each token sees as its own column, its chunk merged up to itself, and its rotary key.
        """
        new_BTW = torch.cat([weighted_BTR, keys_BTC], dim=-1)
        columns, recent = self.cache.columns[self.index][slots.slots], self.cache.recent[self.index][slots.slots]
        if slots.uniform:
            return self._append(columns, recent, slots.lengths[0], new_BTW)
        if slots.count == 1:
            return self._append_one(columns, recent, slots, new_BTW)
        each = [slice(row, row + 1) for row in range(len(slots.lengths))]
        starts = zip(each, slots.lengths, strict=True)
        return torch.cat([self._append(columns[row], recent[row], start, new_BTW[row]) for row, start in starts])

    def columns(self, slots: SlotRange) -> Tensor:
        """What these slots hold, up to the longest, [B, ⌈tokens/s⌉, R+Cr]."""
        return self.cache.columns[self.index][slots.slots][:, : self.cache.places(slots.longest)]

    def _append_one(self, columns: Tensor, recent: Tensor, slots: SlotRange, new_B1W: Tensor) -> Tensor:
        """One token to slots of any lengths."""
        rank, stride = self.cache.rank, self.cache.stride
        row_N, start_N = slots.ends(columns.device)
        new_NW = new_B1W[:, 0]
        recent[row_N, start_N % self.cache.ring] = new_NW
        begun_N1 = (start_N % stride > 0).unsqueeze(1)
        held_NR = columns[row_N, start_N // stride, :rank]
        latent_NR = torch.where(begun_N1, held_NR + new_NW[:, :rank], new_NW[:, :rank])
        merged_NW = torch.cat([latent_NR, new_NW[:, rank:]], dim=-1)
        columns[row_N, start_N // stride] = merged_NW
        return merged_NW.unsqueeze(1)

    def _append(self, columns: Tensor, recent: Tensor, start: int, new_NTW: Tensor) -> Tensor:
        """Tokens to slots of one length."""
        cache, rank, stride = self.cache, self.cache.rank, self.cache.stride
        tokens = new_NTW.shape[1]
        first, phase = divmod(start, stride)
        if tokens == 1:
            recent[:, start % cache.ring] = new_NTW[:, 0]
            column = columns[:, first]
            if phase:
                column[:, :rank] += new_NTW[:, 0, :rank]
                column[:, rank:] = new_NTW[:, 0, rank:]
            else:
                column.copy_(new_NTW[:, 0])
            return columns[:, first : first + 1]
        end = start + tokens
        for place in range(max(start, end - cache.ring), end):
            recent[:, place % cache.ring] = new_NTW[:, place - start]
        last = cache.places(end)
        latents = new_NTW.new_zeros((new_NTW.shape[0], (last - first) * stride, rank))
        latents[:, phase : phase + tokens] = new_NTW[..., :rank]
        if phase:
            latents[:, phase - 1] = columns[:, first, :rank]  # what the chunk held already
        merged = latents.unflatten(1, (-1, stride)).cumsum(2)
        columns[:, first:last, :rank] = merged[:, :, -1]
        ends = [min(chunk * stride + stride, end) - 1 - start for chunk in range(first, last)]
        columns[:, first:last, rank:] = new_NTW[:, ends, rank:]
        own = merged.flatten(1, 2)[:, phase : phase + tokens]
        return torch.cat([own, new_NTW[..., rank:]], dim=-1)
