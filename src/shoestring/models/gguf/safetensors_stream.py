"""Writing safetensors files tensor by tensor, so that a model of any size takes little memory.

The format is `8 bytes: header length | JSON header | data`; all shapes are known before the first byte is
written, so the header comes first and the values follow in slices. Models above `max_shard_bytes` become
numbered shards with an index, as Hugging Face names them.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

# Name in the header, bytes per value.
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor still to be made. slices() yields its values in order, as float32 arrays of any shape."""

    name: str
    shape: tuple[int, ...]
    slices: Callable[[], Iterable[np.ndarray]]


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as little-endian storage of `dtype`, rounded to nearest even."""
    if dtype == "float32":
        return np.ascontiguousarray(values, "<f4")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values.astype("<f2"))
    return quants.quantize(np.ascontiguousarray(values, np.float32), GGMLQuantizationType.BF16)


def write_model(folder: Path, tensors: Sequence[StreamedTensor], dtype: str, max_shard_bytes: int) -> int:
    """Write model.safetensors, or shards and their index, into `folder`. Returns the bytes of all values."""
    width = DTYPES[dtype][1]
    shards: list[list[StreamedTensor]] = [[]]
    filled = total = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * width
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
        total += size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0], dtype)
        return total
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def write_file(path: Path, tensors: Sequence[StreamedTensor], dtype: str) -> None:
    """Write one safetensors file."""
    name, width = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * width
        header[tensor.name] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            before = file.tell()
            for values in tensor.slices():
                file.write(cast(values, dtype).data.cast("B"))
            assert file.tell() - before == math.prod(tensor.shape) * width, tensor.name
