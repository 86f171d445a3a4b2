"""How long a model takes to read prompts and to write tokens, roughly. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers, operations
from shoestring.plan.constants import BITS, DECODING, EFFICIENCY
from shoestring.plan.decoding import Use
from shoestring.plan.shapes import Machine, WeightFormat
from shoestring.plan.speed import block_numbers

_AT_ONCE = 1024  # tokens of prompts in a pass (`plan.passes`)


@dataclass(frozen=True)
class Pace:
    """Seconds: to read the prompts of all rows, and to write a token of each, with half of the cache full."""

    reading: float
    writing: float


def pace(
    config: ModelConfig, use: Use, machine: Machine, source: str, weights: WeightFormat = "source", slots: int = 0
) -> Pace | None:
    """As for `predict_use`; None where the machine's speeds are not known.

    A prompt is products; a written token reads all weights and the cache from memory, or does the products of all rows
    where these take longer; of a streamed model each pass reads the layers that are not there from disk.
    """
    if not math.isfinite(machine.flops):
        return None
    rate, size = EFFICIENCY * machine.flops, BITS[use.compute] / 8
    cost, last = operations(config, use.prompt), operations(config, use.prompt + use.new // 2)
    reading = use.rows * (use.prompt * (cost.matrices + cost.attention) + cost.head) / rate
    weight_bytes = config.parameter_count() * size
    cache = cache_numbers(config) * use.rows * (use.prompt + use.new / 2) * size
    writing = max((weight_bytes + cache) / (DECODING * machine.bandwidth), use.rows * last.forward / rate)
    if slots:
        kept = source if weights in ("source", "packed") else weights
        away = max(config.unique_layers - slots, 0) * block_numbers(config) * BITS[kept] / 8
        disk = (away + config.vocabulary * config.width * BITS[source] / 8) / machine.read_speed
        passes = -(-use.rows * use.prompt // _AT_ONCE)
        reading, writing = max(reading, passes * disk), max(writing, disk)
    return Pace(reading, writing)
