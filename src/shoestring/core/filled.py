"""Numbers of rows that repeat, for products in half precision on a CPU. Torch-free, as plans are.

oneDNN compiles a product of bfloat16 for every number of rows that it meets, and keeps 0.6 MB of each until the process
ends, whatever its cache is told (docs/experiments.md). Where that number is another in every step (the tokens of an
expert, the labels that count), rows are filled up to one of a few.
"""

from __future__ import annotations

FILLED = 32  # the least multiple


def filled(rows: int) -> int:
    """So many rows, filled up to a multiple of FILLED and of an eighth to a sixteenth of them."""
    step = max(FILLED, (1 << max(rows - 1, 0).bit_length()) >> 4)
    return -(-rows // step) * step


def filled_down(rows: int) -> int:
    """The largest number of rows, up to so many, that nothing is filled up to; `rows` where there is none."""
    return next((fewer for fewer in range(rows, FILLED - 1, -1) if filled(fewer) == fewer), rows)


def filled_sizes(most: int) -> int:
    """How many numbers of rows there are up to `most`, filled up."""
    found, rows = 0, 0
    while rows < most:
        found, rows = found + 1, filled(rows + 1)
    return found
