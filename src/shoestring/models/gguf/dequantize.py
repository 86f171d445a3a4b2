"""Weights of a GGUF tensor as numpy arrays, a few rows at a time.

The block formats themselves are decoded by the `gguf` package, which llama.cpp's authors keep. Here they
are fed in slices, so that the memory taken is that of a slice and not that of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

from shoestring.models.gguf.reader import GGUFFile, TensorInfo

# Float32 bytes of one slice: large enough that numpy's overhead vanishes, small beside any model.
SLICE_BYTES = 16 * 2**20

_PLAIN: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}
_BLOCKS = tuple(
    GGMLQuantizationType[name]
    for name in "BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S "
    "IQ1_S IQ1_M IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4".split()
)
SUPPORTED = frozenset((*_PLAIN, *_BLOCKS))


def dequantize(raw: memoryview | bytes, kind: GGMLQuantizationType, width: int) -> np.ndarray:
    """Decode whole rows. raw: their bytes; width: values in a row. Returns a new float32 [rows, width]."""
    if kind in _PLAIN:
        return np.frombuffer(raw, _PLAIN[kind]).astype(np.float32).reshape(-1, width)
    packed = np.frombuffer(raw, np.uint8)
    # A block format is a function of bytes: infinities in a scale are the file's, not a fault of ours.
    with np.errstate(all="ignore"):
        return np.array(quants.dequantize(packed, kind), dtype=np.float32).reshape(-1, width)


def read_slices(file: GGUFFile, info: TensorInfo, multiple: int = 1) -> Iterator[np.ndarray]:
    """The tensor as float32 slices [rows, width] along its first dimension, in order.

    multiple: every slice has a multiple of this many rows (a head's, say); it divides the tensor's rows.
    A vector is one row. Raises ModelFileError for a type whose values are not weights.
    """
    if info.type not in SUPPORTED:
        names = ", ".join(sorted(kind.name for kind in SUPPORTED))
        raise file.error(
            f"tensor {info.name!r} has the unsupported type {info.type.name}", hint=f"supported: {names}"
        )
    width = info.shape[-1]
    rows = int(np.prod(info.shape[:-1], dtype=np.int64))
    row_bytes = info.nbytes // rows
    step = max(multiple, SLICE_BYTES // (4 * width) // multiple * multiple)
    with file.raw(info) as raw:
        for row in range(0, rows, step):
            with raw[row * row_bytes : min(rows, row + step) * row_bytes] as part:
                values = dequantize(part, info.type, width)
            yield values
