"""How long work takes, from its operations, its bytes and what this machine was measured to do. Torch-free.

    seconds = operations of products / the share of the matrix peak that products reach
            + bytes of all tensors that are made, each written and read / the speed of memory
            + operations that are started, each with what Python and torch take for it
            + reading from disk, where that takes longer than what is computed meanwhile

Operations are counted by `models.count`, bytes by the walk that predicts memory (`plan.tape`). What is left over is the
machine's, and `plan.calibration` has it from its own runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers, operations
from shoestring.plan.adapters import group_bytes
from shoestring.plan.constants import (
    ATTENTION,
    BITS,
    CALL,
    COPIED,
    DENSE_DECODING,
    FETCHED,
    LAYER,
    MOVED,
    MOVED_IN_EIGHT_BITS,
    PASSES,
    PRODUCTS,
    STREAMED_LAYER,
    TOKEN,
    TRAINED_CALL,
    TRAINED_PASSES,
)
from shoestring.plan.peak import Walk
from shoestring.plan.shapes import EngineSpec, JobShape, Machine
from shoestring.plan.tape import FLOAT, Weight

_AGAIN = 0.25  # of the tensors of a block that runs up, again, and down: those of its second run
MOVING, WAITING, WRITING = "moving the weights", "waiting for the disk", "writing tokens"
Seconds = tuple[str, float]  # what for


def step_time(shape: JobShape, spec: EngineSpec, machine: Machine, walk: Walk) -> Iterator[Seconds]:
    """Of one optimizer step. A frozen weight costs no gradient of its own; blocks run again where they are not kept."""
    streamed, full = spec.engine == "streamed", shape.training.full
    cost = operations(shape.config, shape.length, "full" if streamed else spec.recompute)
    again = (1 - spec.keeps / shape.config.layers) if cost.again else 0.0
    matrices = ((3 if full else 2) + again) * cost.matrices
    # What is trained beside frozen matrices: two operations a number forward, four backward.
    matrices += 0 if full else (6 + 2 * again) * walk.adapters / FLOAT
    head = (3 if full else 2) * cost.head * (spec.stage is None or spec.stage.is_last)
    if shape.compute == "int8":
        matrices, head = matrices / machine.int8_gain, head / machine.int8_gain
    # Attention's scores are made again going backward: five products for two.
    attention = (1 + 2.5 + again) * cost.attention
    products = shape.tokens * (matrices + head) / (PRODUCTS * machine.flops)
    products += shape.tokens * attention / (ATTENTION * machine.flops)
    bandwidth = machine.bandwidth
    share = 1 - _AGAIN * spec.keeps / shape.config.layers  # of what is made
    passes = TRAINED_PASSES * share * walk.made / bandwidth
    yield "products of matrices", products
    yield "everything else, byte by byte", passes
    yield "starting operations", TRAINED_CALL * share * walk.tensors
    if streamed:
        opened = _opened(shape, spec) / bandwidth
        yield "layers made ready", opened
        waiting = max(_reading(shape, spec, machine) - products - passes - opened, 0.0)
        copied = _read(shape, spec) / COPIED if spec.stage is not None and machine.threads == 1 else 0.0
        yield WAITING, waiting + copied + _spilled(shape, spec, machine)
    yield MOVING, _moving(shape, machine, walk)


def use_time(
    config: ModelConfig, tokens: tuple[int, int, int], scored: bool, machine: Machine, walk: Walk, share: float,
    size: float, layer: float,
) -> Iterator[Seconds]:  # fmt: skip
    """Of a prompt that is read, or text that is scored, and of what is written then.

    tokens: rows, tokens of each, tokens that are written. share: how many passes like the walked one there are. size:
    bytes of a weight in memory. layer: bytes of one on disk, 0 where all are in memory.
    """
    rows, length, new = tokens
    cost, reads, bandwidth = operations(config, length), rows * length, machine.bandwidth
    heads = reads if scored else rows
    products = (reads * cost.matrices + heads * cost.head) / (PRODUCTS * machine.flops)
    products += reads * cost.attention / (ATTENTION * machine.flops)
    passes = share * (PASSES * walk.made / bandwidth + CALL * walk.tensors)
    fetched = FETCHED * _fetched(config, machine, layer)
    yield "reading the text" if scored else "reading the prompt", products + passes + share * fetched
    if new <= 1:
        return
    weights = config.parameter_count() - (0 if config.tied_head else config.vocabulary * config.width)
    cache = rows * cache_numbers(config) * (length + new / 2)
    bytes = (weights + cache) * size
    computing = rows * operations(config, length).forward / (PRODUCTS * machine.flops)
    each = max(bytes / (DENSE_DECODING * bandwidth), computing)
    each += config.layers * LAYER * (STREAMED_LAYER if layer else 1)
    yield WRITING, (new - 1) * (each + rows * TOKEN + fetched)


def block_numbers(config: ModelConfig) -> int:
    """Weights of a block's matrices."""
    outside = config.vocabulary * config.width * (1 if config.tied_head else 2)
    return (config.parameter_count() - outside) // config.unique_layers


