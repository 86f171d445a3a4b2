"""What a block may read besides its input: made once for a forward pass, shared by every layer.

Holds the rotary tables, who may see whom (`Visibility`), and which slots of the cache the new tokens go to.
A block reads nothing else, so that one block can be built, filled and run alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from shoestring.core import torch_features
from shoestring.core.device import numbers_on
from shoestring.data.batch import Layout, Span, documents_of
from shoestring.nn.attention.packed import Packed
from shoestring.nn.cache import Cache, CacheRows, NewTokens
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.rope import RotaryEmbedding, RotaryTables
from shoestring.nn.slots import SlotRange, adjacent, place

PADDING = -1  # the segment of tokens that are not there


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, in the cheapest form that says it.

    mask_B1TS: True where query t of row b sees key s; None when `causal` says it all, or when every key is seen.
    documents: (row, start, end) spans that cover all tokens, each causal within itself; None for one span per row.
    packed: the documents as a GPU's kernel takes them. Where several are given they say the same, and a kind takes the
    one that suits it. oldest: the least place of any query among the keys, where a mask does not say it in Python.
    """

    causal: bool
    mask_B1TS: Tensor | None = None
    documents: tuple[Span, ...] | None = None
    packed: Packed | None = None
    oldest: int | None = None

    def packed_within(self, window: int) -> Visibility:
        """The same through a window of so many keys, where `packed` says who sees whom."""
        assert self.packed is not None
        packed = self.packed.within(window)
        packed.block_mask()  # now: layers may be compiled
        return replace(self, packed=packed)


