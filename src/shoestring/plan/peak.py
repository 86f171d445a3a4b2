"""The most that a walk through a model holds, phase by phase: deep models from two shallow walks.

Layers are alike, so whatever a phase holds grows by the same bytes with each further layer, as do a layer's own numbers
from one position to the next: the peak of a deep model lies in its first layers, its last ones, or outside them, and is
had from models of four and of five layers. Models whose layers differ are walked as they are. Torch-free.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

from shoestring.models.config import ModelConfig
from shoestring.plan.tape import Multiplied, Phase, Weight

LAYER = "one block's work"  # the name of the phases that there are one of for each layer
HEAD = "the head and its loss"  # behind which a microbatch goes backward
_SHALLOW = 4


@dataclass(frozen=True)
class Walk:
    """phases: what was live in each. matrices: bytes of a block's; adapters: of all; stored: of other weights.

    trained: how many weights of each shape are. made: bytes of all tensors that came and went, in so many `tensors`.
    products: as `Tape` has them.
    """

    phases: tuple[Phase, ...]
    matrices: float
    adapters: float
    stored: float
    trained: Counter[Weight]
    made: float = 0.0
    tensors: float = 0.0
    products: frozenset[Multiplied] = frozenset()

    @property
    def highest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak)


def walked(config: ModelConfig, walk: Callable[[ModelConfig], Walk]) -> Walk:
    """walk(config), or what it would give."""
    if config.layers <= _SHALLOW + 1 or config.sharing is not None or config.memory is not None:
        with _uncollected():
            return walk(config)
    with _uncollected():
        four, five = (walk(config.model_copy(update={"layers": count})) for count in (_SHALLOW, _SHALLOW + 1))
    further = config.layers - _SHALLOW - 1
    return Walk(
        tuple(_phases(four.phases, five.phases, further)),
        five.matrices,
        five.adapters + (five.adapters - four.adapters) * further,
        five.stored + (five.stored - four.stored) * further,
        Counter({weight: n + (n - four.trained[weight]) * further for weight, n in five.trained.items()}),
        five.made + (five.made - four.made) * further,
        five.tensors + (five.tensors - four.tensors) * further,
        five.products,
    )


def _phases(four: Sequence[Phase], five: Sequence[Phase], further: int) -> list[Phase]:
    """Of runs of layers, the first two and the last two; everything else as it comes."""
    found: list[Phase] = []
    runs = [[list(run) for _, run in groupby(phases, key=lambda phase: phase.name == LAYER)] for phases in (four, five)]
    for a, b in zip(*runs, strict=True):
        pairs = list(zip(a, b, strict=False))  # as many, or one more layer
        if len(a) < len(b):
            pairs = pairs[:2] + list(zip(a[-2:], b[-2:], strict=True))
        found += [_further(one, other, further) for one, other in pairs]
    return found


def _further(a: Phase, b: Phase, further: int) -> Phase:
    names = ("kept", "gradients", "peak", "gradients_at_peak")
    return replace(b, **{name: getattr(b, name) + (getattr(b, name) - getattr(a, name)) * further for name in names})


@contextmanager
def _uncollected():
    """Without Python's search for cycles, which costs more than the walk and finds nothing in it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
