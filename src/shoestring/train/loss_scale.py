"""The factor on a float16 run's loss, which keeps small gradients from vanishing (arXiv 1710.03740).

It is a power of two times the initial one: halved when a gradient overflows, and that step is skipped; doubled after
many steps without. Part of the trainer's state, so that a resumed run scales as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from shoestring.core.errors import RunError
from shoestring.train.precision_config import LossScaleConfig

LARGEST = 2.0**24  # beyond this the loss itself would soon overflow
STATE = "loss_scale"  # in a state's numbers, where parameters have their names


class LossScale:
    """scale: what the loss is multiplied by now."""

    def __init__(self, config: LossScaleConfig):
        self.scale = config.initial
        self._growth_steps = config.growth_steps
        self._steps = 0  # since it changed

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide them by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.scale)

    def overflowed(self) -> str | None:
        """A gradient is not finite: halve the scale; -> why the step is skipped, None where that was not the scale."""
        if self.scale <= 1:
            return None
        before, self.scale, self._steps = self.scale, max(self.scale / 2, 1.0), 0
        return f"a gradient overflowed float16 at a loss scale of {before:,.0f}, now {self.scale:,.0f}"

    def fits(self) -> None:
        """A step was done: after enough of them the scale doubles."""
        self._steps += 1
        if self._steps >= self._growth_steps and self.scale < LARGEST:
            self.scale, self._steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "steps": self._steps}

    def restore(self, numbers: dict[str, float] | None, where: str) -> None:
        """Raises RunError for what is no such state."""
        scale, steps = (numbers or {}).get("scale"), (numbers or {}).get("steps")
        if scale is None or steps is None or not (math.isfinite(scale) and scale >= 1 and steps >= 0):
            raise RunError(f"the trainer's state has no loss scale of 1 or more: {numbers}", where)
        self.scale, self._steps = float(scale), int(steps)
