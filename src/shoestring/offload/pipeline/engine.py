"""The pipeline engine: one optimizer step on a model whose layers lie on several machines.

Every machine is given the same microbatches and computes the layers that it holds of each; hidden states go up, their
gradients down, a microbatch behind the other (`offload.pipeline.schedule`). The last divides by the count of all labels
before going backward, so loss and gradients are those of `train.resident.ResidentEngine` on the whole model. Gradients
are clipped by the norm over all machines, and each moves its own weights.

A block that stands at positions on several machines is on each of them: its gradients are summed, and after a step all
take the weights of the first that has it, so that they stay equal to the last bit whatever the processors.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.nn.backward import backward_from
from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.stack import Aux
from shoestring.offload.pipeline.gather import Gathered, gathered, gathered_numbers, gathered_tensors
from shoestring.offload.pipeline.model import SplitDecoder
from shoestring.offload.pipeline.parts import Stream
from shoestring.offload.pipeline.schedule import turns
from shoestring.offload.pipeline.wire import BACKWARD, FORWARD, Inbox
from shoestring.train import parallel
from shoestring.train.dropout import microbatch_seeds
from shoestring.train.engine import EngineState, LocalEngine, StepResult
from shoestring.train.loss_scale import LossScale
from shoestring.train.objective import Loss, NextToken, Objective, label_count
from shoestring.train.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Times:
    """Seconds of a step: at work, waiting for other machines, and while tensors were under way. sent: bytes."""

    work: float = 0.0
    waiting: float = 0.0
    network: float = 0.0
    sent: int = 0

    def plus(self, other: Times) -> Times:
        return Times(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class _Flight:
    """A microbatch on its way through the layers here."""

    batch: Batch
    count: int
    seed: int | None
    context: Context | None = None
    entered: Stream = ()
    left: Stream = ()
    aux: Aux = field(default_factory=dict)
    loss: Loss | None = None


class PipelineEngine(LocalEngine):
    """streams: whether the layers here come from disk. times: of the last step."""

    decoder: SplitDecoder

    def __init__(
        self, make: Callable[[], SplitDecoder], compute: torch.dtype = torch.float32,
        recompute: Recompute | None = None, loss_scale: LossScale | None = None, streams: bool = False,
    ):  # fmt: skip
        super().__init__(make, compute, loss_scale)
        self.name = "streamed" if streams else "checkpointed" if recompute == "full" else "resident"
        self.times = Times()
        self._recompute = recompute
        self._shared: list[tuple[Any, int, list[torch.nn.Parameter]]] = []  # group, owner, and what they share
        self._groups: dict[int, Any] = {}
        self._written: Gathered | None = None

    def load(self) -> SplitDecoder:
        decoder = super().load()
        assert isinstance(decoder, SplitDecoder)
        if self._recompute is not None:
            decoder.activation_checkpointing = self._recompute
        return decoder

    @classmethod
    def around(cls, decoder: Decoder, objective: Objective, *arguments: Any, **options: Any) -> Self:
        engine = super().around(decoder, objective, *arguments, **options)
        engine.hold_together()
        return engine

    def begin(self, objective: Objective, optimizer: OptimizerConfig, step: int = 0) -> None:
        if not isinstance(objective, NextToken):
            raise ConfigError("over several machines only the labels' loss is trained, nothing beside it")
        super().begin(objective, optimizer, step)
        self.hold_together()

    def hold_together(self) -> None:
        """Learn what the others hold: once it is settled what is trained."""
        place = self.decoder.place
        trains = any(p.requires_grad for p in self.decoder.parameters()) or self.decoder.lends or self._borrows
        counts = parallel.sum_numbers(*(float(trains and rank == place.rank) for rank in range(place.stages)))
        self._takes_gradients = any(counts[: place.rank + 1])  # from the machine behind
        self._gives_gradients = any(counts[: place.rank])  # to the one before
        self._shared = []
        for index, ranks in place.holders(self.decoder.part.order).items():
            if index not in self._groups:
                self._groups[index] = dist.new_group(ranks)  # by all, whether they are in it or not
            if place.rank in ranks:
                trained = [p for p in self.decoder.blocks[index].parameters() if p.requires_grad]
                self._shared.append((self._groups[index], ranks[0], trained))

    @property
    def _borrows(self) -> bool:
        return self.decoder.place.is_first and hasattr(self.decoder.embedding, "borrow")

    def forward_backward(self, microbatches: Sequence[Batch]) -> Loss:
        decoder, wire, place = self.decoder, self.decoder.wire, self.decoder.place
        self._written = None  # what other machines had at the last checkpoint
        started, before = time.perf_counter(), (wire.waiting, wire.network, wire.sent)
        counts = [label_count(batch) for batch in microbatches]
        total, device = sum(counts), decoder.embedding.weight.device
        wire.begin()
        metrics: dict[str, float] = {}
        with parallel.together(), microbatch_seeds(decoder, len(microbatches)) as seeds:
            flights = [
                _Flight(batch.to(device), count, seed)
                for batch, count, seed in zip(microbatches, counts, seeds, strict=True)
                if count
            ]
            try:
                with torch.autocast(device.type, dtype=self.compute, enabled=self.compute != torch.float32):
                    self._run(flights, total)
                done = time.perf_counter()
            except RuntimeError:
                wire.abort(rank for rank in range(place.stages) if rank != place.rank)
                raise
        wire.settle()  # not before it is known that all took what was sent
        summed = 0.0
        for flight in flights:
            for name, extra in flight.aux.items():
                metrics[name] = metrics.get(name, 0.0) + float(extra) * flight.count
            if flight.loss is not None:
                summed += float(flight.loss.sum)
                for name, value in flight.loss.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + value
        waiting, network, sent = wire.waiting - before[0], wire.network - before[1], wire.sent - before[2]
        found = self.finish(summed, total, metrics, {})
        work = done - started - waiting - network
        self.times = Times(work, waiting + time.perf_counter() - done, network, sent)
        return found

    def _run(self, flights: list[_Flight], total: int) -> None:
        decoder, wire, place = self.decoder, self.decoder.wire, self.decoder.place
        if not flights:
            return
        tokens = [flight.batch.tokens_BT for flight in flights]
        decoder.lend(tokens)
        coming = [decoder.passing(each) for each in tokens]
        entering = None if place.is_first else Inbox(wire, coming, place.rank - 1, FORWARD)
        returning = None
        if self._takes_gradients and not place.is_last:
            returning = Inbox(wire, coming, place.rank + 1, BACKWARD)
        for kind, number in turns(place.rank, place.stages, len(flights)):
            flight = flights[number]
            if kind == "forward":
                with torch.set_grad_enabled(self._takes_gradients):
                    self._forward(flight, entering)
            elif self._takes_gradients:
                self._backward(flight, returning, total)
        if self._takes_gradients:
            decoder.return_gradients(tokens)

    def _forward(self, flight: _Flight, entering: Inbox | None) -> None:
        decoder, batch, place = self.decoder, flight.batch, self.decoder.place
        context = decoder.context(
            batch.tokens_BT, batch.positions_BT, batch.segments_BT, None, batch.external_BTE, None, flight.seed,
            batch.layout,
        )  # fmt: skip
        if entering is None:
            stream = decoder.enter(batch.tokens_BT, context)
        else:
            stream = tuple(each.requires_grad_(self._gives_gradients) for each in entering.take())
            flight.entered = stream
        flight.left, flight.aux = decoder.part(decoder.blocks, stream, context, None, decoder.activation_checkpointing)
        if place.is_last:
            flight.loss = self.objective(decoder.leave(flight.left), decoder.head, batch)
            flight.left = ()
        else:
            decoder.wire.send(flight.left, place.rank + 1, FORWARD)
            if not self._takes_gradients:
                flight.left = ()

    def _backward(self, flight: _Flight, returning: Inbox | None, total: int) -> None:
        place, share = self.decoder.place, flight.count / total
        outputs: list[Tensor] = []
        gradients: list[Tensor | None] = []
        if flight.loss is not None:
            outputs.append(self.scaled(flight.loss.sum / total))
            gradients.append(None)
        elif returning is not None:
            outputs += flight.left
            gradients += returning.take()
        for extra in flight.aux.values():
            outputs.append(self.scaled(extra * share))
            gradients.append(None)
        backward_from(outputs, gradients)
        if self._gives_gradients:
            back = [torch.zeros_like(each) if each.grad is None else each.grad for each in flight.entered]
            self.decoder.wire.send(back, place.rank - 1, BACKWARD)
        flight.entered = flight.left = ()
        flight.aux = {name: extra.detach() for name, extra in flight.aux.items()}
        if flight.loss is not None:
            flight.loss.sum = flight.loss.sum.detach()

    # Over all machines

    def finish(self, summed: float, count: int, metrics: dict[str, float], penalties: dict[str, float]) -> Loss:
        for group, _, parameters in self._shared:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                with parallel.telling_of_losses():
                    dist.all_reduce(parameter.grad, group=group)
        return super().finish(summed, count, metrics, penalties)

    def clip(self, parameters: list[torch.nn.Parameter], limit: float | None) -> float:
        others = {id(p) for _, owner, shared in self._shared if owner != self.decoder.place.rank for p in shared}
        own = [p.grad for p in parameters if p.grad is not None and id(p) not in others]
        with parallel.together():  # or one that fails would wait for the others at another place
            squared = float(torch.nn.utils.get_total_norm(own)) ** 2 if own else 0.0
        norm = math.sqrt(parallel.sum_numbers(squared)[0])
        if limit is not None and parameters:
            known = torch.tensor(norm, dtype=parameters[0].dtype)
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, known, foreach=True)
        return norm

    def optimizer_step(self, clip: float | None, rate: float) -> StepResult:
        with parallel.together() if self._groups else contextlib.nullcontext():
            result = super().optimizer_step(clip, rate)
        if not result.skipped:
            for group, owner, parameters in self._shared:
                for parameter in parameters:
                    with parallel.telling_of_losses():
                        dist.broadcast(parameter.data, owner, group=group)
        return result

    def state(self) -> EngineState:
        """Of all machines, on the first; it keeps the weights of all for `whole` as well. All take part."""
        own = super().state()
        self._written = gathered(self.decoder)
        return EngineState(gathered_tensors(own.tensors), gathered_numbers(own.numbers))

    def state_bytes(self) -> int:
        return super().state_bytes() * self.decoder.place.stages

    def whole(self) -> Decoder:
        assert self._written is not None
        return self._written.whole(self.decoder)

    def close(self) -> None:
        self.decoder.close()
        super().close()
