"""The output head with its loss, without numbers (`nn.head_loss`, `nn.frozen_head_loss`, `nn.base_distance`).

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoestring.nn.head_blocks import STATES, block_rows, chunk_rows, compared_rows, even_rows, row_stride
from shoestring.plan.parts import WORTHWHILE, matmul, multiplied
from shoestring.plan.tape import BYTE, FLOAT, INDEX, Tape, Tensor


def trained_head_loss(
    tape: Tape, hidden: Tensor, weight: Tensor, width: int, softcap: bool, labels: float | None = None
) -> Tensor:
    """The loss of a trained head. weight: [V, D]; labels: that count, None: all."""
    rows = hidden if labels is None else chosen(tape, hidden, labels * width)
    del hidden
    vocabulary, count = int(weight.numbers / width), rows.numbers / width
    wants = tape.wants(rows, weight)
    made: list[Tensor] = []
    with tape.recording(False):
        table = weight if weight.size == tape.compute else tape.empty(weight.numbers, tape.compute)
        rows_gradient = tape.like(rows) if wants else None
        weight_gradient: Tensor | None = None
        step = even_rows(int(count), chunk_rows(vocabulary))
        foreign = tape.onednn and step * vocabulary * width >= WORTHWHILE  # products are tensors of their own
        in_place = tape.compute == FLOAT and not foreign
        buffer = tape.empty(step * row_stride(vocabulary)) if in_place else None
        for start in range(0, int(count), step):
            here = min(step, count - start)
            small = rows if rows.size == tape.compute else tape.empty(here * width, tape.compute)
            logits = _logits(tape, here, width, vocabulary, softcap, wants, buffer)
            if not wants:
                del logits, small
                continue
            gradient = logits[0] if logits[0].size == tape.compute else tape.empty(logits[0].numbers, tape.compute)
            del logits
            if not in_place:
                share = matmul(tape, here, vocabulary, width, tape.compute)
                del share
            if weight_gradient is None or not in_place:
                share = matmul(tape, vocabulary, here, width, tape.compute, transposed=True)
                if tape.compute != FLOAT:
                    share = tape.empty(share.numbers)
                weight_gradient = share if weight_gradient is None else weight_gradient
                del share
            del gradient, small
        del table, buffer
    if wants:
        assert rows_gradient is not None and weight_gradient is not None
        made += [rows_gradient, weight_gradient]
    del rows_gradient, weight_gradient
    loss, size = tape.empty(1), rows.size

    def backward(gradient: Tensor) -> list[Tensor | None]:
        rows_gradient, weight_gradient = made
        made.clear()
        return [rows_gradient if rows_gradient.size == size else tape.empty(rows_gradient.numbers), weight_gradient]

    tape.record([loss], [rows, weight], backward)
    return loss


def _logits(
    tape: Tape, rows: float, width: int, vocabulary: int, softcap: bool, wants: bool, buffer: Tensor | None
) -> list[Tensor]:
    """Of a chunk, in the buffer where there is one, and the cap's slope."""
    logits = matmul(tape, rows, width, vocabulary, tape.compute) if buffer is None else buffer
    if logits.size != FLOAT and (softcap or not tape.bfloat):
        logits = tape.empty(logits.numbers)
    held = [logits]
    _widened(tape, logits)
    if softcap and wants:
        squares = tape.empty(rows * vocabulary)
        held.append(tape.like(squares))
        del squares
    tape.scratch(3 * rows)  # two numbers for each, and their difference
    return held


def _widened(tape: Tape, logits: Tensor) -> None:
    """On a GPU the softmax of logits in few bits is made in float32, and written back."""
    if tape.gpu and logits.size != FLOAT:
        tape.scratch(logits.numbers)


Blocks = Callable[[Tape], Iterator[Tensor | None]]
_ROUNDED_COLUMNS = 1024  # of a gradient for logits that are rounded to int8 at a time (`nn.quantized.int8_head`)


