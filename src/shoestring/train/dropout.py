"""Dropout that depends on the place, not on the order: each (step, microbatch, layer) has a seed of its own.

A streamed step runs all microbatches through one layer before the next, a resident one the other way round, and both
compute layers again going backward. With a seed for each place all of them draw the same masks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from shoestring.core.seeds import derive_seed
from shoestring.nn.lora import LoRA
from shoestring.train import parallel


@contextlib.contextmanager
def microbatch_seeds(model: nn.Module, count: int) -> Iterator[list[int | None]]:
    """A seed for each microbatch of a step, for its `Context`; None where nothing is drawn.

    The step takes one number from torch's global generator, whatever is drawn inside.
    """
    if not (model.training and any(isinstance(part, LoRA) and part.config.dropout for part in model.modules())):
        yield [None] * count
        return
    step = int(torch.randint(2**62, (), device="cpu"))
    state = torch.get_rng_state()
    try:
        yield [derive_seed(step, parallel.share(), number) for number in range(count)]
    finally:
        torch.set_rng_state(state)
