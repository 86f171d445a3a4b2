"""What optimizers keep for each weight, and what a step of them takes beside it. Torch-free.

`train.optimizer` and `train.muon` make exactly this; tests/plan holds it to the bytes that the allocator counts.
"""

from __future__ import annotations

from collections.abc import Iterator

GRAM = 1.5  # columns over rows above which Newton-Schulz takes fewer products on X·Xᵀ: 4rrc + 34rrr for 20rrc + 10rrr
PORTION = 2**22  # numbers of matrices that go through Newton-Schulz together, unless one alone has more


def portions(count: int, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the matrices of one shape that are orthogonalized together."""
    each = max(PORTION // (rows * columns), 1)
    for start in range(0, count, each):
        yield start, min(start + each, count)
