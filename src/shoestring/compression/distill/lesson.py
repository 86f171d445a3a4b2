"""A batch with what the teacher says of it, and a stream whose batches have that.

    examples -> (written by the student) -> looked at by the teacher, a step's microbatches at a time -> the loop
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoestring.compression.distill.divergence import Drawn
from shoestring.data.batch import Batch
from shoestring.train.loop import Stream


@dataclass
class Lesson(Batch):
    """told: the teacher's hidden states [N, D] at the labels that count, or tokens drawn from what it predicts there;
    None where the objective asks it itself. own: whether the student wrote it, so that its labels teach nothing."""

    told: Tensor | Drawn | None = None
    own: bool = False

    def to(self, device: torch.device | str) -> Lesson:
        moved, told = super().to(device), self.told
        return lesson(moved, None if told is None else told.to(torch.device(device)), self.own)


def lesson(batch: Batch, told: Tensor | Drawn | None = None, own: bool | None = None) -> Lesson:
    """The same batch with what is told of it. own: None leaves it as it is."""
    if own is None:
        own = isinstance(batch, Lesson) and batch.own
    return Lesson(
        batch.tokens_BT, batch.labels_BT, batch.positions_BT, batch.segments_BT, batch.external_BTE, batch.layout,
        told, own,
    )  # fmt: skip


class Taught:
    """look: takes the microbatches of one optimizer step, and gives them back with what is told. microbatches: of a
    step. The position is told between steps alone, as the loop asks for it."""

    def __init__(self, stream: Stream, microbatches: int, look: Callable[[list[Batch]], list[Batch]]):
        self._stream, self._microbatches, self._look = stream, microbatches, look
        self._group: list[Batch] = []

    def __iter__(self) -> Taught:
        return self

    def __next__(self) -> Batch:
        if not self._group:
            self._group = self._look([next(self._stream) for _ in range(self._microbatches)])
        return self._group.pop(0)

    def state(self) -> dict[str, Any]:
        assert not self._group, "the position is of whole steps"
        return self._stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._group = []
        self._stream.restore(state)
