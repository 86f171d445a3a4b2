"""Weights move while a step still goes backward: each as soon as its gradient is there, which is then freed.

So no step holds more than a few gradients (LOMO, arXiv 2306.09782; torchtune calls it optimizer_in_bwd). Each weight
must get its gradient whole and at once: one microbatch, one process, one pass backward; and no norm over all gradients
is known in time to clip by. A loss that is not finite is found before anything moves. A gradient that is not leaves the
weights between two steps, from which nothing brings them back.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.train.optimizer import Chained


class InBackward:
    """The optimizer's parts, each asked for one weight at a time. names: of parameters by id, for what went wrong."""

    def __init__(self, optimizer: Chained, names: dict[int, str]):
        self._names = names
        self._moved: set[int] = set()
        self._norms: list[Tensor] = []
        self.failed = ""  # what ended this step
        self._hooks = []
        for part in optimizer.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    move = functools.partial(self._move, part, group)
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(move))

    @property
    def torn(self) -> bool:
        """Whether weights have moved in a step that is not finished."""
        return bool(self._moved)

    def _move(self, part: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None and id(parameter) not in self._moved, "one pass backward gives each its gradient"
        norm = torch.linalg.vector_norm(gradient)
        if self.failed:
            return
        if not math.isfinite(norm):
            self.failed = f"the gradient of {self._names[id(parameter)]} is not finite"
            return
        self._norms.append(norm)
        self._moved.add(id(parameter))
        parameter.grad = gradient
        everything = part.param_groups
        part.param_groups = [{**group, "params": [parameter]}]
        try:
            part.step()
            torch.autograd.graph.increment_version([parameter])  # which fused optimizers forget
        finally:
            part.param_groups = everything
            parameter.grad = None

    def begin_anew(self) -> None:
        """All weights stand at the end of a step again."""
        self.failed = ""
        self._moved.clear()
        self._norms.clear()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def finish(self) -> float:
        """The step has gone backward; -> the norm of all gradients."""
        norm = float(torch.linalg.vector_norm(torch.stack(self._norms))) if self._norms else 0.0
        self._moved.clear()
        self._norms.clear()
        return norm