def _fetched(config: ModelConfig, machine: Machine, layer: float) -> float:
    """Seconds for all layers, from wherever they are, and made float32. layer: bytes of a weight on disk."""
    if not layer:
        return 0.0
    numbers = config.unique_layers * block_numbers(config) + config.vocabulary * config.width
    read = numbers * layer / _disk(machine, numbers * layer)
    return read + numbers * (layer + FLOAT) / machine.bandwidth


def _disk(machine: Machine, bytes: float) -> float:
    """Bytes per second: files that fit beside everything else are in memory from the second pass on, and copied."""
    return machine.bandwidth / 2 if bytes < machine.total / 2 else machine.read_speed


def _reading(shape: JobShape, spec: EngineSpec, machine: Machine) -> float:
    """Seconds, while something else is computed."""
    config = shape.config
    layers = config.unique_layers * block_numbers(config) * streamed_bits(shape, spec) / 8
    return _read(shape, spec) / _disk(machine, layers + _head_bytes(shape))


def _read(shape: JobShape, spec: EngineSpec) -> float:
    """Bytes of a step: each layer once on the way up and once down, but for those kept; the head. By one machine of
    several, for every microbatch."""
    config, stage = shape.config, spec.stage
    layer = block_numbers(config) * streamed_bits(shape, spec) / 8
    times = 1 if stage is None else shape.rows // spec.microbatch
    head = _head_bytes(shape) * (stage is None or stage.is_last)
    return times * (2 * max(config.unique_layers - spec.slots, 0) * layer + head)


def _head_bytes(shape: JobShape) -> float:
    config = shape.config
    return config.vocabulary * config.width * BITS["int8" if shape.compute == "int8" else shape.source] / 8


def _opened(shape: JobShape, spec: EngineSpec) -> float:
    """Bytes that making layers float32 passes through memory, where halves are read; else products do it."""
    bits, times = streamed_bits(shape, spec), 1 if spec.stage is None else shape.rows // spec.microbatch
    numbers = shape.config.unique_layers * block_numbers(shape.config)
    return 2 * times * numbers * (bits / 8 + FLOAT) if bits == 16 else 0.0


def _spilled(shape: JobShape, spec: EngineSpec, machine: Machine) -> float:
    """Inputs of layers are written and read while nothing else is done."""
    config = shape.config
    return spec.spilled * 2 * config.layers * shape.tokens * config.width * FLOAT / machine.read_speed


def _moving(shape: JobShape, machine: Machine, walk: Walk) -> float:
    numbers = sum(weight.numbers * count for weight, count in walk.trained.items())
    moving = shape.moving
    each = MOVED_IN_EIGHT_BITS if moving.eight_bits else MOVED[moving.kind]
    found = numbers * each / machine.bandwidth
    if moving.kind == "muon":
        work = sum(count * _orthogonalized(weight, moving.iterations) for weight, count in walk.trained.items())
        found += work / (PRODUCTS * machine.flops)
    return found + CALL * sum(walk.trained.values())


def _orthogonalized(weight: Weight, iterations: int) -> float:
    """Operations of Newton-Schulz (`train.muon`): X·Xᵀ, its square, and their product with X."""
    if not weight.in_block or len(weight.shape) < 2:
        return 0.0
    *stacked, a, b = weight.shape
    rows, columns = min(a, b), max(a, b)
    return iterations * (4 * rows * rows * columns + 2 * rows**3) * (stacked[0] if stacked else 1)


def streamed_bits(shape: JobShape, spec: EngineSpec) -> float:
    """Of a weight as it is streamed."""
    packed = shape.training.packed
    if spec.weights != "packed":
        return BITS[shape.source if spec.weights == "source" else spec.weights]
    each = [config.bits + (8 * group_bytes(config) / config.group if config.group else 0.0) for _, config in packed]
    return statistics.fmean(sorted(each))
