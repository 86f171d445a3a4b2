"""What quantizing a model takes in memory, from above, and how a budget is kept: hidden states on disk, less at once.

Counted are the tensors that are there at the worst moments: while a matrix is rounded by GPTQ (three square matrices of
its inputs, and the dense block), while text passes a block, while the head measures; linears that are done are in few
bits then. Torch's allocator refuses what would pass the budget all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoestring.compression.quantize.config import QuantizeConfig
from shoestring.compression.quantize.follow import keeps_inputs
from shoestring.compression.quantize.gptq import COLUMNS, WIDE
from shoestring.compression.room import Room, fitting
from shoestring.compression.text_config import TOGETHER
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.calibration import corrected
from shoestring.plan.constants import QUANTIZING, ROUNDING
from shoestring.plan.quantizing import LINEARS, Rounding, block_time, head_bytes, pass_bytes
from shoestring.plan.shapes import KEPT, Machine, Prediction

_FEWER = (TOGETHER, TOGETHER // 2)
_LEARNED = (TOGETHER // 2,)  # its steps take a batch each
_BESIDE = 60_000_000  # what files, threads and libraries take beside tensors
_AT_ONCE = 1 << 22  # weights looked at at a time (`nn.quantized.grid`)
_HEAD_ROWS = 1 << 24  # numbers of the head and of logits that measuring holds
_FLOAT = 4
_PACKED = 1.6  # bytes of a weight in few bits, scales included, at most
_MADE_DENSE = 10  # bytes of a weight that such a linear takes for a product
_PACKED_NOW = 0.65  # bytes of a weight of 4 bits, scales and codes of the grid included
_LEARNED_COPIES = 14  # of a block's weights: their own, shifts, gradients, and what leads to the codes


def make_room(config: ModelConfig, settings: QuantizeConfig, process: int, memory: int | None) -> Room:
    """The fastest way that is predicted to stay inside `memory` bytes. process: what it takes before. Raises
    BudgetError with the least that would do."""
    return fitting(rooms(config, settings, process), memory, f"quantize this model by {settings.method}")


def rooms(config: ModelConfig, settings: QuantizeConfig, process: int) -> list[Room]:
    """Every way, the fastest first."""
    lengths = _LEARNED if settings.method == "learned" else _FEWER
    return [_room(config, settings, process, tokens, on_disk) for on_disk in (False, True) for tokens in lengths]


def _room(config: ModelConfig, settings: QuantizeConfig, process: int, tokens: int, on_disk: bool) -> Room:
    width, inner, queries, keys = _widths(config)
    text = settings.calibrate is not None
    by_text = text and settings.method != "rtn"
    context = min(settings.context, config.context)
    batch = max(tokens, context) if text else 0
    rows = (settings.rows if by_text else 0) + (2 * settings.held_out if text else 0)
    copies = 2 if settings.follows else 1  # as the dense model has it, and as the quantized one
    kept = 2 * batch if on_disk else rows * context * copies * 5 // 4 + 2 * batch  # rows are padded
    shapes = stages(config)
    whole = sum(outputs * inputs for stage in shapes for outputs, inputs in stage)
    largest = max(outputs * inputs for stage in shapes for outputs, inputs in stage)
    passing = batch * _FLOAT * (6 * width + 2 * (queries + 2 * keys) + 3 * inner) + largest * _MADE_DENSE
    beside = whole * _FLOAT if settings.follows else 0  # the dense block
    peaks, done = [("the head", 4 * _HEAD_ROWS * _FLOAT if text else 0), ("a block", whole * _FLOAT + passing)], 0
    for number, stage in enumerate(shapes):
        inputs = stage[0][1]
        held = (whole - done) * _FLOAT + int(done * _PACKED) + beside
        moments = _moments(inputs) if by_text else 0
        if by_text:
            summing = inputs * inputs * _FLOAT + 2 * batch * inputs * _FLOAT
            peaks.append(("the second moments of inputs", held + moments + max(passing, summing)))
        if settings.follows:
            peaks.append(("following the dense model", held + moments + max(_following(stage, batch, passing))))
        if settings.method == "awq" and number % 2 == 0:
            later = shapes[number + 1][0][1]
            summing = max(passing, later * later * _FLOAT + 2 * batch * later * _FLOAT, largest * _FLOAT * 8)
            peaks.append(("the second moments of inputs", held + moments + _moments(later) + summing))
        rounding = max(_rounding(outputs, inputs, by_text) for outputs, inputs in stage)
        peaks.append(("rounding a matrix", held + rounding))
        done += sum(outputs * inputs for outputs, inputs in stage)
    if settings.method == "learned":
        peaks.append(("learning", whole * _FLOAT * _LEARNED_COPIES + 4 * passing))
    return Room(
        tokens, on_disk, (("the text's hidden states", kept * width * _FLOAT), max(peaks, key=lambda peak: peak[1])),
        process + _BESIDE,
    )  # fmt: skip


def rounding(
    config: ModelConfig, settings: QuantizeConfig, room: Room, calibrating: int | None = None,
    measured: int | None = None,
) -> Rounding:  # fmt: skip
    """What is done to a block. calibrating, measured: tokens of the text; None: as many as the settings ask for."""
    context = min(settings.context, config.context)
    text = settings.calibrate is not None
    if calibrating is None:
        calibrating = settings.rows * context * text
    if measured is None:
        measured = settings.held_out * context * text
    batch = max(room.tokens, context)
    steps, follows = settings.steps, settings.follows
    return Rounding(stages(config), settings.method, calibrating, measured, batch, context, steps, follows)


def predict_room(
    config: ModelConfig, room: Room, job: Rounding, machine: Machine, packed: PackedConfig | None = None,
    source: int = _FLOAT,
) -> Prediction:  # fmt: skip
    """Memory, and seconds of a block, with this machine's corrections: memory at most, or, where it is said how linears
    are packed, as it is expected of this text. machine: with the process as it was before. source: bytes of a number in
    the model's files."""
    time, lines, kept = tuple(block_time(config, job, machine)), room.lines, _BESIDE
    if packed is not None:
        lines = _expected(config, room, job, packed, source)
        kept = ROUNDING if job.method == "rtn" else QUANTIZING
    lines = tuple(line for line in lines if line[1])
    around = (("process, before the model", machine.process), (KEPT, kept))
    found = Prediction(lines, around, sum(seconds for _, seconds in time), time)
    return corrected(found, machine.correction(job.method))


