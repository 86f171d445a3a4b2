"""How long a block takes to be quantized (`compression.quantize`): operations, and bytes that pass memory. Torch-free.

Text that is measured passes a block twice, once with its own weights; text that calibrates passes what stands before
each stage of linears, then the whole. A linear is then rounded from the second moments of its inputs: by GPTQ in
float64, one input after another, by AWQ after a search for scales, and "learned" by steps with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.nn.head_blocks import block_rows
from shoestring.plan.constants import ATTENTION, CALL, PRODUCTS
from shoestring.plan.heads import frozen_head_loss
from shoestring.plan.model import Model
from shoestring.plan.shapes import Machine, Packed, Training
from shoestring.plan.streamed import streamed_blocks
from shoestring.plan.tape import FLOAT, Memory, Tape

_DOUBLE = 8  # bytes
_NARROW = 0.5  # of float32's products, those of float64: half as many numbers in a register
_FITTED = 9 * 4 * 2 * FLOAT  # bytes of a weight: nine ranges, each tried in some four passes, read and written
_ROUNDED = 10 * 2 * FLOAT  # one range
_UNPACKED = 6 * 2 * FLOAT  # codes made weights again, for one product
_INPUT_CALLS = 4  # operations for each input that GPTQ rounds: of such a size that they wait for Python
_TOGETHER = 128  # inputs whose errors reach one another at once
_SCALES = 10  # that AWQ tries
_LEARNED = 40 * FLOAT  # bytes of a weight and step: codes, their gradients, and the step

LINEARS = (
    "attention.query", "attention.key", "attention.value", "attention.output", "feed_forward.gate", "feed_forward.up",
    "feed_forward.down",
)  # fmt: skip
Shape = tuple[int, int]  # outputs, inputs


@dataclass(frozen=True)
class Rounding:
    """stages: shapes of linears that share inputs, in their order. calibrating, measured: tokens; batch: of them at
    once; context: of a row. method: of `compression.quantize`; steps: of "learned"."""

    stages: Sequence[Sequence[Shape]]
    method: str
    calibrating: int
    measured: int
    batch: int
    context: int
    steps: int = 0
    follows: bool = False


def block_time(config: ModelConfig, how: Rounding, machine: Machine) -> Iterator[tuple[str, float]]:
    """What for, and seconds."""
    flops, bandwidth = PRODUCTS * machine.flops, machine.bandwidth
    attention = operations(config, how.context).attention / config.layers / (ATTENTION * machine.flops)
    whole = sum(outputs * inputs for stage in how.stages for outputs, inputs in stage)

    def passing(tokens: int, weights: int, attending: bool, packed: int) -> float:
        """Seconds of text through linears of so many weights, `packed` of them in few bits."""
        batches = -(-tokens // max(how.batch, 1))
        products = tokens * (2 * weights / flops + attending * attention)
        activations = tokens * (8 * config.width + weights / max(config.width, 1)) * 2 * FLOAT / bandwidth
        return products + activations + batches * packed * _UNPACKED / bandwidth

    if how.measured:
        yield "measuring", passing(how.measured, whole, True, 0) + passing(how.measured, whole, True, whole)
    if how.method == "rtn":
        yield "rounding", whole * _ROUNDED * 3 / bandwidth
        return
    before, through = 0, passing(how.calibrating, whole, True, whole)
    moments = rounding = searching = 0.0
    for number, stage in enumerate(how.stages):
        inputs = stage[0][1]
        times = 1
        if how.method == "awq" and number % 2:
            times = 2  # while the linear before it is dense, and again
        through += times * passing(how.calibrating, before, number > 0, before)
        moments += times * how.calibrating * 2 * inputs * inputs / flops
        for outputs, inner in stage:
            if how.method == "awq":
                searching += _SCALES * (outputs * inner * (_FITTED + 4 * _ROUNDED) / bandwidth)
                searching += _SCALES * 2 * outputs * inner * inner / flops
            rounding += _rounded(outputs, inner, how.method, machine)
        before += sum(outputs * inner for outputs, inner in stage)
    if how.follows:
        # The dense block beside; products of its outputs with the inputs, and a matrix of these to be solved with.
        through += passing(how.calibrating, whole, True, 0) + passing(how.calibrating, before, True, before)
        moments += how.calibrating * 2 * whole / flops
        rounding += sum(
            (2 * inner**3 / 3 + 2 * outputs * inner**2) / (_NARROW * flops) for s in how.stages for outputs, inner in s
        )
    yield "text through the block", through
    yield "second moments of inputs", moments
    if searching:
        yield "searching for scales", searching
    yield "rounding", rounding
    if how.method == "learned":
        # A step goes forward and backward, for weights too; the errors are measured before, after, and of each linear.
        tokens = how.steps * how.batch
        steps = tokens * (6 * whole / flops + 3.5 * attention) + how.steps * whole * _LEARNED / bandwidth
        again = 3 * passing(how.calibrating, whole, True, whole) + moments
        yield "learning", steps + again


def _rounded(outputs: int, inputs: int, method: str, machine: Machine) -> float:
    """Seconds of one linear."""
    weights, double, bandwidth = outputs * inputs, _NARROW * PRODUCTS * machine.flops, machine.bandwidth
    found = weights * (_FITTED + 3 * _ROUNDED) / bandwidth
    found += 3 * 2 * weights * inputs / double  # errors of this rounding, of the nearest, and of zeros
    if method == "awq":
        return found
    found += (2 * inputs**3 / 3 + weights * inputs) / double  # a factor and its inverse; the errors that are passed on
    found += inputs * _TOGETHER / 2 * outputs * 3 * _DOUBLE / bandwidth
    return found + inputs * _INPUT_CALLS * CALL


def pass_bytes(config: ModelConfig, tokens: int, context: int, packed: Packed = frozenset()) -> int:
    """The most that text takes on its way through a block, what enters it aside. packed: of its linears, by name."""
    tape = Tape(Memory())
    tape.training = False
    model = Model(tape, config.model_copy(update={"layers": 1}), Training(full=False, packed=packed))
    with tape.recording(False):
        x = tape.empty(tokens * config.width)
        around = model.context(tape, max(tokens // context, 1), min(context, tokens), True)
        tape.memory.begin("a block")
        model.blocks[0](tape, x, around)
    return int(tape.memory.phase.peak - x.bytes)


def head_bytes(config: ModelConfig, tokens: int, source: int) -> int:
    """The most that measuring takes, hidden states aside. source: bytes of a number on disk."""
    tape = Tape(Memory())
    tape.training = False
    blocks = streamed_blocks(config.vocabulary, config.width, source)
    with tape.recording(False):
        normed = tape.empty(tokens * config.width)
        frozen_head_loss(tape, normed, blocks, config.vocabulary, config.width, config.logit_softcap is not None)
    return int(max(phase.peak for phase in tape.memory.phases) + 2 * block_rows(config.width) * config.width * source)
