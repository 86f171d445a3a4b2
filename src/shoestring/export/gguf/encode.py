"""Float32 rows as a GGUF tensor's bytes: what `models.gguf.dequantize` reads.

Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and BF16 are rounded by the `gguf` package, which llama.cpp's authors keep; the K formats,
which it only reads, by `export.gguf.k_blocks`.
"""

from __future__ import annotations

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType as Kind

from shoestring.core.errors import ModelFileError
from shoestring.export.gguf.k_blocks import quantize_k

_K = (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
_LARGEST_HALF = 65504.0
BOUNDS: dict[Kind, float] = {
    Kind.Q8_0: 0.025, Kind.Q6_K: 0.15, Kind.Q5_0: 0.2, Kind.Q5_1: 0.2, Kind.Q5_K: 0.25, Kind.Q4_0: 0.4, Kind.Q4_1: 0.4,
    Kind.Q4_K: 0.4,
}  # fmt: skip
"""The most that rounding can take of a tensor, as a part of its norm: half a step of every number of a block whose one
large number sets the step."""
SMALLEST = 1.5e-4
"""And of each number, beside that: scales are float16, whose smallest steps leave nothing of smaller numbers."""


def encode(values: np.ndarray, kind: Kind, name: str) -> np.ndarray:
    """values: float32 [rows, width]. Raises ModelFileError, with the tensor's name, for what the format cannot hold."""
    if kind not in (Kind.F32, Kind.BF16):
        _check(values, name, kind)
    elif not np.isfinite(values).all():
        raise ModelFileError(f"tensor {name} holds numbers that are not finite", hint="the model is broken")
    if kind == Kind.F32:
        return np.ascontiguousarray(values, "<f4")
    if kind == Kind.F16:
        return np.ascontiguousarray(values, "<f2")
    if kind in _K:
        return quantize_k(values, kind)
    return quants.quantize(np.ascontiguousarray(values, np.float32), kind)


def rounded(values: np.ndarray, kind: Kind) -> np.ndarray | None:
    """What reading gives back of the values, float32; None of a format in blocks."""
    if kind == Kind.F32:
        return values
    if kind == Kind.F16:
        return values.astype(np.float16).astype(np.float32)
    if kind == Kind.BF16:
        packed = quants.quantize(np.ascontiguousarray(values, np.float32), kind)
        return quants.dequantize(packed, kind).reshape(values.shape)
    return None


def _check(values: np.ndarray, name: str, kind: Kind) -> None:
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise ModelFileError(f"tensor {name} holds numbers that are not finite", hint="the model is broken")
    if largest > _LARGEST_HALF:
        raise ModelFileError(
            f"tensor {name} holds {largest:g}, which is beyond float16, in which {kind.name} has its numbers or scales",
            hint="take --type bf16 or f32",
        )
