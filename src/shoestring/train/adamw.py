"""AdamW (arXiv 1711.05101) by torch's fused kernel, and a base of optimizers that leaves torch's compiler alone.

torch.optim imports `torch._dynamo` when the first optimizer is made and at each of its own steps, only to say that
nothing is to be compiled: 1.5 seconds and 100 MB in every process that trains. The weights move as torch's would, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_add_param_group = torch.optim.Optimizer.add_param_group


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer whose `step` is its own: it runs without gradients, and takes no closure."""

    add_param_group = getattr(_add_param_group, "__wrapped__", _add_param_group)


class KindByKind(EagerOptimizer):
    """One whose step moves all parameters of a group that are of one kind together."""

    def _kind(self, parameter: Tensor) -> tuple[Any, ...]:
        return parameter.device, parameter.dtype

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Parameters of one kind that have gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(self._kind(parameter), []).append(parameter)
            for some in alike.values():
                self._move(group, some)


class AdamW(KindByKind):
    """Its state is made here, not in the first step, where a lack of memory would leave some weights updated and others
    not. One kernel updates weights and both moments in one pass over memory.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Parameters of one device and dtype."""
        states = [self.state[parameter] for parameter in parameters]
        first, second, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters, [p.grad for p in parameters if p.grad is not None], first, second, [], steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip
