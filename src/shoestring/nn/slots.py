"""A pass over some slots of a cache: what works on tokens runs on all of them at once, attention slot by slot.

This is Orca's selective batching (Yu et al., OSDI 2022). The pass's tokens may be [B, T], a row for a slot, or packed
into [1, N], the next token of one slot beside a part of another's prompt. They are cut into `SlotRange`s: slots that
stand one after another and get equally many tokens, whose part of the cache is a view. Inside a range, attention is
what it is for a batch of equal rows; slots that take no part are neither read nor masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoestring.core.device import numbers_on

if TYPE_CHECKING:
    from shoestring.nn.cache import NewTokens
    from shoestring.nn.context import Context


# Slots of unequal lengths are attended together, up to the longest, while one more slot adds at most so many masked
# keys: a call costs a CPU core about what reading 256 keys and values of three heads costs. 16 slots of 100 to 2,000
# tokens, 9 query and 3 key heads of 64: 5.9 ms a layer, all together 8.2, each alone 5.8; of 100 to 500: 3.1, 3.1 and
# 3.3; 8 of 60 to 120: 1.1, 1.1 and 1.5. A GPU reads faster and calls are dearer: there all go together.
CPU_UNREAD = 256


@dataclass(frozen=True)
class SlotRange:
    """slots: of the cache. rows, tokens: where their new tokens stand in the pass's [B, T]. lengths: before this pass.

    count: of the tokens that each gets. context: as of a pass over these slots alone.
    """

    slots: slice
    rows: slice
    tokens: slice
    count: int
    lengths: list[int]
    context: Context

    @property
    def longest(self) -> int:
        """Tokens of the longest slot after this pass."""
        return max(self.lengths) + self.count

    @property
    def uniform(self) -> bool:
        """Whether all slots are of one length."""
        return len(set(self.lengths)) == 1

    def take(self, x: Tensor) -> Tensor:
        """The pass's tensor [B, ..., T, width] -> these slots' part of it, [n, ..., t, width], a view."""
        part = x[self.rows][..., self.tokens, :]
        if len(part) == len(self.lengths):
            return part
        return part.unflatten(-2, (len(self.lengths), self.count)).movedim(-3, 0).squeeze(1)

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """Write new tokens [n, ..., t, width] behind those of each slot in a layer's tensor [B, ..., S, width].

        -> these slots [n, ..., s, width] up to the longest.
        """
        part = held[self.slots]
        if self.uniform:
            part[..., self.lengths[0] : self.longest, :] = new
        elif self.count == 1:
            rows_N, starts_N = self.ends(held.device)
            part[rows_N, ..., starts_N, :] = new[..., 0, :]
        else:
            for row, start in enumerate(self.lengths):
                part[row, ..., start : start + self.count, :] = new[row]
        return part[..., : self.longest, :]

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each slot's next token goes: 0 .. n − 1, and their lengths."""

        def make() -> tuple[Tensor, Tensor]:
            lengths_N = numbers_on(self.lengths, device)
            return torch.arange(len(self.lengths), device=device), lengths_N

        return self.context.once("ends", make)


def by_slots(context: Context, attend_one: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """attend_one(range, *its parts [n, ..., t, width]) -> y [n, ..., t, C] for each range of the pass.

    parts: of all the pass's tokens, [B, ..., T, width]. -> y of all, [B, ..., T, C], laid out so that [B, T, ..., C] is
    a view; zeros where there is padding.
    """
    ranges = context.slot_ranges
    batch, tokens = parts[0].shape[0], parts[0].shape[-2]
    if len(ranges) == 1 and len(ranges[0].lengths) == batch and ranges[0].count == tokens:
        return attend_one(ranges[0], *parts)
    out: Tensor | None = None
    for some in ranges:
        y = attend_one(some, *(some.take(part) for part in parts))
        if out is None:
            out = y.new_zeros((batch, tokens, *y.shape[1:-2], y.shape[-1])).movedim(1, -2)
        some.take(out).copy_(y)
    assert out is not None, "a pass over no slots"
    return out


def adjacent(parts: Sequence[NewTokens], lengths: Sequence[int], device: torch.device) -> list[list[NewTokens]]:
    """Cut a pass into what makes up a `SlotRange` each, leaving out slots that get nothing. lengths: of all slots."""
    unread = CPU_UNREAD if device.type == "cpu" else float("inf")
    ranges: list[list[NewTokens]] = []
    longest = 0
    for new in parts:
        if new.count == 0:
            continue
        length = lengths[new.slot]
        if ranges and _goes_on(ranges[-1][-1], new):
            more = max(longest - length, (length - longest) * len(ranges[-1])) * new.count
            if more <= unread:
                ranges[-1].append(new)
                longest = max(longest, length)
                continue
        ranges.append([new])
        longest = length
    return ranges


def _goes_on(last: NewTokens, new: NewTokens) -> bool:
    if new.slot != last.slot + 1 or new.count != last.count:
        return False
    packed = new.row == last.row and new.start == last.start + last.count
    return packed or (new.row == last.row + 1 and new.start == last.start)


def place(some: list[NewTokens]) -> dict[str, Any]:
    """The fields of a `SlotRange` that say where its slots and their tokens stand."""
    first, last = some[0], some[-1]
    return {
        "slots": slice(first.slot, last.slot + 1),
        "rows": slice(first.row, last.row + 1),
        "tokens": slice(first.start, last.start + last.count),
        "count": first.count,
    }
