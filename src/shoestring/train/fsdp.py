"""A model in parts, one in each process: PyTorch's FSDP2 (`fully_shard`, arXiv 2304.11277) behind the engine protocol.

Each parameter [n, ...] is cut by rows into one part for each rank, and so are its gradient and its moments. A block is
whole only while it computes; embedding, final norm and head stay whole for the length of a step, since the loss needs
the head beside the pass. Gradients are reduce-scattered as sums, after each microbatch: to keep them whole until the
last one would take what the parts save.

The optimizer knows plain local tensors, the parts: what moves numbers one by one moves them as it would whole ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.core.errors import ConfigError, RunError
from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.models.weights import TensorFile
from shoestring.train import parallel
from shoestring.train.engine import EngineState
from shoestring.train.exchange import Exchange
from shoestring.train.objective import Loss, Objective
from shoestring.train.optimizer_config import OptimizerConfig
from shoestring.train.parallel_config import why_whole
from shoestring.train.recipe import RunRecipe
from shoestring.train.resident import ResidentEngine
from shoestring.train.sharded_files import ShardedFiles, write_shard


def engine_of(recipe: RunRecipe) -> type[ResidentEngine]:
    """What `parallel.kind` asks for; a single process has the whole model in any case."""
    return FsdpEngine if recipe.parallel.kind == "fsdp" and parallel.is_parallel() else ResidentEngine


class FsdpEngine(ResidentEngine):
    """A resident or checkpointed engine whose model is divided among all processes.

    Every process makes the same passes, those without labels too, because each pass gathers weights.
    """

    in_step = True
    why_torn = "the model lies in parts, and other processes are in the middle of the step"

    def load(self) -> Decoder:
        """Raises ConfigError for kinds of models that cannot be divided."""
        decoder = super().load()
        if why := why_whole(decoder.config):
            raise ConfigError(f"parallel.kind fsdp: {why}", hint="take parallel.kind ddp")
        self.parts = Parts(decoder, self.compute)
        return decoder

    def begin(self, objective: Objective, optimizer: OptimizerConfig, step: int = 0) -> None:
        super().begin(objective, optimizer, step)
        self._stuck = False
        self.parts.localize(self.optimizer)

    @property
    def torn(self) -> bool:
        return self._stuck

    def exchanging(self) -> contextlib.AbstractContextManager[Exchange | None]:
        return contextlib.nullcontext()  # FSDP does it

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # the others are in the middle of gathering, and cannot be told

    def forward_backward(self, microbatches: Sequence[Batch]) -> Loss:
        try:
            return super().forward_backward(microbatches)
        except RuntimeError:
            self._stuck = True
            raise

    def optimizer_step(self, clip: float | None, rate: float) -> Any:
        self.parts.take_gradients()
        return super().optimizer_step(clip, rate)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Of all parts together."""
        own = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        return torch.tensor(math.sqrt(parallel.sum_numbers(own * own)[0]), device=self.parts.device)

    def abandon(self) -> None:
        self.parts.settle()
        super().abandon()
        for part in self.parts.local:
            part.grad = None

    def names(self) -> dict[int, str]:
        return {id(part): name for part, name in zip(self.parts.local, self.parts.names, strict=True)}

    def state(self) -> EngineState:
        """Of this rank's parts. `write` has all ranks write theirs, each to a file of its own."""
        self.parts.settle()
        own = super().state()
        self._own = own.tensors
        helps: parallel.Helps = {**self.parts.helps, "moments": self._write_own}
        return EngineState(own.tensors, own.numbers, lambda folder: parallel.ask(helps, "moments", str(folder)), helps)

    def _write_own(self, folder: str) -> None:
        """Where one rank fails the first one raises RunError, for all."""
        reason = ""
        try:
            firsts = dict(zip(self.parts.names, self.parts.firsts, strict=True))
            placed = {
                key: (tensor, firsts[key.rpartition("/")[0]] if tensor.ndim else 0)
                for key, tensor in self._own.items()
                if tensor.ndim or parallel.rank() == 0  # a count of steps is the same on all
            }
            write_shard(Path(folder), parallel.rank(), parallel.world_size(), placed)
        except OSError as error:
            reason = error.strerror or str(error)
        reason = parallel.first_reason(reason)
        if reason and parallel.rank() == 0:
            raise RunError(reason, folder)

    def restored(self, file: TensorFile | ShardedFiles, key: str, parameter: Tensor, old: Tensor | None) -> Tensor:
        if old is None or old.ndim == 0:
            return super().restored(file, key, parameter, old)
        number = self.parts.number(parameter)
        info, whole = file.infos[key], tuple(self.parts.weights[number].shape)
        if info.shape != whole or not info.dtype.is_floating_point:
            kind = str(info.dtype).removeprefix("torch.")
            raise RunError(f"{key} is {kind} {list(info.shape)}, expected {list(whole)} of floats", str(file.path))
        file.read_part(key, self.parts.firsts[number], old)
        return old


