"""One optimizer step's forward and backward passes. `step(microbatches) -> Loss`, gradients left in
`.grad`.

The sums of all microbatches on all ranks are divided by their total count before going backward, so the
gradient does not depend on how the batch was cut. Microbatches run one after another: only one's
activations are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.nn.memory.bank import MemoryBank
from shoestring.train import parallel
from shoestring.train.dropout import microbatch_seeds
from shoestring.train.memories import Memories
from shoestring.train.objective import Loss, Objective, label_count


class Step(Protocol):
    """What the loop needs: forward, backward, and the loss over all ranks."""

    def __call__(self, microbatches: Sequence[Batch]) -> Loss: ...


def forward_loss(
    model: Decoder,
    objective: Objective,
    batch: Batch,
    compute: torch.dtype = torch.float32,
    memory: MemoryBank | None = None,
    seed: int | None = None,
) -> tuple[Loss, dict[str, Tensor]]:
    """The objective's loss, and the decoder's extra losses.

    compute: the dtype that matmuls run in. seed: of dropout.
    """
    kind = batch.tokens_BT.device.type
    with torch.autocast(kind, dtype=compute, enabled=compute != torch.float32):
        remembered = {} if memory is None else {"memory": memory}
        hidden_BTD, aux = model(
            batch.tokens_BT, batch.positions_BT, batch.segments_BT, external_BTE=batch.external_BTE, seed=seed,
            **remembered,
        )  # fmt: skip
        return objective(hidden_BTD, model.head, batch), aux


class ResidentStep:
    """The whole model in memory. compute: the dtype that matmuls run in (autocast); weights stay as they
    are.

    Extra losses that the decoder returns (`aux`) are means over a microbatch: they weigh as much as its
    labels. memories: what the model's memory holds of earlier steps, written once all have gone backward.
    """

    def __init__(
        self,
        model: Decoder,
        objective: Objective,
        compute: torch.dtype = torch.float32,
        memories: Memories | None = None,
    ):
        self.model = model
        self.memories = memories
        self.objective = objective
        self.compute = compute

    def __call__(self, microbatches: Sequence[Batch]) -> Loss:
        counts = [label_count(batch) for batch in microbatches]
        total = int(parallel.sum_numbers(sum(counts))[0])
        summed, metrics = 0.0, dict[str, float]()
        with microbatch_seeds(self.model, len(microbatches)) as seeds:
            for number, (batch, count, seed) in enumerate(zip(microbatches, counts, seeds, strict=True)):
                if not count:
                    continue
                memory = self.memories.of_microbatch(number) if self.memories is not None else None
                loss, aux = forward_loss(self.model, self.objective, batch, self.compute, memory, seed)
                objective = loss.sum + sum(aux.values()) * loss.count
                (objective / total).backward()
                summed += float(objective.detach())
                loss.metrics.update({name: float(extra.detach()) * loss.count for name, extra in aux.items()})
                for name, value in loss.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + value
        if self.memories is not None:
            self.memories.commit()
        parallel.sum_gradients(self.model.parameters())
        summed, *values = parallel.sum_numbers(summed, *metrics.values())
        return Loss(torch.tensor(summed, dtype=torch.float64), total, dict(zip(metrics, values, strict=True)))
