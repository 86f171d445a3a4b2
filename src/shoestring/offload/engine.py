"""The streamed engine: one optimizer step reads every layer twice, however many microbatches there are.

Up: a layer is brought in once and runs every microbatch without a graph; only inputs of layers are kept. At the top the
head passes by once for the loss of all microbatches. Down: a layer is brought in once, runs each microbatch again from
its kept input, with a graph, and goes backward. The same loss and gradients as `train.resident.ResidentEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shoestring.data.batch import Batch, one_row
from shoestring.nn.backward import backward_from
from shoestring.nn.context import Context, make_context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.replay import Replay
from shoestring.nn.stack import Aux, draw_at
from shoestring.offload.inputs import Inputs, Kept
from shoestring.offload.model import StreamedDecoder
from shoestring.train import parallel
from shoestring.train.dropout import microbatch_seeds
from shoestring.train.engine import LocalEngine
from shoestring.train.objective import Loss, label_count


class StreamedEngine(LocalEngine):
    """spill: a folder on whose disk the inputs of layers are kept; None keeps them in memory."""

    name = "streamed"
    decoder: StreamedDecoder

    def __init__(
        self, make: Callable[[], StreamedDecoder], compute: torch.dtype = torch.float32, spill: Path | None = None
    ):
        super().__init__(make, compute)
        self.spill = spill
        self._inputs: Inputs | None = None

    def forward_backward(self, microbatches: Sequence[Batch]) -> Loss:
        self.decoder.stream.store.source.check()
        if self._inputs is None:
            self._inputs = Inputs(self.spill)
        self._inputs.begin()
        counts = [label_count(batch) for batch in microbatches]
        total = int(parallel.sum_shares(sum(counts))[0])
        penalties = self.penalties()
        summed, metrics = 0.0, dict[str, float]()
        device = self.decoder.embedding.weight.device
        with parallel.together(), microbatch_seeds(self.decoder, len(microbatches)) as seeds:
            parts = [
                _Part(self.decoder, batch.to(device), count, seed)
                for batch, count, seed in zip(microbatches, counts, seeds, strict=True)
                if count
            ]
            with torch.autocast(device.type, dtype=self.compute, enabled=self.compute != torch.float32):
                self._up(parts)
                if parts:
                    loss = self._top(parts, total)
                    summed, metrics = float(loss.sum), dict(loss.metrics)
                if self.goes_backward(summed, total):
                    self._down(parts, total)
        for part in parts:
            for name, values in part.aux.items():
                metrics[name] = metrics.get(name, 0.0) + sum(map(float, values)) * part.count
        parallel.sum_gradients(self.decoder.parameters())
        return self.finish(summed, total, metrics, penalties)

    def close(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        self.decoder.close()
        super().close()

    @torch.no_grad()
    def _up(self, parts: list[_Part]) -> None:
        assert self._inputs is not None
        for position, index in enumerate(self.decoder.stack.order):
            self.decoder.stack.load(position)
            for part in parts:
                part.kept.append(self._inputs.keep(part.x_BTD))
                part.choices.append(Replay())
                part.x_BTD, aux = part.through(self.decoder.blocks[index], position, part.x_BTD)
                part.add(aux)

    def _top(self, parts: list[_Part], total: int) -> Loss:
        """The loss of all parts; leaves in each the gradient of its last layer's output."""
        ends = [part.x_BTD.requires_grad_() for part in parts]
        hidden, batch = [self.decoder.norm(end) for end in ends], parts[0].batch
        if len(parts) > 1:  # as one long row, so that the head is read once
            hidden, batch = [_row(hidden)], one_row([part.batch for part in parts])
        loss = self.objective(hidden[0], self.decoder.head, batch)
        gradients = torch.autograd.grad(loss.sum / total, ends)
        for part, gradient in zip(parts, gradients, strict=True):
            part.x_BTD, part.gradient = gradient.new_empty(0), gradient
        return replace(loss, sum=loss.sum.detach())  # its graph would hold the last layer's outputs

    def _down(self, parts: list[_Part], total: int) -> None:
        assert self._inputs is not None
        order = self.decoder.stack.order
        for position in range(len(order) - 1, -1, -1):
            self.decoder.stack.load(position, down=True)
            for part in parts:
                self._down_one(part, position, self.decoder.blocks[order[position]], total)

    def _down_one(self, part: _Part, position: int, block: torch.nn.Module, total: int) -> None:
        """A layer again for one microbatch, with a graph, and backward: nothing of it is left for the next one."""
        assert self._inputs is not None
        entering = self._inputs.take(part.kept.pop()).requires_grad_(position > 0)
        y_BTD, aux = part.through(block, position, entering)
        outputs, gradients = [y_BTD], [part.gradient]
        for extra in aux.values():
            outputs.append(extra)
            gradients.append(torch.full_like(extra, part.count / total))
        if y_BTD.requires_grad:
            backward_from(outputs, gradients)
        if entering.grad is not None:
            part.gradient = entering.grad


class _Part:
    """A microbatch on its way: kept holds the inputs of the layers that it went through."""

    def __init__(self, model: StreamedDecoder, batch: Batch, count: int, seed: int | None):
        self.batch, self.count = batch, count
        self.context: Context = make_context(
            batch.tokens_BT, model.rotary, batch.positions_BT, batch.segments_BT, None, batch.external_BTE, None, seed,
            batch.layout,
        )  # fmt: skip
        with torch.no_grad():
            x_BTD = model.embedding(batch.tokens_BT)
            for add in model.inputs.values():
                x_BTD = add(x_BTD, self.context)
        self.x_BTD: Tensor = x_BTD
        self.gradient: Tensor = x_BTD.new_empty(0)  # of the loss for the output of the layer at hand
        self.kept: list[Kept] = []
        self.choices: list[Replay] = []
        self.aux: dict[str, list[Tensor]] = {}  # read when all is queued: reading one waits for a GPU

    def through(self, block: torch.nn.Module, position: int, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        draw_at(self.context, position)
        with self.choices[position].run(), recomputing_nothing():
            return block(x_BTD, self.context, None)

    def add(self, aux: Aux) -> None:
        for name, value in aux.items():
            self.aux.setdefault(name, []).append(value)


def _row(tensors: list[Tensor]) -> Tensor:
    """[1, tokens of all, ...]."""
    return torch.cat([tensor.flatten(0, 1) for tensor in tensors]).unsqueeze(0)
