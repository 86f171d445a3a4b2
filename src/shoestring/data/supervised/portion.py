"""What a run learns from: examples, and how many rows of which length one optimizer step takes of them."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.data.supervised.batches import padded_length
from shoestring.data.supervised.dataset import SupervisedDataset


@dataclass(frozen=True, kw_only=True)
class Portion:
    """rows: of one optimizer step, in this process; length: tokens of a row. lengths: which share of the rows
    has each length, once padded, the shortest first."""

    dataset: SupervisedDataset
    rows: int
    length: int
    lengths: tuple[float, ...]

    @property
    def padded(self) -> int:
        """Tokens of a row as it is computed."""
        return padded_length(self.length)

    @property
    def held_out(self) -> bool:
        """Whether there are examples to measure with."""
        return len(self.dataset.indices("validation")) > 0
