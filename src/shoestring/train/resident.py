"""The resident engine: the whole model in memory, microbatches one after another.

The sums of all microbatches on all ranks are divided by their total count before going backward, so the
gradient does not depend on how the batch was cut. Only one microbatch's activations are held; with
`recompute` "full" only the inputs of its blocks (then the engine is called checkpointed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.models.growth import Growth, become, grown
from shoestring.nn.config import Recompute
from shoestring.nn.memory.bank import MemoryBank
from shoestring.train import parallel
from shoestring.train.dropout import microbatch_seeds
from shoestring.train.engine import LocalEngine
from shoestring.train.exchange import Exchange, exchanging
from shoestring.train.loss_scale import LossScale
from shoestring.train.memory_banks import MemoryBanks
from shoestring.train.objective import Loss, Objective, label_count
from shoestring.train.optimizer_config import OptimizerConfig


def forward_loss(
    model: Decoder,
    objective: Callable[..., Loss],
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
            layout=batch.layout, **remembered,
        )  # fmt: skip
        return objective(hidden_BTD, model.head, batch), aux


class ResidentEngine(LocalEngine):
    """recompute: what going backward computes again; None leaves it to the model.

    in_step: whether all ranks must make the same passes, those without labels too.
    banks: what the model's memory holds of earlier steps, written once all microbatches have gone backward. Extra
    losses that the decoder returns (`aux`) are means over a microbatch: they weigh as much as its labels, and are
    reported under their own names.
    """

    in_step = False

    def __init__(
        self, make: Callable[[], Decoder], compute: torch.dtype = torch.float32, recompute: Recompute | None = None,
        banks: MemoryBanks | None = None, loss_scale: LossScale | None = None,
    ):  # fmt: skip
        super().__init__(make, compute, loss_scale)
        self.name = "checkpointed" if recompute == "full" else "resident"
        self.banks = banks
        self._recompute = recompute

    def load(self) -> Decoder:
        decoder = super().load()
        if self._recompute is not None:
            decoder.activation_checkpointing = self._recompute
        return decoder

    def begin(self, objective: Objective, optimizer: OptimizerConfig, step: int = 0) -> None:
        self._settings = optimizer
        super().begin(objective, optimizer, step)

    def grow(self, layers: int, growth: Growth) -> None:
        """Between steps: stack layers on the model, as `models.growth` does; all is as it was where memory is refused.

        Layers that were there keep the optimizer's state; that of a new one begins as in a fresh run, its step count
        too, which is as good as a copy of what its origin has (docs/experiments.md).
        """
        decoder, optimizer, before = self.decoder, self.optimizer, dict(self.decoder.__dict__)
        highest = self._highest
        deeper = grown(decoder, layers, growth)
        kept: dict[Tensor, Any] = {parameter: optimizer.state[parameter] for parameter in self.parameters()}
        try:
            become(decoder, deeper)
            self.begin(self.objective, self._settings, self.steps)
            self.optimizer.state.update(kept)
        except RuntimeError:
            decoder.__dict__.update(before)
            self.optimizer, self._highest = optimizer, highest
            self.hook_up(self._settings.in_backward)
            raise

    def forward_backward(self, microbatches: Sequence[Batch]) -> Loss:
        counts = [label_count(batch) for batch in microbatches]
        total = int(parallel.sum_shares(sum(counts))[0])
        penalties = self.penalties()
        sums: list[Tensor] = []
        extras: list[tuple[str, Tensor, int]] = []
        metrics: dict[str, float] = {}
        device = self.decoder.embedding.weight.device
        last = max((number for number, count in enumerate(counts) if count), default=-1)
        seeding = microbatch_seeds(self.decoder, len(microbatches))
        with self.together(), seeding as seeds, self.exchanging() as exchange:
            for number, (batch, count, seed) in enumerate(zip(microbatches, counts, seeds, strict=True)):
                if not (count or (self.in_step and total)):
                    continue
                memory = self.banks.of_microbatch(number) if self.banks is not None else None
                loss, aux = self._forward(batch.to(device), memory, seed)
                sums.append(loss.sum.detach())
                extras += [(name, extra.detach(), loss.count) for name, extra in aux.items()]
                for name, value in loss.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + value
                if not self.goes_backward(loss.sum.detach(), total):
                    break
                if exchange is not None and number == last:
                    exchange.begin()
                self.scaled((loss.sum + sum(aux.values()) * loss.count) / total).backward()
                del loss, aux  # before the next microbatch's are made
        if self.banks is not None:
            self.banks.commit()
        # Read when everything is queued: reading one waits for a GPU.
        for name, extra, weight in extras:
            metrics[name] = metrics.get(name, 0.0) + float(extra) * weight
        return self.finish(sum(map(float, sums), 0.0), total, metrics, penalties)

    def exchanging(self) -> AbstractContextManager[Exchange | None]:
        """Around the passes backward: at its end gradients are sums over all ranks."""
        return exchanging(self.decoder.parameters())

    def _forward(self, batch: Batch, memory: MemoryBank | None, seed: int | None) -> tuple[Loss, dict[str, Tensor]]:
        return forward_loss(self.decoder, self.objective, batch, self.compute, memory, seed)