def _expected(
    config: ModelConfig, room: Room, job: Rounding, packed: PackedConfig, source: int
) -> tuple[tuple[str, int], ...]:
    """The worst moment of all, with nothing to spare: `_room`, but for the text that there is."""
    width, by_text = config.width, job.method != "rtn"
    batch, compared = min(job.batch, job.calibrating) if by_text else 0, min(job.batch, job.measured)
    copies = 2 if job.follows or job.method == "learned" else 1
    hidden = 2 * max(batch, compared) if room.on_disk else (job.calibrating * by_text * copies + 2 * job.measured)
    whole = sum(outputs * inputs for stage in job.stages for outputs, inputs in stage)
    few = frozenset((name, packed) for name in LINEARS)
    peaks = [("a block", whole * _FLOAT + pass_bytes(config, compared, job.context) if compared else whole * _FLOAT)]
    if compared:
        after = int(whole * _PACKED_NOW) + pass_bytes(config, compared, job.context, few)
        peaks += [("a block", after), ("the head", head_bytes(config, compared, source))]
    through = pass_bytes(config, batch, job.context) if batch else 0
    done = 0
    for number, stage in enumerate(job.stages):
        inputs = stage[0][1]
        held = (whole - done) * _FLOAT + int(done * _PACKED_NOW) + job.follows * whole * _FLOAT
        moments = _moments(inputs) if by_text else 0
        if by_text:
            summing = inputs * inputs * _FLOAT + 3 * batch * inputs * _FLOAT  # oneDNN copies what it turns
            # What stands before the first linear is a norm.
            peaks.append(("the second moments of inputs", held + moments + max(through if number else 0, summing)))
        if job.follows:
            peaks.append(("following the dense model", held + moments + max(_following(stage, batch, through))))
        if job.method == "awq" and number % 2 == 0:
            later = job.stages[number + 1][0][1]
            summing = max(through, later * later * _FLOAT + 3 * batch * later * _FLOAT)
            peaks.append(("the second moments of inputs", held + moments + _moments(later) + summing))
        for outputs, inner in stage:
            peaks.append(("rounding a matrix", held + _rounding_now(outputs, inner, job.method)))
        done += sum(outputs * inner for outputs, inner in stage)
    if job.method == "learned":
        peaks.append(("learning", whole * _FLOAT * _LEARNED_COPIES + 4 * through))
    return ("the text's hidden states", hidden * width * _FLOAT), max(peaks, key=lambda peak: peak[1])


