"""Reversible blocks without numbers (`nn.reversible`): only the last pair of streams is kept. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoestring.nn.config import Recompute
from shoestring.plan.attention import Context
from shoestring.plan.blocks import Block
from shoestring.plan.parts import RANDOM_STATE
from shoestring.plan.tape import BYTE, Leaf, Tape, Tensor

Pair = list[Tensor]  # of the block whose turn it is in the backward pass


def run_reversible(
    tape: Tape, blocks: Sequence[Block], order: Sequence[int], x: Tensor, context: Context, recompute: Recompute
) -> Tensor:
    """The sum of both streams, halved."""
    if not tape.grad:
        return _plain(tape, blocks, order, x, context)
    last: Pair = []
    random = tape.empty(0 if tape.gpu else RANDOM_STATE, BYTE)
    y1 = y2 = x
    for index in order:
        tape.memory.begin("one block's work")
        y1, y2 = _rebuilt(tape, blocks[index], last, random, y1, y2, context, recompute == "selective")
    return _join(tape, last, y1, y2)


def _plain(tape: Tape, blocks: Sequence[Block], order: Sequence[int], x: Tensor, context: Context) -> Tensor:
    y1 = y2 = x
    for index in order:
        tape.memory.begin("one block's work")
        added = blocks[index].attend(tape, y2, context)
        y1 = tape.like(y1)
        added = blocks[index].feed(tape, y1)
        y2 = tape.like(y2)
        del added
    total = tape.like(y1)
    return tape.like(total)


def _rebuilt(
    tape: Tape, block: Block, last: Pair, random: Tensor, x1: Tensor, x2: Tensor, context: Context, selective: bool
) -> tuple[Tensor, Tensor]:
    compute = tape.compute
    with tape.recording(False):
        y1 = _added(tape, block.attend(tape, x2, context))
        added = block.feed(tape, y1)
        y2 = tape.like(added)
        del added

    def again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """With a graph; torch's generator is set back, and put right again."""
        now = tape.like(random)  # noqa: F841
        with tape.autocast(compute), tape.recording(True), tape.recipes(selective):
            return function(tape, *inputs)

    weights = [weight for weight in block.weights if weight.node is not None]

    def backward(y1_gradient: Tensor, y2_gradient: Tensor) -> list[Tensor | None]:
        tape.memory.begin("one block's work")
        y1, y2 = last
        leaf = _leaf(y1)
        added = again(block.feed, leaf)
        feed = _gradients(tape, added, y2_gradient, leaf, weights)
        x2 = tape.like(y2)
        del added
        total = tape.like(y1_gradient)
        leaf = _leaf(x2)
        added = again(block.attend, leaf, context)
        attend = _gradients(tape, added, total, leaf, weights)
        last[:] = [tape.like(y1), x2]
        x2_gradient = tape.like(y2_gradient)
        return [total, x2_gradient, *(one or other for one, other in zip(feed[1:], attend[1:], strict=True))]

    tape.record([y1, y2], [x1, x2, *weights], backward)
    return y1, y2


def _added(tape: Tape, x: Tensor) -> Tensor:
    return tape.like(x)


def _leaf(x: Tensor) -> Tensor:
    leaf = x.detach()
    leaf.node = Leaf()
    return leaf


def _gradients(
    tape: Tape, output: Tensor, gradient: Tensor, leaf: Tensor, weights: list[Tensor]
) -> list[Tensor | None]:
    wanted = [tensor.node for tensor in (leaf, *weights) if tensor.node is not None]
    return tape.gradients_of(output, gradient, wanted)


def _join(tape: Tape, last: Pair, y1: Tensor, y2: Tensor) -> Tensor:
    total = tape.like(y1)
    mean = tape.like(total)
    del total
    saved = tape.save(y1), tape.save(y2)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        last[:] = [take() for take in saved]
        half = tape.like(gradient)
        return [half, half]

    tape.record([mean], [y1, y2], backward)
    return mean
