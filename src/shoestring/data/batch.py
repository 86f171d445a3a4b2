"""One microbatch of token sequences, as every objective, model and engine takes it.

Labels are already shifted: labels_BT[b, t] is the token after tokens_BT[b, t], or -100 where there is none.
Positions restart with each document; segments number the documents of a row, and -1 marks padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shoestring.core.device import to_device

IGNORED = -100
PADDING_SEGMENT = -1

Span = tuple[int, int, int]  # row, first token, end


@dataclass(frozen=True)
class Layout:
    """What a pass asks of a batch in numbers, read on the CPU before the batch goes to a GPU: each number read from
    there would wait for all of the GPU's work.

    documents: spans that cover all tokens, None where every row is one. positions_BT: the batch's. counted_N: places of
    the labels that count in the flattened batch, on the batch's device, None when all do; count: how many.
    """

    documents: tuple[Span, ...] | None
    positions_BT: np.ndarray
    counted_N: torch.Tensor | None
    count: int


@dataclass
class Batch:
    """The four arrays _BT are int64 [B, T]; external_BTE: float [B, T, E] or None.

    layout: of a batch that is not on the CPU.
    """

    tokens_BT: torch.Tensor
    labels_BT: torch.Tensor
    positions_BT: torch.Tensor
    segments_BT: torch.Tensor
    external_BTE: torch.Tensor | None = None
    layout: Layout | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, which is not waited for."""
        device = torch.device(device)
        layout, external = self.layout, self.external_BTE
        if layout is None and device.type != "cpu" and self.tokens_BT.is_cpu:
            layout = layout_of(self)
        if layout is not None and layout.counted_N is not None:
            layout = replace(layout, counted_N=to_device(layout.counted_N, device))
        return Batch(
            to_device(self.tokens_BT, device),
            to_device(self.labels_BT, device),
            to_device(self.positions_BT, device),
            to_device(self.segments_BT, device),
            None if external is None else to_device(external, device),
            layout,
        )


def layout_of(batch: Batch) -> Layout:
    """Of a batch on the CPU."""
    counts_N = batch.labels_BT.flatten() != IGNORED
    count = int(counts_N.sum())
    counted_N = None if count == counts_N.numel() else counts_N.nonzero().flatten()
    return Layout(documents_of(batch.segments_BT), batch.positions_BT.numpy(), counted_N, count)


def documents_of(segments_BT: torch.Tensor) -> tuple[Span, ...] | None:
    """(row, first token, end) of every run of equal segments; None where every row is one run. Waits for a GPU."""
    borders = segments_BT[:, 1:] != segments_BT[:, :-1]
    if not bool(borders.any()):
        return None
    spans = []
    for row, cuts in enumerate(borders.cpu()):
        edges = [0, *(cuts.nonzero().flatten() + 1).tolist(), segments_BT.shape[1]]
        spans.extend((row, start, end) for start, end in itertools.pairwise(edges))
    return tuple(spans)


def one_row(batches: Sequence[Batch]) -> Batch:
    """Batches as one long row [1, tokens of all]."""

    def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.flatten(0, 1) for tensor in tensors]).unsqueeze(0)

    external = [batch.external_BTE for batch in batches]
    return Batch(
        joined([batch.tokens_BT for batch in batches]),
        joined([batch.labels_BT for batch in batches]),
        joined([batch.positions_BT.expand_as(batch.tokens_BT) for batch in batches]),
        joined([batch.segments_BT for batch in batches]),
        None if external[0] is None else joined([vectors for vectors in external if vectors is not None]),
        _joined_layouts(batches),
    )


def _joined_layouts(batches: Sequence[Batch]) -> Layout | None:
    layouts = [batch.layout for batch in batches]
    if any(layout is None for layout in layouts):
        return None
    documents: list[Span] = []
    places, positions, offset = [], [], 0
    for batch, layout in zip(batches, layouts, strict=True):
        assert layout is not None
        rows, tokens = batch.tokens_BT.shape
        spans = layout.documents or tuple((row, 0, tokens) for row in range(rows))
        documents += [(0, offset + row * tokens + start, offset + row * tokens + end) for row, start, end in spans]
        counted = layout.counted_N
        if counted is None:
            counted = torch.arange(rows * tokens, device=batch.tokens_BT.device)
        places.append(counted + offset)
        positions.append(np.broadcast_to(layout.positions_BT, (rows, tokens)).reshape(-1))
        offset += rows * tokens
    count = sum(layout.count for layout in layouts if layout is not None)
    return Layout(
        tuple(documents), np.concatenate(positions)[None], None if count == offset else torch.cat(places), count
    )
