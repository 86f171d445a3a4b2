"""How long a model takes to read prompts and to write a token: `plan.decoding`'s seconds, apart. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoestring.models.config import ModelConfig
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import Machine, WeightFormat
from shoestring.plan.speed import WRITING


@dataclass(frozen=True)
class Pace:
    """Seconds: to read the prompts of all rows, and to write a token of each, with half of the cache full."""

    reading: float
    writing: float


def pace(
    config: ModelConfig, use: Use, machine: Machine, source: str, weights: WeightFormat = "source", slots: int = 0
) -> Pace | None:
    """As for `predict_use`; None where the machine's speeds are not known."""
    if not math.isfinite(machine.flops):
        return None
    prediction = predict_use(config, use, machine, source, weights, slots)
    writing = dict(prediction.time).get(WRITING, 0.0)
    return Pace(prediction.seconds - writing, writing / max(use.new - 1, 1))
