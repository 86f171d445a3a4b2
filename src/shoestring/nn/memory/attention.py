"""Grouped-query attention that also searches the past (Memorizing Transformers, arXiv 2203.08913).

x_BTD -> y_BTD. y = g·recalled + (1 − g)·local for each head, g = sigmoid of a learned number; a token that finds
nothing keeps the local result. A token at position t finds entries of its own document at positions from
⌊t/W⌋·W − M to before ⌊t/W⌋·W: a rule of positions alone, so tokens decoded one by one find what they find in a whole
sequence. Keys are searched before rotation: how alike two tokens are does not depend on how far apart they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.device import numbers_on
from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.cache import LayerCache
from shoestring.nn.config import GQAConfig
from shoestring.nn.context import Context
from shoestring.nn.linear import Linear
from shoestring.nn.memory.cache import MemoryLayerCache
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.nn.memory.search import Entries, recall, search
from shoestring.nn.replay import replayed
from shoestring.nn.slots import SlotRange, by_slots


@dataclass(frozen=True)
class _Unit:
    """`count` tokens that search the same entries: one block of one document."""

    count: int
    sources: Sequence[Entries]


class MemoryAttention(GroupedQueryAttention):
    """Takes its rows' documents from `context`, entries of earlier passes from `context.memory` or the cache."""

    def __init__(
        self,
        config: GQAConfig,
        memory: MemoryBankConfig,
        width: int,
        epsilon: float,
        make_linear: Callable[..., nn.Module] = Linear,
    ):
        super().__init__(config, width, epsilon, make_linear)
        self.memory = memory
        self.gate_bias = nn.Parameter(torch.zeros(config.heads))  # logits: a fresh memory has half a say

    def forward(self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q_BHTC, k_BKTC, v_BKTC = self.project(x_BTD, context)
        place = replayed(lambda: self._take_place(k_BKTC.detach(), v_BKTC.detach(), context, cache))
        local_BHTC = self.attend(self.turn(q_BHTC, context), self.turn(k_BKTC, context), v_BKTC, context, cache)
        if cache is None:
            groups = self._groups(k_BKTC.detach(), v_BKTC.detach(), context, place)
            return self.finish(self._mix(local_BHTC, q_BHTC, groups, context, place))
        recall = partial(self._recall_slots, cache, place)
        return self.finish(by_slots(context, recall, local_BHTC, q_BHTC, k_BKTC))

    def _recall_slots(
        self, cache: LayerCache, place: int, slots: SlotRange, local: Tensor, q: Tensor, k: Tensor
    ) -> Tensor:
        """After `attend`: mix what these slots' new tokens recall into what they attended to."""
        assert isinstance(cache, MemoryLayerCache)
        k_BKSC, v_BKSC = cache.append_searched(slots, k)
        return self._mix(local, q, self._slot_groups(k_BKSC, v_BKSC, slots, place), slots.context, place)

    def _mix(self, local: Tensor, q: Tensor, groups: list[list[_Unit]], context: Context, place: int) -> Tensor:
        """y = g·recalled + (1 − g)·local; groups: see `_groups`."""
        # Split, not sliced: the gradient of a slice is as large as the whole.
        rows = [q] if len(groups) == 1 else q.split(1)
        parts = [part for row, units in zip(rows, groups, strict=True) for part in row.split(_counts(units), dim=2)]
        units = [unit for group in groups for unit in group]
        index = context.memory.persistent_index(place) if context.memory is not None else None
        pairs = list(zip(parts, units, strict=True))
        hits = replayed(lambda: [search(part, unit.sources, self.memory.top_k, index) for part, unit in pairs])
        scale = self.head_width**-0.5
        recalled = iter([recall(part, u.sources, at, scale) for part, u, at in zip(parts, units, hits, strict=True)])
        recalled_BHTC = torch.cat([torch.cat([next(recalled) for _ in group], dim=2) for group in groups])
        found = [[float(bool(unit.sources)) for unit in group for _ in range(unit.count)] for group in groups]
        found_B1T1 = numbers_on(found, q.device, q.dtype).view(len(groups), 1, -1, 1)
        gate_BHT1 = self.gate_bias.sigmoid().to(local.dtype).view(-1, 1, 1) * found_B1T1
        return torch.lerp(local, recalled_BHTC, gate_BHT1)

    def _take_place(self, k: Tensor, v: Tensor, context: Context, cache: LayerCache | None) -> int:
        """This layer's place in the bank; in the same breath its tokens are staged, which must happen once."""
        bank = context.memory
        if bank is None:
            return 0
        place = bank.next_slot()
        if cache is None:
            spans = _documents(context, *k.shape[::2])
            last = {row: (row, start, end) for row, start, end in spans}
            for row, start, end in spans if bank.persistent else last.values():
                first = _position(context, row, start)
                bank.stage(place, row, first, k[row, :, start:end], v[row, :, start:end])
        return place

    def _groups(self, k: Tensor, v: Tensor, context: Context, place: int) -> list[list[_Unit]]:
        """For each row the units that its tokens fall into; one list for all rows where they are alike."""
        bank, tokens = context.memory, context.positions_BT.shape[1]
        everywhere = bank.persistent_sources(place) if bank is not None else []
        documents = context.visibility.documents
        if documents is None:
            alike = context.positions_BT.shape[0] == 1 and (bank is None or bank.persistent)
            documents = tuple((row, 0, tokens) for row in range(1 if alike else len(k)))
        groups: list[list[_Unit]] = [[] for _ in range(documents[-1][0] + 1)]
        for row, start, end in documents:
            rows = slice(None) if len(groups) == 1 else slice(row, row + 1)
            first = _position(context, row, start)
            for begin, count in self._blocks(first, end - start):
                low = max(0, begin - self.memory.capacity)
                own = slice(start + max(low - first, 0), start + max(begin - first, 0))
                sources = list(everywhere)
                if bank is not None and start == 0:
                    sources += bank.document_sources(place, row, low, min(first, begin), first)
                if own.start < own.stop:
                    sources.append((k[rows, :, own], v[rows, :, own]))
                groups[row].append(_Unit(count, sources))
        return groups

    def _slot_groups(self, k: Tensor, v: Tensor, slots: SlotRange, place: int) -> list[list[_Unit]]:
        """The same for new tokens of slots that hold keys k and values v."""
        bank = slots.context.memory
        everywhere = bank.persistent_sources(place) if bank is not None else []
        groups: list[list[_Unit]] = []
        for row, length in enumerate(slots.lengths[:1] if slots.uniform else slots.lengths):
            rows = slice(None) if slots.uniform else slice(row, row + 1)
            units = []
            for begin, count in self._blocks(length, slots.count):
                cut = slice(max(0, begin - self.memory.capacity), begin)
                own = [(k[rows, :, cut], v[rows, :, cut])] if begin > 0 else []
                units.append(_Unit(count, [*everywhere, *own]))
            groups.append(units)
        return groups

    def _blocks(self, first: int, tokens: int) -> Iterator[tuple[int, int]]:
        """(the position where a block begins, tokens in it) for tokens that stand from position `first` on."""
        size, position = self.memory.block, first
        while position < first + tokens:
            begin = position // size * size
            after = min(begin + size, first + tokens)
            yield begin, after - position
            position = after


def _counts(units: list[_Unit]) -> list[int]:
    return [unit.count for unit in units]


def _documents(context: Context, batch: int, tokens: int) -> Sequence[tuple[int, int, int]]:
    if context.visibility.documents is not None:
        return context.visibility.documents
    return [(row, 0, tokens) for row in range(batch)]


def _position(context: Context, row: int, column: int) -> int:
    if context.layout is not None:
        positions_BT: Any = context.layout.positions_BT  # asking a GPU would wait for it
    else:
        positions_BT = context.positions_BT
    return int(positions_BT[row if positions_BT.shape[0] > 1 else 0, column])
