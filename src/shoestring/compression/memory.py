"""What quantizing a model takes in memory, from above, and how a budget is kept: hidden states on disk, less at once.

Counted are the tensors that are there at the worst moments: while a matrix is rounded by GPTQ (three square matrices of
its inputs), while text passes a block, while the head measures. Torch's allocator refuses what would pass the budget
all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.compression.config import TOGETHER, QuantizeConfig
from shoestring.compression.gptq import COLUMNS, WIDE
from shoestring.core.errors import BudgetError
from shoestring.core.units import format_bytes
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.plan.constants import SPARE

_FEWER = (TOGETHER, TOGETHER // 2)
_LEARNED = (TOGETHER // 2,)  # its steps take a batch each
_BESIDE = 60_000_000  # what files, threads and libraries take beside tensors
_AT_ONCE = 1 << 22  # weights looked at at a time (`nn.quantized.grid`)
_HEAD_ROWS = 1 << 24  # numbers of the head and of logits that measuring holds
_FLOAT = 4


@dataclass(frozen=True)
class Room:
    """How much text goes through a block at a time, and whether the rest of it is on disk. lines: predicted bytes of
    tensors, what for. beside: of the process, tensors apart."""

    tokens: int
    on_disk: bool
    lines: tuple[tuple[str, int], ...]
    beside: int

    @property
    def tensors(self) -> int:
        return sum(size for _, size in self.lines)

    @property
    def total(self) -> int:
        return self.tensors + self.beside


def make_room(config: ModelConfig, settings: QuantizeConfig, process: int, memory: int | None) -> Room:
    """The fastest way that is predicted to stay inside `memory` bytes. process: what it takes before. Raises
    BudgetError with the least that would do."""
    lengths = _LEARNED if settings.method == "learned" else _FEWER
    ways = [_room(config, settings, process, tokens, on_disk) for on_disk in (False, True) for tokens in lengths]
    if memory is None:
        return ways[0]
    for way in ways:
        if way.total <= memory * SPARE:
            return way
    least = min(ways, key=lambda way: way.total)
    enough = -(-int(least.total / SPARE) // 10_000_000) * 10
    largest = max(least.lines, key=lambda line: line[1])
    raise BudgetError(
        f"{format_bytes(memory)} of memory are too little to quantize this model by {settings.method}",
        hint=f"{enough}MB would do; {format_bytes(largest[1])} of it are for {largest[0]}",
    )


def _room(config: ModelConfig, settings: QuantizeConfig, process: int, tokens: int, on_disk: bool) -> Room:
    parts = dense_parts(config)
    assert parts is not None
    attention, feed_forward = parts
    width, inner = config.width, feed_forward.width
    queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    shapes = [(queries, width), (keys, width), (keys, width), (width, queries), (inner, width), (inner, width),
              (width, inner)]  # fmt: skip
    weights = sum(outputs * inputs for outputs, inputs in shapes)
    text = settings.calibrate is not None
    by_text = text and settings.method != "rtn"
    rows = (settings.rows if by_text else 0) + (2 * settings.held_out if text else 0)
    context = min(settings.context, config.context)
    batch = max(tokens, context) if text else 0
    copies = 2 if settings.method == "learned" else 1
    kept = 2 * batch if on_disk else rows * context * copies * 5 // 4 + 2 * batch  # rows are padded
    passing = batch * _FLOAT * (6 * width + 2 * (queries + 2 * keys) + 3 * inner)
    rounding = max(_rounding(outputs, inputs, by_text) for outputs, inputs in shapes)
    summing = max((batch * inputs * 2 + inputs * inputs * 3) * _FLOAT for _, inputs in shapes) if by_text else 0
    learning = 0
    if settings.method == "learned":
        learning = weights * 9 * _FLOAT + 4 * passing + 3 * batch * width * _FLOAT
    measuring = 4 * _HEAD_ROWS * _FLOAT if text else 0
    return Room(
        tokens, on_disk,
        (
            ("the text's hidden states", kept * width * _FLOAT),
            ("a block", weights * (_FLOAT + 2)),
            ("its linears at work", max(rounding, passing + summing, learning, measuring)),
        ),
        process + _BESIDE,
    )  # fmt: skip


def _rounding(outputs: int, inputs: int, by_text: bool) -> int:
    """What a matrix takes while it is rounded."""
    grid = min(outputs * inputs, _AT_ONCE) * 8 * 5
    if not by_text:
        return outputs * inputs * 8 * 2 + grid
    size = 8 if inputs <= WIDE else 4
    factoring = 3 * inputs * inputs * size + 2 * COLUMNS * inputs * size
    going = 2 * inputs * inputs * size + outputs * inputs * size * 5
    return max(factoring, going) + outputs * inputs * (size + 2) + grid
