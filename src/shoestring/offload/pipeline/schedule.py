"""In which order a stage runs its microbatches. Torch-free.

One forward, one backward (PipeDream-flush, arXiv 2006.09503; "1F1B"): as soon as a microbatch may go backward it does,
so a stage keeps the activations of a few microbatches, however many a step has. A stage runs ahead by twice as many as
machines behind it, where a link without delay would need once: while one microbatch is computed the next is on its way,
in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from shoestring.plan.ranges import Stage

Turn = tuple[Literal["forward", "backward"], int]


def in_flight(rank: int, stages: int, microbatches: int) -> int:
    """The most microbatches whose activations a stage keeps at once."""
    return Stage(rank, stages).under_way(microbatches)


def turns(rank: int, stages: int, microbatches: int) -> Iterator[Turn]:
    """What a stage does in a step."""
    ahead = min(2 * (stages - rank - 1), microbatches)  # as `Stage.under_way` counts
    for number in range(microbatches):
        yield "forward", number
        if number >= ahead:
            yield "backward", number - ahead
    for number in range(microbatches - ahead, microbatches):
        yield "backward", number


def bubble(stages: int, microbatches: int) -> float:
    """The share of a step in which a stage has nothing to do, where all take equally long and links take nothing."""
    return (stages - 1) / (microbatches + stages - 1)