class Parts:
    """What of a decoder lies in this process. weights: its parameters, divided; local: the part of each, by the same
    numbers; firsts: the first row of each; names: in the decoder."""

    def __init__(self, decoder: Decoder, compute: torch.dtype):
        self.decoder, self.compute = decoder, compute
        self.device = decoder.embedding.weight.device
        _divide(decoder, compute)
        named = list(decoder.named_parameters())
        self.names = [name for name, _ in named]
        self.weights: list[Any] = [weight for _, weight in named]
        self.local = [nn.Parameter(w.detach().to_local(), requires_grad=w.requires_grad) for w in self.weights]
        self.firsts = [_first_row(len(weight)) for weight in self.weights]
        self._number = {id(weight): number for number, weight in enumerate(self.weights)}
        self._number |= {id(part): number for number, part in enumerate(self.local)}
        self.helps: parallel.Helps = {"whole": self._gather}
        decoder.parts = self

    def number(self, tensor: Tensor) -> int:
        """Of a divided parameter, or of its part."""
        return self._number[id(tensor)]

    def settle(self) -> None:
        """Give back what is whole: embedding and head are, after a pass without a pass backward."""
        self.decoder.reshard()  # type: ignore[operator]

    def own(self, weight: Tensor) -> tuple[Tensor, int]:
        """What of a divided parameter lies here, and the number of its first row."""
        number = self.number(weight)
        return self.local[number], self.firsts[number]

    def whole(self, weight: Tensor) -> Tensor:
        """A divided parameter, by the first process inside `by_first`."""
        return parallel.ask(self.helps, "whole", self.number(weight))

    def computing(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.compute, enabled=self.compute != torch.float32)

    @torch.no_grad()
    def _gather(self, number: int) -> Tensor:
        return self.weights[number].full_tensor()

    def localize(self, optimizer: torch.optim.Optimizer) -> None:
        """Have it move the parts."""
        state: dict[Tensor, Any] = {
            self.local[self.number(weight)]: {key: _local(value) for key, value in values.items()}
            for weight, values in optimizer.state.items()
        }
        for group in optimizer.param_groups:
            group["params"] = [self.local[self.number(weight)] for weight in group["params"]]
        optimizer.state.clear()
        optimizer.state.update(state)

    def take_gradients(self) -> None:
        for weight, part in zip(self.weights, self.local, strict=True):
            if part.requires_grad:
                part.grad = torch.zeros_like(part) if weight.grad is None else weight.grad.to_local()


def _local(value: Any) -> Any:
    return value.to_local() if hasattr(value, "to_local") else value


def _first_row(rows: int) -> int:
    """As torch.chunk cuts."""
    return min(parallel.rank() * -(-rows // parallel.world_size()), rows)


def _divide(decoder: Decoder, compute: torch.dtype) -> None:
    """Bottom up: each block, then what is left. Blocks are gathered in the dtype that they compute in, and gradients
    are summed in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = decoder.embedding.weight.device.type
    mesh = init_device_mesh(kind, (parallel.world_size(),))
    half = compute if compute in (torch.bfloat16, torch.float16) else None
    inside = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    around = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=inside, reshard_after_forward=True)
    fully_shard(decoder, mesh=mesh, mp_policy=around, reshard_after_forward=False)
    modules: list[Any] = [*decoder.blocks, decoder]
    for module in modules:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        module.set_reduce_scatter_unused_params(True)  # without labels a head has no gradient, and the others' have one
        if kind == "cpu":
            module.set_custom_all_gather(_AllGather())
            module.set_custom_reduce_scatter(_ReduceScatter())


# Their names before torch 2.13.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Allocated:
    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Allocated):
    """torch's own, with the time counted."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with parallel.waiting():
            return _gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_Allocated):
    """torch's own, with the time counted."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        with parallel.waiting():
            return _scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
