"""How much memory a training run will take: a sum of lines, in bytes, from shapes alone. Torch-free.

Tensors are freed to the system (`core.allocator`), so the peak is what is held when the most is: under the output head
or in the backward pass of a block. docs/offload.md lists the lines; `benchmarks.prediction` holds the sums to measured
peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoestring.models.config import ModelConfig
from shoestring.models.count import activations
from shoestring.nn.config import Recompute
from shoestring.nn.feed_forward_config import MoEConfig

Line = tuple[str, int]
FLOAT = 4  # bytes
# Code and tables of the matrix libraries, loaded with the first products, and what torch's optimizers import.
LIBRARIES = 119_000_000
_LENGTH = 13_000_000  # what oneDNN keeps for every further number of tokens that it has met
_HEAD_BLOCK_BYTES, _HEAD_ROWS, _STATES = 32_000_000, 8192, 2048  # `nn.head`, `nn.frozen_head_loss`
_COMPARED = 132_000_000  # four chunks of `nn.base_distance`, and hidden states that `finetune.preserve` keeps
_LOGIT_CHUNK = 100_000_000  # `nn.head_loss`
_BITS = {"bfloat16": 16.0, "int8": 8.0, "int4": 5.0, "nf4": 4.25}


@dataclass(frozen=True)
class Job:
    """One optimizer step of one process.

    tokens: of the step; microbatch: computed at once; both padded. labels: at most so many of them count. trained:
    numbers that are trained. inner: numbers per token that a block's adapters keep. process: bytes that the process
    held before the model. base: how the blocks' frozen weights are kept, None for float32. dora: adapters keep outputs.
    lengths: how many lengths of rows there are. compared: predictions are compared with the base's. integers: frozen
    weights are multiplied in int8, the head's as well, which has codes of its own.
    """

    config: ModelConfig
    tokens: int
    microbatch: int
    labels: int
    trained: int
    inner: int
    process: int
    full: bool = False
    base: str | None = None
    dora: bool = False
    lengths: int = 1
    compared: bool = False
    integers: bool = False


def predict(job: Job, engine: Literal["resident", "checkpointed"]) -> list[Line]:
    """Lines of the resident step, keeping activations or recomputing whole blocks."""
    config = job.config
    recompute: Recompute = "full" if engine == "checkpointed" else "selective"
    matrices = block_numbers(config)
    weights = config.parameter_count() * FLOAT
    if job.base is not None:
        weights -= int(config.unique_layers * matrices * (FLOAT - _BITS[job.base] / 8))
    if job.integers:  # beside a tied embedding's floats, or instead of its own
        weights += config.vocabulary * (config.width * (1 if config.tied_head else 1 - FLOAT) + FLOAT)
    layers = activations(config, recompute).layers + config.layers * (job.inner if engine == "resident" else 0)
    kept = int(layers * job.microbatch * FLOAT)
    work = work_lines(job, engine == "checkpointed", job.microbatch)
    lines = [
        ("process, before the model", job.process),
        libraries_line(job),
        ("weights", weights),
        trained_line(job),
        ("kept activations", kept),
        *work,
    ]
    return lines if not job.full else _full(job, lines)


def total(lines: list[Line]) -> int:
    return sum(size for _, size in lines)


def _full(job: Job, lines: list[Line]) -> list[Line]:
    """With the second gradient of embedding or head that exists before it is added to the first.

    In the first backward pass of a step gradients come as activations go.
    """
    lines = [*lines, ("another gradient of the head", job.config.vocabulary * job.config.width * FLOAT)]
    if job.tokens > job.microbatch:
        return lines
    gradients = job.trained * FLOAT
    return [(name, max(size - gradients, 0) if name == "kept activations" else size) for name, size in lines]


def block_numbers(config: ModelConfig) -> int:
    """Weights of a block's matrices."""
    outside = config.vocabulary * config.width * (1 if config.tied_head else 2)
    return (config.parameter_count() - outside) // config.unique_layers


def trained_line(job: Job) -> Line:
    """Weights of a full run are counted as such; an adapter's are counted here, with gradients and two moments."""
    return ("gradients and moments" if job.full else "adapters, gradients and moments",
            job.trained * FLOAT * (3 if job.full else 4))  # fmt: skip


def libraries_line(job: Job) -> Line:
    return ("libraries, loaded when first used", LIBRARIES + (job.lengths - 1) * _LENGTH)


def work_lines(job: Job, again: bool, states: int, head: int = 0) -> list[Line]:
    """What comes and goes: each block's activations and gradients, or the head and its logits.

    again: a block's activations are computed a second time. states: hidden states that meet the head together. head:
    bytes of it that are in memory at once, only meanwhile.
    """
    phases = [
        ("one block's work", _block(job, again)),
        ("blocks of the head and logits", head + _logits(job, states)),
        ("predictions beside the base's", job.compared * _COMPARED),
    ]
    return [
        ("hidden states and their gradients", 3 * states * job.config.width * FLOAT),
        max(phases, key=lambda line: line[1]),
    ]


def _block(job: Job, again: bool) -> int:
    config = job.config
    feed_forward = config.feed_forward
    inner = feed_forward.active * feed_forward.width if isinstance(feed_forward, MoEConfig) else feed_forward.width
    numbers = 3 * inner + 4 * config.width  # gradients of the feed-forward part, and of the stream
    if again:
        numbers += int(activations(config, "full").again) + job.inner
    numbers += job.dora * (inner + config.width)
    largest = inner * config.width
    extra = largest * FLOAT if job.base not in (None, "bfloat16") else 0  # one matrix made dense
    return numbers * job.microbatch * FLOAT + extra


def _logits(job: Job, states: int) -> int:
    config = job.config
    if job.full:
        rows = max(1, min(states, _LOGIT_CHUNK // (FLOAT * config.vocabulary)))
        return FLOAT * 2 * rows * config.vocabulary
    rows, at_once = head_rows(config.width), min(job.labels, states, _STATES)
    return FLOAT * at_once * (4 * config.width + rows)


def head_rows(width: int) -> int:
    """As `nn.head.block_rows`."""
    return max(64, min(_HEAD_ROWS, _HEAD_BLOCK_BYTES // (FLOAT * width)))
