"""What pruning a model takes in memory, from above (`compression.room`), the training between rounds apart: that is
planned as every training is.

Of rounds the first takes most: the model only gets smaller. Where width goes and is made up for, the text is on its way
through the model as it was, too, and the second moments behind both norms of a block are there.
"""

from __future__ import annotations

import functools

from shoestring.compression.prune.config import PruneConfig
from shoestring.compression.prune.shape import Shape
from shoestring.compression.prune.text import STEP_TOKENS, tokens_to_train_on
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

_MASKING = 48  # bytes of a weight while its matrix is masked: scores, places, what is kept
_BLOCKS = 3  # that are there while parts go: as it was, as it becomes, as it is written
_FITTING = 6  # square matrices of a matrix's inputs, beside their moments
_MATRICES = 4  # in float64, of the shape of one that is fitted
_SAMPLES = 1024  # tokens of which a norm's inputs are kept, at most


def make_room(config: ModelConfig, settings: PruneConfig, target: Shape, process: int, memory: int | None) -> Room:
    """The fastest way that is predicted to stay inside `memory` bytes. process: what it takes before. Raises
    BudgetError with the least that would do."""
    return fitting(ways(functools.partial(_room, config, settings, target, process)), memory, "prune this model")


def _room(
    config: ModelConfig, settings: PruneConfig, target: Shape, process: int, tokens: int, on_disk: bool
) -> Room:
    text, context, sizes = settings.calibrate is not None, min(settings.context, config.context), Sizes.of(config)
    batch = batch_tokens(config, settings, tokens)
    if settings.recover is not None:  # what chooses are batches of what is trained on
        batch = max(batch, STEP_TOKENS)
    narrower = target.width < config.width
    passing, block = sizes.passing(batch, context), sizes.block
    peaks = [("the head", head(text)), ("a block", 2 * block + passing)]
    if settings.masks:
        largest = max(outputs * inputs for outputs, inputs in sizes.matrices)
        peaks.append(("the scores of weights", block + largest * _MASKING))
    else:
        behind_norms = 2 * moments(config.width) if narrower and settings.fit else 0
        views = 2 * (config.layers + 1) * _SAMPLES * config.width * FLOAT
        peaks.append(("looking at layers and width", block + passing + views + 4 * batch * config.width * DOUBLE))
        for outputs, inputs in sizes.matrices:
            held = _BLOCKS * block + behind_norms + moments(inputs)
            solving = inputs * inputs * DOUBLE * _FITTING + outputs * inputs * DOUBLE * _MATRICES
            peaks.append(("parts of a block", held + max(solving, passing, summing(inputs, batch))))
    read = -(-tokens_to_train_on(settings) // context)
    choosing, measuring = settings.rows if text and settings.by_text else 0, settings.held_out if text else 0
    choosing += -(-batch // context) if settings.recover is not None else 0
    copies = 2 if narrower and settings.fit and not settings.masks else 1
    lines = text_lines(config.width, context, batch, on_disk, max(choosing, measuring), copies, read + measuring)
    return Room(tokens, on_disk, (*lines, max(peaks, key=lambda peak: peak[1])), process + BESIDE)