@dataclass(frozen=True)
class Context:
    """positions_BT: int64. counts: tokens that each row appends to the cache, empty without one.

    make_ranges: of a pass with a cache, see `slot_ranges`.
    seed: from which every layer's dropout is drawn; None leaves it to torch's global generator. layout: of the batch.
    """

    positions_BT: Tensor
    rotary: RotaryTables | None
    visibility: Visibility
    counts: list[int] = field(default_factory=list)
    make_ranges: Callable[[], tuple[SlotRange, ...]] | None = None
    external_BTE: Tensor | None = None
    memory: MemoryBank | None = None
    seed: int | None = None
    layout: Layout | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def slot_ranges(self) -> tuple[SlotRange, ...]:
        """The parts of a pass with a cache; who sees whom stands in their contexts, not in `visibility`. Made when a
        layer asks for them first: a native pass does without."""
        return () if self.make_ranges is None else self.once("slot ranges", self.make_ranges)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()` in the first layer that asks for `key`, its result in the others: for what has no gradient."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def make_context(
    tokens_BT: Tensor,
    rotary: RotaryEmbedding | None,
    positions_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
    cache: Cache | CacheRows | None = None,
    external_BTE: Tensor | None = None,
    memory: MemoryBank | None = None,
    seed: int | None = None,
    layout: Layout | None = None,
    window: int | None = None,
) -> Context:
    """Without a cache, tokens see earlier tokens of their own segment; with one, also all that their slot holds.

    segments_BT: any integers, equal within a document; PADDING marks the unused tail of a row. With a cache, rows may
    differ only in their padding: a slot is one document. Raises ValueError for tokens behind padding there. layout: of
    the batch that segments and positions are of. window: of the layers that have one.
    """
    if memory is not None:
        memory.begin()
    if cache is not None:
        rows = _rows(cache, tokens_BT, segments_BT)
        rows.require()
        if positions_BT is None:
            positions_BT = _after(rows, tokens_BT)
        tables = rotary(positions_BT) if rotary is not None else None
        everything = Visibility(causal=False)
        ranges = functools.partial(_ranges, rows, memory, tokens_BT.device)
        return Context(positions_BT, tables, everything, rows.counts, ranges, external_BTE, memory, seed)
    if positions_BT is None:
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
    tables = rotary(positions_BT) if rotary is not None else None
    visibility = _of_segments(segments_BT, layout)
    context = Context(
        positions_BT, tables, visibility, external_BTE=external_BTE, memory=memory, seed=seed, layout=layout
    )
    if window is not None and visibility.packed is not None:
        context.once(("window", window), lambda: visibility.packed_within(window))
    return context


def _rows(cache: Cache | CacheRows, tokens_BT: Tensor, segments_BT: Tensor | None) -> CacheRows:
    """Which tokens go to which slot."""
    batch, tokens = tokens_BT.shape
    if isinstance(cache, CacheRows):
        if (batch, tokens) != (1, sum(cache.counts)) or segments_BT is not None:
            raise ValueError(f"rows of {cache.counts} tokens are packed into one, not {batch} x {tokens}")
        return cache
    if segments_BT is None:
        return cache.all_rows([tokens] * batch)
    padding = segments_BT == PADDING
    if bool((padding[:, :-1] & ~padding[:, 1:]).any()):
        raise ValueError("padding must stand on the right: the first tokens of a row are appended to the cache")
    return cache.all_rows((~padding).sum(1).tolist())


def _after(rows: CacheRows, tokens_BT: Tensor) -> Tensor:
    """The positions of tokens that follow what the slots hold; [1, T] where all rows have the same."""
    batch, tokens = tokens_BT.shape
    if batch > 1 or len(rows.new) == 1:
        starts = rows.lengths[:1] if len(set(rows.lengths)) == 1 else rows.lengths
        offsets_T = torch.arange(tokens, device=tokens_BT.device)
        return numbers_on(starts, tokens_BT.device).unsqueeze(1) + offsets_T
    pairs = zip(rows.lengths, rows.counts, strict=True)
    return numbers_on([[start + i for start, count in pairs for i in range(count)]], tokens_BT.device)


def _ranges(rows: CacheRows, memory: MemoryBank | None, device: torch.device) -> tuple[SlotRange, ...]:
    parts = adjacent(rows.new, rows.cache.lengths, device)
    return tuple(_range(rows.cache, part, memory, device) for part in parts)


def _range(cache: Cache, part: list[NewTokens], memory: MemoryBank | None, device: torch.device) -> SlotRange:
    lengths, count = [cache.lengths[new.slot] for new in part], part[0].count
    starts = numbers_on(lengths[:1] if len(set(lengths)) == 1 else lengths, device)
    positions_NT = starts.unsqueeze(1) + torch.arange(count, device=device)
    where = place(part)
    if len(positions_NT) > 1:  # a mask then hides what lies behind the shorter ones
        cache.pad(where["slots"], max(lengths) + count)
    context = Context(positions_NT, None, _of_slots(lengths, positions_NT), memory=memory)
    return SlotRange(**where, lengths=lengths, context=context)


def _of_segments(segments_BT: Tensor | None, layout: Layout | None) -> Visibility:
    if segments_BT is None or segments_BT.shape[1] == 1:
        return Visibility(causal=True)
    if layout is not None:
        documents = layout.documents
    elif segments_BT.device.type == "meta":
        documents = None
    else:
        documents = documents_of(segments_BT)
    if documents is None or segments_BT.is_cpu:
        return Visibility(causal=True, documents=documents)
    # Spans of unequal length, one call each, are slow on a GPU.
    packed = Packed.of(segments_BT)
    if torch_features.flex_attention(segments_BT.device):
        packed.block_mask()  # now: layers may be compiled
        return Visibility(causal=True, documents=documents, packed=packed)
    return Visibility(causal=True, documents=documents, mask_B1TS=packed.mask_B1TS())


def _of_slots(lengths: list[int], positions_NT: Tensor) -> Visibility:
    """Slots that get equally many tokens, after what they hold."""
    rows, count = positions_NT.shape
    if rows == 1 and count == 1:
        return Visibility(causal=False)
    if rows == 1 and lengths[0] == 0:
        return Visibility(causal=True)
    keys_S = torch.arange(max(lengths) + count, device=positions_NT.device)
    mask_B1TS = (keys_S <= positions_NT.unsqueeze(-1)).unsqueeze(1)
    return Visibility(causal=False, mask_B1TS=mask_B1TS, oldest=min(lengths))
