"""The cache of multi-head temporal latent attention: s neighbouring tokens share one slot of R + Cr numbers.

slots: [B, ⌈S/s⌉, R+Cr] for each layer. Slot j holds Σ w·c over the tokens of chunk j so far, and the rotary key of
the last of them. A merged slot cannot be split, so each row also keeps its last rollback + s tokens unmerged, in a
ring `recent` [B, rollback+s, R+Cr]: cutting back by at most `rollback` tokens is exact, and so is cutting to a
chunk's border.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.cache import Cache, growing, uniform


class TemporalCache(Cache):
    """rank: R. numbers: R + Cr. stride: s. The next slot of a row follows from its length, kept as an integer."""

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
        self.slots = [torch.empty((batch, places, numbers), device=device, dtype=dtype) for _ in range(layers)]
        self.recent = [torch.empty((batch, self.ring, numbers), device=device, dtype=dtype) for _ in range(layers)]
        self.recent_from = [0] * batch  # the first token of each row that the ring still holds
        super().__init__(batch, capacity, {"slots": self.slots})

    def layer(self, index: int) -> TemporalLayerCache:
        return TemporalLayerCache(self, index)

    def advance(self, counts: list[int]) -> None:
        super().advance(counts)
        self.recent_from = [
            max(first, length - self.ring) for first, length in zip(self.recent_from, self.lengths, strict=True)
        ]

    def truncatable(self, lengths: list[int]) -> list[int]:
        """For each row the longest start, of at most lengths[b] tokens, that `truncate` can cut to."""
        return [
            length if self._exact(row, length) else length - length % self.stride for row, length in enumerate(lengths)
        ]

    def _exact(self, row: int, length: int) -> bool:
        start = length - length % self.stride
        return length == self.lengths[row] or start == length or start >= self.recent_from[row]

    def truncate(self, lengths: list[int]) -> None:
        """Forget all but the first lengths[b] tokens of row b. Raises ValueError where a merged slot would be split."""
        before = self.lengths
        for row, (new, old) in enumerate(zip(lengths, before, strict=True)):
            if 0 <= new <= old and not self._exact(row, new):
                raise ValueError(
                    f"cannot truncate row {row} from {old} to {new} tokens: every {self.stride} tokens share a slot, "
                    f"and only the last {old - self.recent_from[row]} are kept apart"
                )
        super().truncate(lengths)
        split = [row for row, new in enumerate(lengths) if new < before[row] and new % self.stride]
        if split:
            self._rebuild_last_slots(split)
        self.recent_from = [min(first, new) for first, new in zip(self.recent_from, lengths, strict=True)]

    def _rebuild_last_slots(self, rows: list[int]) -> None:
        lengths = torch.tensor([self.lengths[row] for row in rows])
        row_N = torch.tensor(rows)
        slot_N, phase_N = lengths // self.stride, lengths % self.stride
        start_N = lengths - phase_N
        for slots, recent in zip(self.slots, self.recent, strict=True):
            total = recent[row_N, start_N % self.ring, : self.rank]
            for step in range(1, self.stride):
                more = recent[row_N, (start_N + step) % self.ring, : self.rank]
                total = torch.where((step < phase_N).unsqueeze(1).to(total.device), total + more, total)
            key = recent[row_N, (lengths - 1) % self.ring, self.rank :]
            slots[row_N, slot_N] = torch.cat([total, key], dim=-1)

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
            for row, tokens in enumerate(kept):
                places = [token % self.ring for token in tokens]
                saved[row, places] = recent[row, places]
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

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row held before this pass."""
        return self.cache.lengths

    def append(self, weighted_BTR: Tensor, keys_BTC: Tensor, counts: list[int]) -> Tensor:
        """Merge the first counts[b] of T tokens into row b's slots; weighted: w·c, keys: rotary.

        -> [B, T, R+Cr]: what each token sees as its own column, its chunk merged up to itself, and its rotary key.
        """
        cache, lengths, tokens = self.cache, self.cache.lengths, weighted_BTR.shape[1]
        longest = max(length + count for length, count in zip(lengths, counts, strict=True))
        used = cache.places(longest)
        new_BTW = torch.cat([weighted_BTR, keys_BTC], dim=-1)
        if uniform(lengths) and all(count == tokens for count in counts):
            rows_BTW = self._append(slice(None), lengths[0], new_BTW)
        else:
            # What was never written may read as NaN, and masking cannot help: 0 · NaN is NaN.
            cache.slots[self.index][:, cache.written[self.index] : used] = 0
            if tokens == 1:
                rows_BTW = self._append_one(new_BTW, counts)
                cache.written[self.index] = max(cache.written[self.index], used)
                return rows_BTW
            rows_BTW = torch.zeros_like(new_BTW)
            for row, (start, count) in enumerate(zip(lengths, counts, strict=True)):
                if count:
                    one = slice(row, row + 1)
                    rows_BTW[one, :count] = self._append(one, start, new_BTW[one, :count])
        cache.written[self.index] = max(cache.written[self.index], used)
        return rows_BTW

    def _append_one(self, new_B1W: Tensor, counts: list[int]) -> Tensor:
        """One token, or none, to rows of any lengths."""
        cache, slots, rank = self.cache, self.cache.slots[self.index], self.cache.rank
        row_N, start_N = growing(cache.lengths, counts)
        new_NW = new_B1W[row_N, 0]
        cache.recent[self.index][row_N, start_N % cache.ring] = new_NW
        begun_N1 = (start_N % cache.stride > 0).unsqueeze(1).to(new_NW.device)
        held_NR = slots[row_N, start_N // cache.stride, :rank]
        latent_NR = torch.where(begun_N1, held_NR + new_NW[:, :rank], new_NW[:, :rank])
        merged_NW = torch.cat([latent_NR, new_NW[:, rank:]], dim=-1)
        slots[row_N, start_N // cache.stride] = merged_NW
        rows_B1W = torch.zeros_like(new_B1W)
        rows_B1W[row_N, 0] = merged_NW
        return rows_B1W

    def slots(self, tokens: int) -> Tensor:
        """The slots of the first `tokens` tokens of every row, [B, ⌈tokens/s⌉, R+Cr]."""
        return self.cache.slots[self.index][:, : self.cache.places(tokens)]

    def _append(self, rows: slice, start: int, new_NTW: Tensor) -> Tensor:
        """The same for rows of one length, whose tokens are all there."""
        cache, rank, stride = self.cache, self.cache.rank, self.cache.stride
        slots, recent = cache.slots[self.index][rows], cache.recent[self.index][rows]
        tokens = new_NTW.shape[1]
        first, phase = divmod(start, stride)
        if tokens == 1:
            recent[:, start % cache.ring] = new_NTW[:, 0]
            slot = slots[:, first]
            if phase:
                slot[:, :rank] += new_NTW[:, 0, :rank]
                slot[:, rank:] = new_NTW[:, 0, rank:]
            else:
                slot.copy_(new_NTW[:, 0])
            return slots[:, first : first + 1]
        end = start + tokens
        for place in range(max(start, end - cache.ring), end):
            recent[:, place % cache.ring] = new_NTW[:, place - start]
        last = cache.places(end)
        latents = new_NTW.new_zeros((new_NTW.shape[0], (last - first) * stride, rank))
        latents[:, phase : phase + tokens] = new_NTW[..., :rank]
        if phase:
            latents[:, phase - 1] = slots[:, first, :rank]  # what the chunk held already
        merged = latents.unflatten(1, (-1, stride)).cumsum(2)
        slots[:, first:last, :rank] = merged[:, :, -1]
        ends = [min(chunk * stride + stride, end) - 1 - start for chunk in range(first, last)]
        slots[:, first:last, rank:] = new_NTW[:, ends, rank:]
        own = merged.flatten(1, 2)[:, phase : phase + tokens]
        return torch.cat([own, new_NTW[..., rank:]], dim=-1)
