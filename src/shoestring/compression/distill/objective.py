"""What a distillation minimizes: nearness to the teacher's next-token distributions, and a share of the labels' own.

Only labels that count are compared, so that of rows the mask says where. What the student wrote itself is compared with
the teacher alone: its labels are its own. Logged beside the loss: `divergence` at the recipe's temperature, and
`cross_entropy`, which is comparable with the held-out loss.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from shoestring.compression.distill.lesson import Lesson
from shoestring.compression.distill.loss import follow_loss
from shoestring.compression.distill.teacher import Teacher, counted_rows
from shoestring.data.batch import Batch
from shoestring.nn.head import OutputHead
from shoestring.train.objective import Loss, Penalty


class Distilling:
    """An objective with a teacher. labels: share of their cross-entropy."""

    def __init__(self, teacher: Teacher, labels: float = 0.0):
        self.teacher, self._labels = teacher, labels

    def __call__(self, hidden_BTD: Tensor, head: OutputHead, batch: Batch) -> Loss:
        rows_ND = counted_rows(hidden_BTD, batch)
        labels_N = counted_rows(batch.labels_BT.unsqueeze(-1), batch).squeeze(-1)
        share = 0.0 if isinstance(batch, Lesson) and batch.own else self._labels
        total, divergence, crossed = follow_loss(rows_ND, head, self.teacher.target(batch), labels_N, share)
        metrics = {"divergence": float(divergence), "cross_entropy": float(crossed)}
        return Loss(total, len(labels_N), metrics)

    def penalties(self, step: int) -> Iterator[Penalty]:
        return iter(())
