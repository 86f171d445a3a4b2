"""What optimizers keep for each weight, and what moving them takes beside that. Torch-free.

`train.optimizer` and `train.muon` make exactly this; tests/plan holds it to the bytes that the allocator counts.
Scalars (counts of steps, norms) are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from shoestring.plan.shapes import Moving
from shoestring.plan.tape import FLOAT, Weight

GRAM = 1.5  # columns over rows above which Newton-Schulz takes fewer products on X·Xᵀ: 4rrc + 34rrr for 20rrc + 10rrr
PORTION = 2**22  # numbers of matrices that go through Newton-Schulz together, unless one alone has more
_BLOCK = 256  # numbers in 8 bits that share a scale
_LEAST_IN_EIGHT_BITS = 4096


def portions(count: int, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the matrices of one shape that are orthogonalized together."""
    each = max(PORTION // (rows * columns), 1)
    for start in range(0, count, each):
        yield start, min(start + each, count)


def in_eight_bits(numbers: int) -> bool:
    """Whether moments of so many numbers are kept in 8 bits where that is asked for: as torchao has it."""
    return numbers >= _LEAST_IN_EIGHT_BITS and numbers % _BLOCK == 0


def kept_moments(moving: Moving, weights: Counter[Weight]) -> int:
    """Bytes, for all of them."""
    return sum(count * _kept(moving, weight) for weight, count in weights.items())


def _kept(moving: Moving, weight: Weight) -> int:
    numbers = weight.numbers
    if moving.kind == "lion" or _is_orthogonalized(moving, weight):
        return numbers * FLOAT
    if moving.kind == "adafactor" and len(weight.shape) > 1:
        return (numbers // weight.shape[-1] + numbers // weight.shape[-2]) * FLOAT
    if moving.kind == "adafactor":
        return numbers * FLOAT
    if moving.eight_bits and in_eight_bits(numbers):
        return 2 * (numbers + numbers // _BLOCK * FLOAT)
    return 2 * numbers * FLOAT


def beside_step(moving: Moving, weights: Counter[Weight]) -> int:
    """The most bytes that moving these weights takes while it lasts."""
    most = 0
    if moving.kind == "lion":
        most = max((2 * weight.numbers for weight in weights), default=0)
    if moving.kind == "adafactor":  # a matrix's step, and the sums of its rows and columns; a vector's squares twice
        most = max(
            (weight.numbers + _kept(moving, weight) // FLOAT if len(weight.shape) > 1 else 2 * weight.numbers
             for weight in weights), default=0,
        )  # fmt: skip
    if moving.kind == "muon":
        alike = Counter[tuple[int, ...]]()
        for weight, count in weights.items():
            if _is_orthogonalized(moving, weight):
                *stacked, rows, columns = weight.shape
                alike[len(stacked), rows, columns] += count * (stacked[0] if stacked else 1)
        for (_, rows, columns), count in alike.items():
            together = max(end - start for start, end in portions(count, rows, columns))
            most = max(most, _orthogonalizing(together, min(rows, columns), max(rows, columns), moving.iterations))
    return most * FLOAT


def _is_orthogonalized(moving: Moving, weight: Weight) -> bool:
    return moving.kind == "muon" and weight.in_block and len(weight.shape) in (2, 3)


def _orthogonalizing(count: int, rows: int, columns: int, iterations: int) -> int:
    """Numbers that live at once while `count` matrices [rows, columns] go through Newton-Schulz (`train.muon`)."""
    wide, square = rows * columns, rows * rows
    filled = count * wide + wide  # and one on its way there
    if columns > GRAM * rows:
        squares = 2 if iterations == 1 else 4 if iterations == 2 else 5
        return max(filled, count * (wide + squares * square), count * (2 * wide + square))
    return max(filled, count * ((2 if iterations == 1 else 3) * wide + 2 * square))
