"""AdamW with moments in 8 bits, as torchao.optim.AdamW8bit keeps them: a quarter of the memory (`kernels.adamw8bit`).

Small weights, and those whose numbers are no multiple of a block, keep moments in float32 and are moved by torch's
fused kernel. State is plain tensors, so a checkpoint holds it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.kernels.adamw8bit import Eight, Step, adamw_8bit, make_tables
from shoestring.plan.moments import in_eight_bits
from shoestring.train.adamw import EagerOptimizer


class AdamW8bit(EagerOptimizer):
    """Parameters that `in_eight_bits` allows; their state is in memory from the start."""

    def __init__(
        self, params: Iterable[Any], lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        make_tables()
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            assert in_eight_bits(parameter.numel())
            state = self.state[parameter]
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name, signed in _MOMENTS.items():
                zeros = Eight.zeros(parameter, signed)
                state[f"{name}.codes"], state[f"{name}.scale"] = zeros.codes, zeros.scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                mean, square = (moment(state, name) for name in _MOMENTS)
                adamw_8bit(parameter, parameter.grad, mean, square, Step(
                    group["lr"], group["betas"], group["eps"], group["weight_decay"], int(state["step"]),
                ))  # fmt: skip


_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # whether signed


def moment(state: dict[str, Tensor], name: str) -> Eight:
    return Eight(state[f"{name}.codes"], state[f"{name}.scale"], _MOMENTS[name])
