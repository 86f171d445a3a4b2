"""How long quantizing a model will take, roughly: products of text with the blocks, and of the blocks' own matrices.

Text reaches the four groups of linears of a block one after the other, each time no further than it must, then goes
through the whole block; what is measured goes through twice, dense and quantized. Squares of inputs are summed once a
group. GPTQ factors them and makes up for each error, for each matrix; in float64, of half the speed, where a matrix is
not too wide. Not counted: the file's reading of calibration text, and the speeds of decoding that are measured at the
end.
"""

from __future__ import annotations

from shoestring.compression.quantize.config import QuantizeConfig
from shoestring.compression.quantize.gptq import WIDE
from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.models.families.common import dense_parts
from shoestring.plan.constants import BITS, EFFICIENCY
from shoestring.plan.shapes import Machine
from shoestring.plan.speed import block_numbers

_SCALES = 10  # that AWQ tries
_TRACES = 3  # products of all of a matrix with the squares of its inputs, that compare errors
_DOUBLE = 2  # times as long as in float32


def block_seconds(config: ModelConfig, settings: QuantizeConfig, machine: Machine, source: str, tokens: int) -> float:
    """Of one block. source: the dtype of the model's files. tokens: of a batch that steps are learned from."""
    parts = dense_parts(config)
    assert parts is not None
    attention, feed_forward = parts
    width, inner = config.width, feed_forward.width
    queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    groups = (
        ((queries, width), (keys, width), (keys, width)), ((width, queries),), ((inner, width), (inner, width)),
        ((width, inner),),
    )  # fmt: skip
    text = settings.calibrate is not None
    context = min(settings.context, config.context)
    cost = operations(config, context)
    whole, attending = cost.matrices / config.layers, cost.attention / config.layers
    passing = 2 * settings.held_out * context * (whole + attending) if text else 0.0
    work = passing
    if text and settings.method != "rtn":
        seen = settings.rows * context
        sizes = [sum(2 * outputs * inputs for outputs, inputs in group) for group in groups]
        partial = sum(sum(sizes[:number]) + (attending if number else 0) for number in range(1, len(groups)))
        squares = sum(2 * group[0][1] ** 2 for group in groups)
        work += seen * (partial + whole + attending + squares)
        for group in groups:
            for outputs, inputs in group:
                work += _rounding(settings, outputs, inputs)
        if settings.method == "awq":
            work += seen * squares + sum(2 * _SCALES * outputs * inputs**2 for g in groups for outputs, inputs in g)
        if settings.method == "learned":
            work += settings.steps * tokens * 3 * (whole + attending) + 3 * seen * (whole + attending)
    reading = block_numbers(config) * BITS[source] / 8 / machine.read_speed
    return work / (EFFICIENCY * machine.flops) + reading


def _rounding(settings: QuantizeConfig, outputs: int, inputs: int) -> float:
    """Operations that one matrix takes, in terms of float32's."""
    slower = _DOUBLE if inputs <= WIDE else 1
    compared = 2 * _TRACES * outputs * inputs**2
    solved = inputs**3 + outputs * inputs**2 if settings.method in ("gptq", "learned") else 0
    return slower * (compared + solved)
