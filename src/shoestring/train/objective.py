"""What a step minimizes. `objective(hidden_BTD, head, batch) -> Loss`: sums and counts, never means.

Sums add up: over microbatches, packed rows and ranks they give the gradient of one large batch, whatever
the number of ignored labels in each part. The step divides once, by the count of the whole group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from shoestring.data.batch import IGNORED, Batch
from shoestring.nn.head import OutputHead
from shoestring.nn.head_loss import head_loss


@dataclass
class Loss:
    """sum: scalar, nats summed over `count` labels. metrics: further sums for the log, by name."""

    sum: Tensor
    count: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Nats per label."""
        return float(self.sum) / max(self.count, 1)


Objective = Callable[[Tensor, OutputHead, Batch], Loss]


def next_token(hidden_BTD: Tensor, head: OutputHead, batch: Batch) -> Loss:
    """Cross-entropy of each label that is not −100."""
    total, count = head_loss(hidden_BTD, head, batch.labels_BT)
    return Loss(total, count)


def label_count(batch: Batch) -> int:
    """Labels of a batch that count."""
    return int((batch.labels_BT != IGNORED).sum())
