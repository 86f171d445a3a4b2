"""Writing a GGUF file, tensor by tensor and slice by slice, so that memory holds one slice of one tensor.

`magic, version, tensor count, pair count, pairs, tensor infos, padding, tensor data`: all shapes are known before the
first byte is written, so infos come first and the data follows. The reader is `models.gguf.reader`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUFValueType
from gguf.constants import GGMLQuantizationType as Kind

VERSION, ALIGNMENT = 3, 32
Value = bool | int | float | str | list[str] | np.ndarray
"""bool, uint32, float32, string, array of strings, array of int32."""
_ARRAY, _STRING = int(GGUFValueType.ARRAY), int(GGUFValueType.STRING)


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor still to be written. shape: slowest dimension first. slices() yields its bytes in order."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    slices: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        numbers, size = GGML_QUANT_SIZES[self.kind]
        assert self.shape[-1] % numbers == 0, self.name
        return math.prod(self.shape) // numbers * size


def write_gguf(file: IO[bytes], metadata: Mapping[str, Value], tensors: Sequence[GGUFTensor]) -> None:
    """Write a whole file from where the stream stands, which is its beginning."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    offset = 0
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))  # fastest first
        head += _string(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, int(tensor.kind), offset)
        offset += _padded(tensor.nbytes)
    file.write(head + bytes(_padded(len(head)) - len(head)))
    for tensor in tensors:
        written = 0
        for part in tensor.slices():
            content = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            file.write(content.data)
            written += len(content)
        assert written == tensor.nbytes, tensor.name
        file.write(bytes(_padded(written) - written))


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    content = text.encode("utf-8", "replace")  # a lone surrogate cannot be written; reading back will tell
    return struct.pack("<Q", len(content)) + content


def _value(value: Value) -> bytes:
    """The type's number and the value. A whole number is 32 bits wide where it fits, as llama.cpp expects it."""
    if isinstance(value, bool):
        return struct.pack("<IB", int(GGUFValueType.BOOL), value)
    if isinstance(value, int):
        wide = value >= 2**32
        return struct.pack("<IQ" if wide else "<II", int(GGUFValueType.UINT64 if wide else GGUFValueType.UINT32), value)
    if isinstance(value, float):
        return struct.pack("<If", int(GGUFValueType.FLOAT32), value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    numbers: np.ndarray[Any, Any] = value
    assert numbers.dtype == np.int32 and numbers.ndim == 1
    head = struct.pack("<IIQ", _ARRAY, int(GGUFValueType.INT32), len(numbers))
    return head + numbers.astype("<i4").tobytes()