def frozen_head_loss(
    tape: Tape, hidden: Tensor, blocks: Blocks, vocabulary: int, width: int, softcap: bool,
    labels: float | None = None, integers: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of a frozen head. blocks: what each takes while it is there. integers: its products are of int8."""
    rows = hidden if labels is None else chosen(tape, hidden, labels * width)
    del hidden
    wants, parts = tape.wants(rows), list[Tensor]()
    made: list[Tensor] = []
    with tape.recording(False):
        small = rows if rows.size == tape.compute else tape.empty(rows.numbers, tape.compute)
        left = rows.numbers / width
        while left > 0:
            count = min(STATES, left)
            parts.append(_over_blocks(tape, count, small.size, blocks, vocabulary, width, softcap, wants, integers))
            left -= count
        if wants:
            made.append(tape.empty(rows.numbers))
        parts.clear()
        del small
    loss = tape.empty(1)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        (made_gradient,) = made
        made.clear()
        return [made_gradient]

    tape.record([loss], [rows], backward)
    return loss


def _over_blocks(
    tape: Tape, count: float, size: int, blocks: Blocks, vocabulary: int, width: int, softcap: bool, wants: bool,
    integers: bool,
) -> Tensor:  # fmt: skip
    """-> the gradient for these rows."""
    sums = tape.empty(count), tape.empty(count)
    mean = tape.empty(count * width if wants else 0)
    label_rows = tape.empty(count * width if wants else 0)  # noqa: F841
    rounded = tape.empty(count * width, BYTE) if integers else None  # noqa: F841
    rows = min(block_rows(width), vocabulary)
    if not integers and (last := vocabulary % rows):
        multiplied(tape, count, width, last, size)
        if wants:
            multiplied(tape, count, last, width, size)
    for block in blocks(tape):
        _merge(tape, count, rows, FLOAT if integers else size, width, softcap, wants)
        if integers:
            tape.scratch(count * _ROUNDED_COLUMNS, BYTE)
        del block
    losses = tape.empty(count)
    del sums, losses
    return mean


def _merge(tape: Tape, count: float, rows: int, size: int, width: int, softcap: bool, wants: bool) -> None:
    """As if all labels stood in this block: the commonest tokens have the first numbers."""
    logits = matmul(tape, count, width, rows, size)
    if size != FLOAT and (softcap or not tape.bfloat):
        logits = tape.empty(logits.numbers)
    _widened(tape, logits)
    if softcap and wants:
        squares = tape.like(logits)
        slopes = tape.like(squares)  # noqa: F841
        del squares
    here = tape.empty(count, INDEX), tape.empty(count, INDEX)  # noqa: F841
    sums = [tape.empty(count) for _ in range(3)]  # noqa: F841
    if wants:
        found = tape.empty(count * width, size) if size != FLOAT else None
        labelled = tape.empty(count * width)  # noqa: F841
        del found, labelled
        gradient = logits if logits.size == size else tape.empty(logits.numbers, size)
        share = matmul(tape, count, rows, width, size)
        del gradient
        if size != FLOAT:
            share = tape.empty(share.numbers)  # noqa: F841
        tape.scratch(count)


def distance(tape: Tape, hidden: Tensor, base: Tensor, vocabulary: int, width: int, softcap: bool) -> Tensor:
    """KL of a model's predictions from its base's, under a frozen head."""
    made = [tape.like(hidden)]
    count = hidden.numbers / width
    with tape.recording(False):
        start = 0.0
        while start < count:
            rows = min(compared_rows(vocabulary), count - start)
            first = _log_softmax(tape, rows, width, vocabulary, softcap)
            second = _log_softmax(tape, rows, width, vocabulary, softcap)
            p = tape.like(first[0])
            share = matmul(tape, rows, vocabulary, width)
            del first, second, p, share
            start += rows
    loss = tape.empty(1)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        (found,) = made
        made.clear()
        return [found]

    tape.record([loss], [hidden], backward)
    return loss


def _log_softmax(tape: Tape, rows: float, width: int, vocabulary: int, slope: bool) -> list[Tensor]:
    logits = matmul(tape, rows, width, vocabulary)
    held = []
    if slope:
        squares = tape.like(logits)
        held.append(tape.like(squares))
        del squares
    return [tape.like(logits), *held]


def chosen(tape: Tape, x: Tensor, numbers: float) -> Tensor:
    """The rows of x that have a label, copied."""
    y = tape.empty(numbers, x.size)
    whole, size = x.numbers, x.size
    tape.record([y], [x], lambda gradient: [tape.empty(whole, size)])
    return y
