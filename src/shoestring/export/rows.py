"""What a model folder holds of a parameter, some rows after others, so that no tensor is in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from shoestring.models.weight_files import Place

SLICE_BYTES = 16 * 2**20  # of float32


def folder_rows(place: Place, multiple: int = 1) -> Iterator[np.ndarray]:
    """float32 [rows, width], a multiple of so many rows at a time, which divides all of them; a vector is one row."""
    shape = place.info.shape
    if len(shape) == 1:
        yield place.file.read(place.tensor).float().numpy().reshape(1, -1)
        return
    rows, width = shape[0], math.prod(shape[1:])
    step = max(multiple, SLICE_BYTES // (4 * width) // multiple * multiple)
    for start in range(0, rows, step):
        part = place.file.read_rows(place.tensor, start, min(start + step, rows))
        yield part.float().numpy().reshape(-1, width)


def whole(place: Place) -> np.ndarray:
    """All rows: float32 of the parameter's shape."""
    return np.concatenate(list(folder_rows(place))).reshape(place.info.shape)
