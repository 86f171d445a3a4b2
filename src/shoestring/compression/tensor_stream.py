"""Safetensors files written as their numbers come, so that none of their tensors is in memory as a whole.

Shapes are known before the first byte, so the header comes first. `join` makes the weight files of a model folder from
parts, byte for byte what stands in them.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.models.weight_files import INDEX, WEIGHTS
from shoestring.models.weights import DTYPES, TensorFile, tensor_bytes

ROWS_TOGETHER = 1 << 22  # numbers
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Streamed(NamedTuple):
    """A tensor to be written: `pieces` gives its numbers in order, in this dtype, in tensors of any shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_streamed(path: Path, tensors: Sequence[Streamed]) -> None:
    """One file, which is on the disk at the end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            before = file.tell()
            for piece in tensor.pieces():
                assert piece.dtype == tensor.dtype, tensor.name
                file.write(tensor_bytes(piece))
            assert file.tell() - before == tensor.bytes, tensor.name
        file.flush()
        os.fsync(file.fileno())


def rows_of(file: TensorFile, name: str) -> Iterable[Tensor]:
    """A tensor of a file, some rows after others."""
    shape = file.infos[name].shape
    if not shape:
        yield file.read(name)
        return
    rows = max(ROWS_TOGETHER // max(torch.Size(shape[1:]).numel(), 1), 1)
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        yield file.read_rows(name, first, last)
        file.forget(name, first, last)


def join(parts: Sequence[TensorFile], folder: Path, shard_bytes: float = 5e9) -> int:
    """The weight files of a model folder, of all tensors of the parts in their order; -> bytes of all tensors.

    shard_bytes: after which another file begins.
    """
    shards: list[list[Streamed]] = [[]]
    used = total = 0
    for file in parts:
        for name, info in file.infos.items():
            tensor = Streamed(name, info.dtype, info.shape, _rows(file, name))
            if shards[-1] and used + tensor.bytes > shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append(tensor)
            used, total = used + tensor.bytes, total + tensor.bytes
    if len(shards) == 1:
        write_streamed(folder / WEIGHTS, shards[0])
        return total
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_streamed(folder / name, shard)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _rows(file: TensorFile, name: str) -> Callable[[], Iterable[Tensor]]:
    return lambda: rows_of(file, name)
