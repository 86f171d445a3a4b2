"""The engine protocol: what holds the weights and turns microbatches into an update. `LocalEngine` is its common half.

    load -> begin -> (forward_backward -> optimizer_step)* -> close

The loop knows nothing else: it never touches `.grad`, and a step that was skipped is a result. Engines differ in
`load` and `forward_backward` (`train.resident`, `offload.engine`); where parameters and moments lie in this process,
as in both, the rest is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from shoestring.core.errors import RunError
from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.models.weights import TensorFile
from shoestring.train import parallel, transformer_engine
from shoestring.train.in_backward import InBackward
from shoestring.train.loss_scale import STATE as LOSS_SCALE
from shoestring.train.loss_scale import LossScale
from shoestring.train.objective import Loss, Objective
from shoestring.train.optimizer import Chained, build_optimizer
from shoestring.train.optimizer_config import OptimizerConfig
from shoestring.train.sharded_files import ShardedFiles

if TYPE_CHECKING:
    from typing_extensions import Self

FEWEST_LABELS = 256  # the mean of fewer is too noisy to tell an explosion


@dataclass(frozen=True)
class StepResult:
    """norm: of all gradients before clipping. skipped: the weights are as they were, because of `reason`.

    torn: some weights have moved and others have not, because of `reason`.
    """

    norm: float
    skipped: bool = False
    reason: str = ""
    torn: bool = False


@dataclass(frozen=True)
class EngineState:
    """What a checkpoint needs beside the weights. tensors: by "PARAMETER/key"; numbers: by parameter, for JSON.

    write: puts the tensors into a folder, where they are those of this process alone; helps: what all processes do for
    that, and for the weights' files, when the first one asks (`parallel.by_first`).
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, dict[str, float]]
    write: Callable[[Path], None] | None = None
    helps: parallel.Helps = field(default_factory=dict)


class Engine(Protocol):
    """name: as `budget.engine` says it. Losses and norms are those of all ranks together.

    torn: whether the weights are between two steps, so that they are no state to save; why_torn: in words.
    """

    name: str
    why_torn: str

    @property
    def torn(self) -> bool: ...

    def load(self) -> Decoder:
        """The model, ready to be adapted; what is trained is settled when `begin` is called."""
        ...

    def begin(self, objective: Objective, optimizer: OptimizerConfig, step: int = 0) -> None:
        """Ready to train: `step` optimizer steps have been done."""
        ...

    def set_rate(self, rate: float) -> None:
        """The next step's share of the highest learning rate, for weights that move while it goes backward."""
        ...

    def set_limit(self, loss: float) -> None:
        """The mean loss beyond which the next step changes nothing."""
        ...

    def forward_backward(self, microbatches: Sequence[Batch]) -> Loss:
        """Add up the gradients of one optimizer step."""
        ...

    def optimizer_step(self, clip: float | None, rate: float) -> StepResult:
        """Apply them, at `rate` times the highest learning rate, and drop them."""
        ...

    def abandon(self) -> None:
        """Drop the gradients of a step that cannot be finished."""
        ...

    def state(self) -> EngineState:
        """On the first process; all take part."""
        ...

    def state_bytes(self) -> int:
        """About as much as its tensors take, without asking others."""
        ...

    def restore(self, file: TensorFile | ShardedFiles, numbers: dict[str, dict[str, float]]) -> None:
        """Take back what `state` gave. Raises RunError where it does not fit."""
        ...

    def agree(self, value: Any) -> Any:
        """Rank 0's value on all ranks."""
        ...

    def close(self) -> None: ...


