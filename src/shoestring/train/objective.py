"""What a step minimizes. `objective(hidden_BTD, head, batch) -> Loss`: sums and counts, never means.

Sums add up: over microbatches, packed rows and ranks they give the gradient of one large batch, whatever
the number of ignored labels in each part. The engine divides once, by the count of the whole group.
What pulls at the weights beside the labels (staying near a base, following a teacher) is a penalty of the objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from shoestring.data.batch import IGNORED, Batch
from shoestring.nn.head import OutputHead
from shoestring.nn.head_loss import head_loss


@dataclass
class Loss:
    """sum: scalar, nats summed over `count` labels. metrics: further losses for the log by name, summed likewise."""

    sum: Tensor
    count: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Nats per label."""
        return float(self.sum.detach()) / max(self.count, 1)


@dataclass
class Penalty:
    """A term beside the labels' loss, with a graph: `weight` · `value`, the value a mean. Logged under its name."""

    name: str
    value: Tensor
    weight: float = 1.0


class Objective(Protocol):
    """Called for each microbatch; `penalties` once for each step, before them."""

    def __call__(self, hidden_BTD: Tensor, head: OutputHead, batch: Batch) -> Loss: ...

    def penalties(self, step: int) -> Iterator[Penalty]:
        """Those of optimizer step number `step` (the first is 0), each to go backward before the next is made."""
        ...


class NextToken:
    """Cross-entropy of each label that is not −100."""

    def __call__(self, hidden_BTD: Tensor, head: OutputHead, batch: Batch) -> Loss:
        total, count = head_loss(hidden_BTD, head, batch.labels_BT, batch.layout)
        return Loss(total, count)

    def penalties(self, step: int) -> Iterator[Penalty]:
        return iter(())


next_token = NextToken()


def label_count(batch: Batch) -> int:
    """Labels of a batch that count."""
    if batch.layout is not None:
        return batch.layout.count
    return int((batch.labels_BT != IGNORED).sum())
