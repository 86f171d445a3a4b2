"""What a machine's part of a model takes, from `plan.predict`: a model of its layers alone, with both ends, of which
it has one at most. Torch-free.

A stage keeps the activations of as many microbatches as are under way in it (`offload.pipeline.schedule`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoestring.models.count import operations
from shoestring.nn.config import GQAConfig, block_order
from shoestring.offload.pipeline.schedule import in_flight
from shoestring.plan.constants import BITS, SPARE
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineName, EngineSpec, JobShape, Machine, WeightFormat
from shoestring.plan.speed import block_numbers
from shoestring.plan.split import Peak, Work
from shoestring.plan.tape import FLOAT

EFFICIENCY = 0.7  # of the matrix peak that a step reaches, all that is no product included
_KEPT = "kept activations"
# Bytes per second of reading layers that the system has in its own memory or on a fast disk, and of making floats of
# what is kept in fewer bits.
_READ, _WIDENED = 1e9, 8e9


def work_of(shape: JobShape, engine: EngineName, weights: WeightFormat, limited: bool) -> Work:
    """Operations as `plan.speed` counts them. What passes between machines is hidden states in float32.

    limited: whether memory is, so that streamed layers are read for each microbatch; those in few bits are made floats
    for each, and the head on disk is read.
    """
    config, full = shape.config, shape.training.full
    cost = operations(config, shape.length)
    passes = (3 if full else 2) + (engine != "resident")
    values = config.attention.kv_heads * config.attention.head_width if isinstance(config.attention, GQAConfig) else 0
    streams = 2 if config.block == "reversible" else 1
    numbers, kept = block_numbers(config), shape.source if weights in ("source", "packed") else weights
    frozen = kept if engine == "streamed" else shape.training.frozen
    widened = 0.0 if frozen == "float32" or full else passes * numbers * (BITS.get(frozen, 8) / 8 + FLOAT) / _WIDENED
    layer = last = 0.0
    if engine == "streamed":
        layer = limited * 2 * numbers * BITS.get(kept, 8) / 8 / _READ
        last = 2 * config.vocabulary * config.width * BITS[shape.source] / 8 / _READ
    return Work(
        config.layers, shape.rows, shape.length, passes * (cost.matrices + cost.attention) / config.layers,
        FLOAT * (streams * config.width + values * config.value_residual), last=(3 if full else 2) * cost.head,
        layer_seconds=layer + widened, last_seconds=last,
    )  # fmt: skip


def speed_of(shape: JobShape, machine: dict[str, Any]) -> float:
    """Operations per second that a machine reaches."""
    half = shape.compute in ("bfloat16", "float16")
    gain = machine["int8_gain"] if shape.compute == "int8" else 1.0
    return EFFICIENCY * gain * machine["flops"]["bfloat16" if half else "float32"]


def peak_of(
    shape: JobShape, machines: Sequence[dict[str, Any]], memory: Sequence[int | None], engine: EngineName,
    weights: WeightFormat,
) -> Peak:  # fmt: skip
    """Bytes of the whole process of each machine, by its place among them. memory: of each at most; as many streamed
    layers stay in memory as it has room for, which are then not read again."""

    @functools.lru_cache(maxsize=4096)
    def peak(index: int, count: int, layers: int, rows: int, microbatches: int) -> int:
        under_way = in_flight(index, count, microbatches)
        part = _part(shape, layers)
        machine = machine_of(machines[index])
        if engine == "streamed":
            sizes = []
            for slots in sorted({layers, layers // 2, 4, 3, 2}, reverse=True):
                if 2 <= slots <= max(layers, 2):
                    spec = EngineSpec("streamed", rows, "full", slots, weights)
                    sizes.append(predict(replace(part, rows=rows * under_way), spec, machine).total)
            limit = memory[index]
            return next((size for size in sizes if limit is None or size <= limit * SPARE), min(sizes))
        found = predict(part, EngineSpec(engine, rows, "full" if engine == "checkpointed" else "selective"), machine)
        kept = sum(size for name, size in found.tensors if name == _KEPT)
        return found.total + (under_way - 1) * kept

    return peak


def _part(shape: JobShape, layers: int) -> JobShape:
    """As `offload.pipeline.planned.config_of_part` has it, which each machine keeps to."""
    config = shape.config
    update: dict[str, Any] = {"layers": layers}
    if config.sharing is not None:
        blocks = len(set(block_order(config.layers, config.sharing)[:layers]))
        update["sharing"] = config.sharing.model_copy(update={"unique_layers": blocks})
    return replace(shape, config=config.model_copy(update=update))


def machine_of(described: dict[str, Any]) -> Machine:
    """As the plan has it, without a speed."""
    return Machine(
        process=int(described["process"]), flops=1.0, int8_gain=float(described["int8_gain"]),
        total=int(described["memory"]), threads=int(described["threads"]), onednn=bool(described.get("onednn")),
    )  # fmt: skip