def _rounding_now(outputs: int, inputs: int, method: str) -> int:
    """What a matrix takes while it is rounded, beside itself, with the second moments of its inputs."""
    weights = outputs * inputs
    fitting = min(weights, _AT_ONCE) * _FLOAT * 5 + weights * 2
    if method == "rtn":
        return fitting
    square, size = _moments(inputs), 8 if inputs <= WIDE else 4
    comparing = square + weights * (4 * size + 2)
    if method == "awq":
        return max(square + fitting, comparing)
    copy = weights * size if size == 8 else 0
    factoring = 3 * square + 3 * min(COLUMNS, inputs) * inputs * size
    going = 2 * square + weights * (size + 2)
    return copy + max(factoring, going, comparing, square + fitting)


def stages(config: ModelConfig) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(outputs, inputs) of the linears that share inputs, in the order in which they run."""
    width, inner, queries, keys = _widths(config)
    return (
        ((queries, width), (keys, width), (keys, width)), ((width, queries),), ((inner, width), (inner, width)),
        ((width, inner),),
    )  # fmt: skip


def _widths(config: ModelConfig) -> tuple[int, int, int, int]:
    """Of the model, its feed-forward, its queries and its keys."""
    parts = dense_parts(config)
    assert parts is not None
    attention, feed_forward = parts
    queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    return config.width, feed_forward.width, queries, keys


def _moments(inputs: int) -> int:
    return inputs * inputs * (8 if inputs <= WIDE else 4)


def _following(stage: Sequence[tuple[int, int]], batch: int, passing: int) -> tuple[int, int, int]:
    """What giving the linears of a stage other weights takes beside the second moments: while text passes, while what
    it is off becomes the linears', and while these are solved for."""
    inputs, outputs = stage[0][1], [each for each, _ in stage]
    square, size = _moments(inputs), 8 if inputs <= WIDE else 4
    off = sum(outputs) * inputs * size
    apart = keeps_inputs(inputs, outputs)
    kept = square if apart else off
    text = batch * _FLOAT * (4 * inputs + max(outputs)) + inputs * inputs * _FLOAT
    turning = square + off + max(outputs) * inputs * size if apart else 0
    return kept + max(passing, text), turning, off + max(2 * square, square + 3 * max(outputs) * inputs * size)


def _rounding(outputs: int, inputs: int, by_text: bool) -> int:
    """What a matrix takes while it is rounded, beside itself."""
    weights = outputs * inputs
    fitting = min(weights, _AT_ONCE) * 8 * 5 + weights * 2
    if not by_text:
        return fitting + weights * 8 * 3
    square, size = _moments(inputs), 8 if inputs <= WIDE else 4
    copy = weights * size if size == 8 else 0
    factoring = 3 * square + 2 * COLUMNS * inputs * size
    going = 2 * square + weights * (2 * size + 4)
    comparing = square + weights * (5 * size + 4)
    return copy + max(factoring, going, comparing, square + fitting)
