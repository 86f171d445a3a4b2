"""Models whose weights are rounded to 8 or 4 bits as they are loaded (`models.decoding_weights`). Torch-free.

Matrices are kept in blocks of 32 inputs with a scale, and in 4 bits an offset, by tiles of 16 outputs
(`kernels.blocks`); the head in 8 bits always, and the embedding with it where they are one. The head is rounded first.
"""

from __future__ import annotations

from dataclasses import replace

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.models.families.common import dense_parts
from shoestring.plan.constants import DECODING, TOKEN
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import Line, Machine, Prediction
from shoestring.plan.speed import WRITING
from shoestring.plan.tape import BYTE, FLOAT, HALF

_BLOCK, _TILE = 32, 16
_BYTES = {8: 34, 4: 20}  # of a block
_HEAD = 8  # bits
_ROWS = 4096  # of a matrix, that are rounded at a time


def can_be_rounded(config: ModelConfig) -> bool:
    """Whether these sums are of a model like this."""
    return dense_parts(config) is not None


def predict_rounded(config: ModelConfig, use: Use, machine: Machine, source: str, bits: int) -> Prediction:
    """As `predict_use` of a model in memory, computed in float32."""
    plain = predict_use(config, use, machine, source)
    kept = rounded_bytes(config, bits)
    lines: tuple[Line, ...] = ((f"weights in {bits} bits", kept), *plain.tensors[1:])
    loading = rounding_bytes(config)
    if loading > sum(size for _, size in lines):
        lines = (("the head, while it is rounded", loading),)
    embedding = 0 if config.tied_head else config.vocabulary * config.width * FLOAT
    cache = use.rows * cache_numbers(config) * (use.prompt + use.new / 2) * FLOAT
    each = (kept - embedding + cache) / (DECODING * machine.bandwidth) + use.rows * TOKEN
    factor = 1.0 if plain.correction is None else plain.correction.seconds
    time = tuple(
        (name, (use.new - 1) * each * factor if name == WRITING else seconds) for name, seconds in plain.time
    )
    return replace(plain, tensors=lines, time=time, seconds=sum(seconds for _, seconds in time))


def rounded_bytes(config: ModelConfig, bits: int) -> int:
    """Of all weights, once they are loaded."""
    parts = dense_parts(config)
    assert parts is not None
    shapes = [*parts[0].linears(config.width), *parts[1].linears(config.width)]
    table = config.vocabulary * config.width
    small = config.parameter_count() - table * (1 if config.tied_head else 2)
    small -= config.layers * sum(inputs * outputs for inputs, outputs in shapes)
    blocks = config.layers * sum(_matrix(outputs, inputs, bits) for inputs, outputs in shapes)
    embedding = 0 if config.tied_head else table * FLOAT  # read a row at a time
    return int(blocks + _head(config) + embedding + small * FLOAT)


def rounding_bytes(config: ModelConfig) -> int:
    """While the head is rounded, some rows at a time: itself in float32, and twice as it will be when all are joined;
    or what is rounded of it, and the rows at hand, as numbers, quotients and codes, with their scales. The embedding
    beside it, where it has one of its own."""
    rows, width = config.vocabulary, config.width
    tables = rows * width * FLOAT * (1 if config.tied_head else 2)
    together = min(rows, _ROWS)
    padded = -(-width // _BLOCK) * _BLOCK
    each = 2 * FLOAT + BYTE + (HALF + FLOAT) / _BLOCK
    done = max(rows // _ROWS - 1, 0) * _matrix(_ROWS, width, _HEAD)
    return int(tables + max(2 * _head(config), done + together * padded * each))


def _head(config: ModelConfig) -> int:
    return _matrix(config.vocabulary, config.width, _HEAD)


def _matrix(outputs: int, inputs: int, bits: int) -> int:
    return -(-outputs // _TILE) * _TILE * -(-inputs // _BLOCK) * _BYTES[bits]