class LocalEngine:
    """Parameters, gradients and moments in this process; each rank has them all, and gradients are summed.

    make: gives the model in memory. compute: the dtype that matmuls run in (autocast). loss_scale: of float16.
    """

    name = ""
    why_torn = "some weights had moved already (optimizer.in_backward)"

    def __init__(
        self, make: Callable[[], Decoder], compute: torch.dtype = torch.float32, loss_scale: LossScale | None = None
    ):
        self.compute = compute
        self.loss_scale = loss_scale
        self.decoder: Decoder
        self.optimizer: Chained
        self.objective: Objective
        self.steps = 0
        self._make = make
        self._limit = math.inf
        self._wrong = ""  # with the step's loss
        self._in_backward: InBackward | None = None

    @classmethod
    def around(cls, decoder: Decoder, objective: Objective, *arguments: Any, **options: Any) -> Self:
        """For a loop of one's own: `forward_backward` leaves gradients in `.grad`, for any torch optimizer."""
        engine = cls(lambda: decoder, *arguments, **options)
        engine.load().train()
        engine.objective = objective
        return engine

    def load(self) -> Decoder:
        self.decoder = self._make()
        return self.decoder

    def begin(self, objective: Objective, optimizer: OptimizerConfig, step: int = 0) -> None:
        self.objective, self.steps = objective, step
        self.optimizer = build_optimizer(optimizer, self.decoder)
        self._highest = [group["lr"] for group in self.optimizer.param_groups]
        self.hook_up(optimizer.in_backward)
        self.decoder.train()

    def hook_up(self, in_backward: bool) -> None:
        """Have the optimizer move weights in the pass backward, or not."""
        LocalEngine.close(self)
        if in_backward:
            names = {id(parameter): name for name, parameter in self.decoder.named_parameters()}
            self._in_backward = InBackward(self.optimizer, names)

    @property
    def torn(self) -> bool:
        return self._in_backward is not None and self._in_backward.torn

    def set_rate(self, rate: float) -> None:
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * rate

    def set_limit(self, loss: float) -> None:
        self._limit = loss

    def goes_backward(self, loss: float | Tensor, count: int) -> bool:
        """Whether a step of this loss, a sum over so many labels, does: not where it could not be undone. Waits for a
        GPU only there."""
        return self._in_backward is None or not self._wrong_with(float(loss), count)

    def _wrong_with(self, loss: float, count: int) -> str:
        if not math.isfinite(loss):
            return "the loss is not a finite number"
        if count >= FEWEST_LABELS and loss / count > self._limit:
            return f"the loss is {loss / count:.4g}, and more than {self._limit:.4g} is an explosion"
        return ""

    def optimizer_step(self, clip: float | None, rate: float) -> StepResult:
        self.steps += 1
        if self._in_backward is not None and self._in_backward.failed:
            return StepResult(math.nan, reason=self._in_backward.failed, torn=True)
        parameters, scale = self.parameters(), self.loss_scale
        if scale is not None:
            scale.unscale(p.grad for p in parameters if p.grad is not None)
        norm = self.clip(parameters, clip) if self._in_backward is None else self._in_backward.finish()
        if self._wrong or not math.isfinite(norm):
            self.abandon()
            overflow = scale.overflowed() if scale is not None and not self._wrong else None
            return StepResult(norm, True, overflow or self._wrong or "the gradient's norm is not a finite number")
        if scale is not None:
            scale.fits()
        self.set_rate(rate)
        self.optimizer.step()
        torch.autograd.graph.increment_version(parameters)  # which fused optimizers forget: what is made of them is old
        self.abandon()
        return StepResult(norm)

    def clip(self, parameters: list[torch.nn.Parameter], limit: float | None) -> float:
        """The global norm of all gradients, which are scaled down to `limit` if it is larger."""
        norm = self.norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
        return float(norm)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Of all of them together, a scalar."""
        return torch.nn.utils.get_total_norm(gradients)

    def together(self) -> AbstractContextManager[None]:
        """Around what ranks do by themselves before they exchange something."""
        return parallel.together()

    def abandon(self) -> None:
        for parameter in self.decoder.parameters():  # the optimizer's, and those that move by a rule of their own
            parameter.grad = None

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def names(self) -> dict[int, str]:
        """Of parameters, by their ids."""
        return {id(parameter): name for name, parameter in self.decoder.named_parameters()}

    def state(self) -> EngineState:
        """Views of the live tensors on a CPU."""
        names = self.names()
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, float]] = {}
        for parameter, values in self.optimizer.state.items():
            name = names[id(parameter)]
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value.detach().to("cpu").contiguous()
                else:
                    numbers.setdefault(name, {})[key] = value
        if self.loss_scale is not None:
            numbers[LOSS_SCALE] = self.loss_scale.state()
        return EngineState(tensors | transformer_engine.state(self.decoder), numbers)

    def state_bytes(self) -> int:
        values = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def whole(self) -> Decoder:
        """The model, for a checkpoint's files, where `state` has been called; on the first process."""
        return self.decoder

    def restore(self, file: TensorFile | ShardedFiles, numbers: dict[str, dict[str, float]]) -> None:
        names = self.names()
        for parameter in self.parameters():
            name = names[id(parameter)]
            state = self.optimizer.state[parameter]
            restored: dict[str, Any] = dict(numbers.get(name, {}))
            kept = {key.rpartition("/")[2]: key for key in file.infos if key.rpartition("/")[0] == name}
            if differing := sorted((restored.keys() | kept.keys()) ^ state.keys()):
                have = "lacks" if differing[0] in state else "has an unknown"
                raise RunError(f"the optimizer's state {have} {name}/{differing[0]}", str(file.path))
            restored |= {last: self.restored(file, key, parameter, state[last]) for last, key in kept.items()}
            self.optimizer.state[parameter] = restored
        if self.loss_scale is not None:
            self.loss_scale.restore(numbers.get(LOSS_SCALE), str(file.path))
        if isinstance(file, TensorFile):  # a model in parts has none of its linears
            transformer_engine.restore(self.decoder, file)
        if self._in_backward is not None:
            self._in_backward.begin_anew()

    def restored(self, file: TensorFile | ShardedFiles, key: str, parameter: Tensor, old: Tensor | None) -> Tensor:
        """A tensor of the state, read into the memory of `old` where there is one."""
        return _read(file, key, parameter, old)

    def agree(self, value: Any) -> Any:
        return parallel.from_first(value)

    def close(self) -> None:
        if self._in_backward is not None:
            self._in_backward.close()
            self._in_backward = None

    def penalties(self) -> dict[str, float]:
        """Send the objective's penalties backward; -> the mean of each over ranks, by name."""
        found: dict[str, float] = {}
        device = self.decoder.embedding.weight.device.type
        autocast = torch.autocast(device, dtype=self.compute, enabled=self.compute != torch.float32)
        with self.together(), autocast:
            for penalty in self.objective.penalties(self.steps):
                mean = penalty.value / parallel.shares()
                self.scaled(penalty.weight * mean).backward()
                found[penalty.name] = float(mean.detach())
        return parallel.sum_named(found)

    def scaled(self, loss: Tensor) -> Tensor:
        """What goes backward: the loss, in float16 larger by the scale."""
        return loss if self.loss_scale is None else loss * self.loss_scale.scale

    def finish(self, summed: float, count: int, metrics: dict[str, float], penalties: dict[str, float]) -> Loss:
        """The loss over all ranks, of a step whose `count` is that already; gradients are."""
        summed = parallel.sum_numbers(summed)[0]
        metrics = parallel.sum_named(metrics)
        self._wrong = self._wrong_with(summed, count)
        means = {name: mean * count for name, mean in penalties.items()}
        return Loss(torch.tensor(summed, dtype=torch.float64), count, metrics | means)


def _read(file: TensorFile | ShardedFiles, key: str, parameter: Tensor, old: Tensor | None) -> Tensor:
    """A tensor of the state, into the memory of `old` where there is one.

    Moments lie like their parameter, on its device. Scalars (step counts) where the optimizer made them.
    """
    info = file.infos[key]
    wanted = tuple(parameter.shape if old is None else old.shape)
    codes = None if old is None or old.dtype.is_floating_point else old.dtype  # of moments in 8 bits
    if info.shape != wanted or not (info.dtype.is_floating_point if codes is None else info.dtype == codes):
        kind, expected = (str(each).removeprefix("torch.") for each in (info.dtype, codes or "floats"))
        raise RunError(f"{key} is {kind} {list(info.shape)}, expected {list(wanted)} of {expected}", str(file.path))
    target = old
    if target is None or tuple(target.shape) != info.shape or target.dtype != info.dtype:
        like = info.shape == tuple(parameter.shape) or parameter.device.type != "cpu"
        target = torch.empty(info.shape, dtype=info.dtype, device=parameter.device if like else "cpu")
    file.read_into(key, target)
    return target
