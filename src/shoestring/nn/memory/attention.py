"""Grouped-query attention that also searches the past (Memorizing Transformers, arXiv 2203.08913).

x_BTD -> y_BTD. y = g·recalled + (1 − g)·local for each head, g = sigmoid of a learned number; a token that finds
nothing keeps the local result. A token at position t finds entries of its own document at positions from
⌊t/W⌋·W − M to before ⌊t/W⌋·W: a rule of positions alone, so tokens decoded one by one find what they find in a whole
sequence. Keys are searched before rotation: how alike two tokens are does not depend on how far apart they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.cache import LayerCache
from shoestring.nn.config import GQAConfig
from shoestring.nn.context import Context
from shoestring.nn.linear import Linear
from shoestring.nn.memory.cache import MemoryLayerCache
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.nn.memory.search import Entries, recall, search
from shoestring.nn.replay import replayed


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
        local_BHTC = self.attend(q_BHTC, k_BKTC, v_BKTC, context, cache)
        if isinstance(cache, MemoryLayerCache):
            k_BKTC, v_BKTC = cache.append_searched(k_BKTC, context.counts)
        recalled_BHTC, found_B1T1 = self._recall(q_BHTC, k_BKTC.detach(), v_BKTC.detach(), context, cache)
        gate_BHT1 = self.gate_bias.sigmoid().to(local_BHTC.dtype).view(-1, 1, 1) * found_B1T1
        mixed_BHTC = torch.lerp(local_BHTC, recalled_BHTC, gate_BHT1)
        return self.finish(mixed_BHTC)

    def _recall(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """-> what each token recalls [B, H, T, C], and 1 where it found anything [B or 1, 1, T, 1]."""
        slot = replayed(lambda: self._take_slot(k, v, context, cache))
        groups = self._groups(k, v, context, cache, slot)
        # Split, not sliced: the gradient of a slice is as large as the whole.
        rows = [q] if len(groups) == 1 else q.split(1)
        parts = [part for row, units in zip(rows, groups, strict=True) for part in row.split(_counts(units), dim=2)]
        units = [unit for group in groups for unit in group]
        index = context.memory.persistent_index(slot) if context.memory is not None else None
        pairs = list(zip(parts, units, strict=True))
        hits = replayed(lambda: [search(part, unit.sources, self.memory.top_k, index) for part, unit in pairs])
        scale = self.head_width**-0.5
        recalled = iter([recall(part, u.sources, at, scale) for part, u, at in zip(parts, units, hits, strict=True)])
        recalled_BHTC = torch.cat([torch.cat([next(recalled) for _ in group], dim=2) for group in groups])
        found = [[float(bool(unit.sources)) for unit in group for _ in range(unit.count)] for group in groups]
        return recalled_BHTC, torch.tensor(found, dtype=q.dtype, device=q.device).view(len(groups), 1, -1, 1)

    def _take_slot(self, k: Tensor, v: Tensor, context: Context, cache: LayerCache | None) -> int:
        """This layer's place in the bank; in the same breath its tokens are staged, which must happen once."""
        bank = context.memory
        if bank is None:
            return 0
        slot = bank.next_slot()
        if cache is None:
            spans = _documents(context, *k.shape[::2])
            last = {row: (row, start, end) for row, start, end in spans}
            for row, start, end in spans if bank.persistent else last.values():
                first = _position(context, row, start)
                bank.stage(slot, row, first, k[row, :, start:end], v[row, :, start:end])
        return slot

    def _groups(
        self, k: Tensor, v: Tensor, context: Context, cache: LayerCache | None, slot: int
    ) -> list[list[_Unit]]:
        """For each row the units that its tokens fall into; one list for all rows where they are alike."""
        bank, tokens = context.memory, context.positions_BT.shape[1]
        everywhere = bank.persistent_sources(slot) if bank is not None else []
        if cache is not None:
            return self._cached_groups(k, v, context, cache, everywhere)
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
                    sources += bank.document_sources(slot, row, low, min(first, begin), first)
                if own.start < own.stop:
                    sources.append((k[rows, :, own], v[rows, :, own]))
                groups[row].append(_Unit(count, sources))
        return groups

    def _cached_groups(
        self, k: Tensor, v: Tensor, context: Context, cache: LayerCache, everywhere: list[Entries]
    ) -> list[list[_Unit]]:
        lengths, counts, tokens = cache.lengths, context.counts, context.positions_BT.shape[1]
        alike = len(set(lengths)) == 1 and set(counts) == {tokens}
        groups: list[list[_Unit]] = []
        for row in range(1 if alike else len(lengths)):
            rows = slice(None) if alike else slice(row, row + 1)
            units = []
            for begin, count in self._blocks(lengths[row], counts[row]):
                cut = slice(max(0, begin - self.memory.capacity), begin)
                own = [(k[rows, :, cut], v[rows, :, cut])] if begin > 0 else []
                units.append(_Unit(count, [*everywhere, *own]))
            if counts[row] < tokens:  # padding finds nothing
                units.append(_Unit(tokens - counts[row], []))
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
    positions_BT = context.positions_BT
    return int(positions_BT[row if positions_BT.shape[0] > 1 else 0, column])
