"""How much memory a training step will take: a sum of lines, in bytes, from shapes alone. Torch-free.

The peak is what is held when the most is: under the output head or in the backward pass of a block. docs/offload.md
lists the lines; `benchmarks.prediction` holds the sums to measured peaks.
"""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.models.count import activations, operations
from shoestring.nn.feed_forward_config import MoEConfig
from shoestring.nn.head_blocks import COMPARED_BYTES, STATES, block_rows, chunk_rows
from shoestring.plan.constants import BITS, EFFICIENCY, FLOAT, LENGTH, LIBRARIES
from shoestring.plan.shapes import EngineSpec, JobShape, Line, Machine, Prediction

_KEPT_BY_COMPARISON = 32_000_000  # hidden states of the base (`finetuning.preserve`)


def predict(shape: JobShape, spec: EngineSpec, machine: Machine) -> Prediction:
    """What a step takes with this engine, and how long."""
    beside = (
        ("process, before the model", machine.process),
        ("libraries, loaded when first used", LIBRARIES + (shape.lengths - 1) * LENGTH),
    )
    tensors = _streamed(shape, spec) if spec.engine == "streamed" else _resident(shape, spec)
    return Prediction(tuple(tensors), beside, seconds(shape, spec, machine))


def block_numbers(config: ModelConfig) -> int:
    """Weights of a block's matrices."""
    outside = config.vocabulary * config.width * (1 if config.tied_head else 2)
    return (config.parameter_count() - outside) // config.unique_layers


def stored_bytes(config: ModelConfig, kept: str) -> int:
    """Bytes of one layer on disk. kept: a store's format, or the source's dtype."""
    return int(block_numbers(config) * BITS[kept] / 8)


def seconds(shape: JobShape, spec: EngineSpec, machine: Machine) -> float:
    """Of a step: products at the usual share of the peak, or reading where that takes longer.

    A frozen weight costs four operations a token, six where blocks run again.
    """
    again = spec.engine != "resident"
    cost = operations(shape.config, shape.length)
    blocks = ((3 if shape.full else 2) + again) * (cost.matrices + cost.attention)
    if shape.compute == "int8":
        blocks /= machine.int8_gain
    head = (3 if shape.full else 2) * cost.head * (shape.labels or shape.tokens) / shape.tokens
    compute = shape.tokens * (blocks + head) / (EFFICIENCY * machine.flops)
    if spec.engine != "streamed":
        return compute
    config = shape.config
    layer = stored_bytes(config, shape.source if spec.weights == "source" else spec.weights)
    head_read = config.vocabulary * config.width * BITS[shape.source] / 8
    reading = (2 * max(config.unique_layers - spec.slots, 0) * layer + head_read) / machine.read_speed
    # Inputs are written and read while nothing else is done.
    spill = spec.spilled * 2 * config.layers * shape.tokens * config.width * FLOAT / machine.read_speed
    return max(compute, reading) + spill


def _resident(shape: JobShape, spec: EngineSpec) -> list[Line]:
    """Activations kept, or whole blocks computed again."""
    config = shape.config
    again = spec.engine == "checkpointed"
    weights = config.parameter_count() * FLOAT
    if shape.frozen is not None:
        weights -= int(config.unique_layers * block_numbers(config) * (FLOAT - BITS[shape.frozen] / 8))
    layers = activations(config, "full" if again else spec.recompute).layers
    layers += 0 if again else config.layers * shape.adapter_rank
    at_once = _at_once(shape, spec)
    kept = int(layers * at_once * FLOAT)
    lines = [
        ("weights", weights),
        _trained(shape),
        ("kept activations", kept),
        *_work(shape, again, at_once, at_once),
    ]
    return _full(shape, spec, lines) if shape.full else lines


def _streamed(shape: JobShape, spec: EngineSpec) -> list[Line]:
    config = shape.config
    kept = shape.source if spec.weights == "source" else spec.weights
    dense = kept in ("bfloat16", "float16")
    buffers = spec.slots * stored_bytes(config, kept) + dense * FLOAT * block_numbers(config)
    inputs = (2 if spec.spilled else config.layers) * shape.tokens * config.width * FLOAT
    return [
        (f"{spec.slots} layers of {config.unique_layers} in {kept}" + (", one in float32" if dense else ""), buffers),
        _trained(shape),
        ("inputs of the layers", inputs),
        *_work(shape, True, _at_once(shape, spec), shape.tokens, streamed_head_bytes(config, shape.source)),
    ]


def _at_once(shape: JobShape, spec: EngineSpec) -> int:
    """Tokens computed together."""
    return max(spec.microbatch * shape.length, shape.compared)


def _full(shape: JobShape, spec: EngineSpec, lines: list[Line]) -> list[Line]:
    """With the second gradient of embedding or head that exists before it is added to the first.

    In the first backward pass of a step gradients come as activations go.
    """
    lines = [*lines, ("another gradient of the head", shape.config.vocabulary * shape.config.width * FLOAT)]
    if shape.rows > spec.microbatch:
        return lines
    gradients = shape.trained * FLOAT
    return [(name, max(size - gradients, 0) if name == "kept activations" else size) for name, size in lines]


def _trained(shape: JobShape) -> Line:
    """Weights of a full run are counted as such; an adapter's are counted here, with gradients and two moments."""
    name = "gradients and moments" if shape.full else "adapters, gradients and moments"
    return name, shape.trained * FLOAT * (3 if shape.full else 4)


def streamed_head_bytes(config: ModelConfig, source: str) -> int:
    """Of two blocks of the head as they come, and one in float32."""
    weights = block_rows(config.width) * config.width
    return int(weights * (2 * BITS[source] / 8 + (FLOAT if source != "float32" else 0)))


def _work(shape: JobShape, again: bool, at_once: int, states: int, head: int = 0) -> list[Line]:
    """What comes and goes: each block's activations and gradients, or the head and its logits.

    again: a block's activations are computed a second time. states: hidden states that meet the head together. head:
    bytes of it that are in memory at once, only meanwhile.
    """
    compared = 4 * COMPARED_BYTES + _KEPT_BY_COMPARISON if shape.compared else 0
    phases = [
        ("one block's work", _block(shape, again, at_once)),
        ("blocks of the head and logits", head + _logits(shape, states)),
        ("predictions beside the base's", compared),
    ]
    return [
        ("hidden states and their gradients", 3 * states * shape.config.width * FLOAT),
        max(phases, key=lambda line: line[1]),
    ]


def _block(shape: JobShape, again: bool, at_once: int) -> int:
    config = shape.config
    feed_forward = config.feed_forward
    inner = feed_forward.active * feed_forward.width if isinstance(feed_forward, MoEConfig) else feed_forward.width
    numbers = 3 * inner + 4 * config.width  # gradients of the feed-forward part, and of the stream
    if again:
        numbers += int(activations(config, "full").again) + shape.adapter_rank
    numbers += shape.dora * (inner + config.width)
    largest = inner * config.width
    extra = largest * FLOAT if shape.frozen not in (None, "float32", "bfloat16") else 0  # one matrix made dense
    return numbers * at_once * FLOAT + extra


def _logits(shape: JobShape, states: int) -> int:
    config = shape.config
    if shape.full:
        return FLOAT * 2 * min(states, chunk_rows(config.vocabulary)) * config.vocabulary
    at_once = min(shape.labels or shape.tokens, states, STATES)
    return FLOAT * at_once * (4 * config.width + block_rows(config.width))
