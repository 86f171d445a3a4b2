"""What factorizing a model takes in memory, from above (`compression.room`).

The worst moments are those of a matrix in float64: its inputs' second moments with their root, where a matrix has more
outputs than inputs, and the eigenvectors of the smaller side's energies.
"""

from __future__ import annotations

import functools

from shoestring.compression.factorize.config import FactorizeConfig
from shoestring.compression.factorize.sensitivity import TOKENS
from shoestring.compression.room import (
    BESIDE,
    DOUBLE,
    FLOAT,
    Room,
    Sizes,
    batch_tokens,
    fitting,
    head,
    moments,
    summing,
    text_lines,
    ways,
)
from shoestring.models.config import ModelConfig

_ROOTING = 5  # square matrices while a root is made: a copy, vectors, two of workspace, the root
_FACTORING = 8  # matrices in float64, of the shape of one that is factorized, beside it
_VECTORS = 6  # square matrices of its smaller side


def make_room(config: ModelConfig, settings: FactorizeConfig, process: int, memory: int | None) -> Room:
    """The fastest way that is predicted to stay inside `memory` bytes. process: what it takes before. Raises
    BudgetError with the least that would do."""
    return fitting(ways(functools.partial(_room, config, settings, process)), memory, "factorize this model")


def _room(config: ModelConfig, settings: FactorizeConfig, process: int, tokens: int, on_disk: bool) -> Room:
    text, context, sizes = settings.calibrate is not None, min(settings.context, config.context), Sizes.of(config)
    batch = batch_tokens(config, settings, tokens)
    rows = settings.rows + 2 * settings.held_out if text else 0
    passing, block = sizes.passing(batch, context), sizes.block
    peaks = [("the head", head(text)), ("a block", 2 * block + passing)]
    if text:
        squares = 3 * sum(outputs * outputs * DOUBLE for outputs, _ in sizes.matrices)
        between = 0 if on_disk else min(rows * context, TOKENS + batch) * config.layers * config.width * FLOAT * 5 // 4
        peaks.append(("what the loss feels", 2 * block + 4 * passing + squares + between))
    for stage in sizes.stages:
        inputs = stage[0][1]
        square = inputs * inputs * DOUBLE
        rooted = any(outputs > inputs for outputs, _ in stage)
        held = square * (1 + rooted) if text else 0
        if text:
            going = max(passing, summing(inputs, batch))
            peaks.append(("the second moments of inputs", block + moments(inputs) + going))
            peaks.append(("the root of second moments", block + moments(inputs) + square * (1 + _ROOTING * rooted)))
        for outputs, inputs in stage:
            smaller = min(outputs, inputs)
            beside = outputs * inputs * DOUBLE * _FACTORING + smaller * smaller * DOUBLE * _VECTORS
            peaks.append(("the factors of a matrix", 2 * block + held + beside))
    lines = text_lines(config.width, context, batch, on_disk, rows, 1)
    return Room(tokens, on_disk, (*lines, max(peaks, key=lambda peak: peak[1])), process + BESIDE)
