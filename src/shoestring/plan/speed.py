"""How long a step will take, roughly: products at the usual share of the peak, or reading. Torch-free."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.plan.adapters import group_bytes
from shoestring.plan.constants import BITS, EFFICIENCY
from shoestring.plan.shapes import EngineSpec, JobShape, Machine
from shoestring.plan.tape import FLOAT


def seconds(shape: JobShape, spec: EngineSpec, machine: Machine) -> float:
    """Of a step: products at the usual share of the peak, or reading where that takes longer.

    A frozen weight costs four operations a token, six where blocks run again.
    """
    again, full = spec.engine != "resident", shape.training.full
    cost = operations(shape.config, shape.length)
    blocks = ((3 if full else 2) + again) * (cost.matrices + cost.attention)
    head = (3 if full else 2) * cost.head
    if shape.compute == "int8":
        blocks, head = blocks / machine.int8_gain, head / machine.int8_gain
    compute = shape.tokens * (blocks + head) / (EFFICIENCY * machine.flops)
    if spec.engine != "streamed":
        return compute
    config = shape.config
    layer = block_numbers(config) * streamed_bits(shape, spec) / 8
    head_read = config.vocabulary * config.width * BITS["int8" if shape.compute == "int8" else shape.source] / 8
    reading = (2 * max(config.unique_layers - spec.slots, 0) * layer + head_read) / machine.read_speed
    # Inputs are written and read while nothing else is done.
    spill = spec.spilled * 2 * config.layers * shape.tokens * config.width * FLOAT / machine.read_speed
    return max(compute, reading) + spill


def streamed_bits(shape: JobShape, spec: EngineSpec) -> float:
    """Of a weight as it is streamed."""
    if spec.weights != "packed":
        return BITS[shape.source if spec.weights == "source" else spec.weights]
    config = next(iter(shape.training.packed))[1]
    return config.bits + (8 * group_bytes(config) / config.group if config.group else 0.0)


def block_numbers(config: ModelConfig) -> int:
    """Weights of a block's matrices."""
    outside = config.vocabulary * config.width * (1 if config.tied_head else 2)
    return (config.parameter_count() - outside) // config.unique_layers
