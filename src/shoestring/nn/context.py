"""What a block may read besides its input: made once for a forward pass, shared by every layer.

Holds the rotary tables, who may see whom (`Visibility`), and where each row's new tokens go in the cache.
A block reads nothing else, so that one block can be built, filled and run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shoestring.nn.cache import Cache
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.rope import RotaryEmbedding, RotaryTables

PADDING = -1  # the segment of tokens that are not there


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, in the cheapest form that says it.

    mask_B1TS: True where query t of row b sees key s; None when `causal` says it all, or when every key is seen.
    documents: (row, start, end) spans that cover all tokens, each causal within itself; None for one span per row.
    Where both are given they say the same, and a kind takes the one that suits it.
    """

    causal: bool
    mask_B1TS: Tensor | None = None
    documents: tuple[tuple[int, int, int], ...] | None = None


@dataclass(frozen=True)
class Context:
    """positions_BT: int64. counts: tokens that each row appends to the cache, empty without one.

    seed: from which every layer's dropout is drawn; None leaves it to torch's global generator.
    """

    positions_BT: Tensor
    rotary: RotaryTables | None
    visibility: Visibility
    counts: list[int] = field(default_factory=list)
    external_BTE: Tensor | None = None
    memory: MemoryBank | None = None
    seed: int | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

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
    cache: Cache | None = None,
    external_BTE: Tensor | None = None,
    memory: MemoryBank | None = None,
    seed: int | None = None,
) -> Context:
    """Without a cache, tokens see earlier tokens of their own segment; with one, also all that their row holds.

    segments_BT: any integers, equal within a document; PADDING marks the unused tail of a row. With a cache, rows may
    differ only in their padding: a cache row is one document. Raises ValueError for tokens behind padding there.
    """
    batch, tokens = tokens_BT.shape
    if cache is None:
        if positions_BT is None:
            positions_BT = torch.arange(tokens, device=tokens_BT.device).unsqueeze(0)
        visibility = _of_segments(segments_BT)
        counts: list[int] = []
    else:
        counts = [tokens] * batch
        if segments_BT is not None:
            padding = segments_BT == PADDING
            if bool((padding[:, :-1] & ~padding[:, 1:]).any()):
                raise ValueError("padding must stand on the right: the first tokens of a row are appended to the cache")
            counts = (~padding).sum(1).tolist()
        cache.require(counts)
        if positions_BT is None:
            positions_BT = _after(cache.lengths, tokens, tokens_BT.device)
        visibility = _of_cache(cache.lengths, counts, tokens, tokens_BT.device)
    tables = rotary(positions_BT) if rotary is not None else None
    if memory is not None:
        memory.begin()
    return Context(positions_BT, tables, visibility, counts, external_BTE, memory, seed)


def _after(lengths: list[int], tokens: int, device: torch.device) -> Tensor:
    starts = torch.tensor(sorted(set(lengths)) if len(set(lengths)) == 1 else lengths, device=device)
    return starts.unsqueeze(1) + torch.arange(tokens, device=device)


def _of_segments(segments_BT: Tensor | None) -> Visibility:
    if segments_BT is None or segments_BT.shape[1] == 1:
        return Visibility(causal=True)
    borders = segments_BT[:, 1:] != segments_BT[:, :-1]
    if segments_BT.device.type == "meta" or not bool(borders.any()):
        return Visibility(causal=True)
    spans = []
    tokens = segments_BT.shape[1]
    for row, cuts in enumerate(borders.cpu()):
        edges = [0, *(cuts.nonzero().flatten() + 1).tolist(), tokens]
        spans.extend((row, start, end) for start, end in zip(edges[:-1], edges[1:], strict=True))
    mask = None
    if segments_BT.device.type != "cpu":  # spans of unequal length are slow on a GPU
        documents_BT = torch.nn.functional.pad(borders.cumsum(1), (1, 0))
        mask = (documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)).tril().unsqueeze(1)
    return Visibility(causal=True, mask_B1TS=mask, documents=tuple(spans))


def _of_cache(lengths: list[int], counts: list[int], tokens: int, device: torch.device) -> Visibility:
    uniform = len(set(lengths)) == 1 and all(count == tokens for count in counts)
    if uniform and tokens == 1:
        return Visibility(causal=False)
    if uniform and lengths[0] == 0:
        return Visibility(causal=True)
    longest = max(length + count for length, count in zip(lengths, counts, strict=True))
    last_BT = _after(lengths, tokens, device)
    keys_S = torch.arange(longest, device=device)
    return Visibility(causal=False, mask_B1TS=(keys_S <= last_BT.unsqueeze(-1)).unsqueeze(1))
