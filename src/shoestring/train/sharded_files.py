"""One safetensors file for each rank, each with its rows of every tensor: a folder that any number of ranks reads.

The form is that of `torch.distributed.checkpoint`'s HuggingFaceStorageWriter (names of files, and in each header where
a part begins, under DCP_SHARDING_INFO), so its HuggingFaceStorageReader reads the folder too, and a test has it do so.
It is written here, because torch's writer makes the whole file in memory first, as large again as what it saves.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.foreign import parse_json
from shoestring.models.weights import TensorFile, write_tensors

_INFO, _OFFSETS, _SHARDS = "DCP_SHARDING_INFO", "saved_offsets", "shards"


def write_shard(folder: Path, rank: int, ranks: int, parts: Mapping[str, tuple[Tensor, int]]) -> None:
    """This rank's file. parts: tensors by name, each with the number of its first row in the whole one."""
    info = {name: {_OFFSETS: [first, *[0] * (part.ndim - 1)][: part.ndim]} for name, (part, first) in parts.items()}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", _INFO: json.dumps(info), _SHARDS: str(ranks)}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", "wb") as out:
        write_tensors(out, {name: part for name, (part, _) in parts.items()}, metadata)


class Whole(NamedTuple):
    """Of a tensor that lies in parts."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class ShardedFiles:
    """All files of such a folder as one, read as `TensorFile` is. Raises ModelFileError where something is missing."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._opened = contextlib.ExitStack()
        self._parts: dict[str, list[tuple[int, TensorFile]]] = {}
        self.infos: dict[str, Whole] = {}
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> ShardedFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def _open(self) -> None:
        paths = sorted(self.path.glob("shard-*.safetensors"))
        files = [self._opened.enter_context(TensorFile(path)) for path in paths]
        if not files or any(file.metadata.get(_SHARDS) != str(len(files)) for file in files):
            wanted = files[0].metadata.get(_SHARDS, "several") if files else "several"
            raise ModelFileError(f"expected {wanted} files shard-*.safetensors, found {len(files)}", str(self.path))
        for file in files:
            for name, first in _firsts(file).items():
                self._parts.setdefault(name, []).append((first, file))
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part[0])
            self.infos[name] = self._whole(name, parts)

    def _whole(self, name: str, parts: list[tuple[int, TensorFile]]) -> Whole:
        infos = [file.infos[name] for _, file in parts]
        rows = [info.shape[0] if info.shape else 1 for info in infos]
        begins = [sum(rows[:number]) for number in range(len(rows))]
        found = [first for (first, _), count in zip(parts, rows, strict=True) if count]
        alike = len({(info.dtype, len(info.shape), info.shape[1:]) for info in infos}) == 1
        if not alike or found != [begin for begin, count in zip(begins, rows, strict=True) if count]:
            raise ModelFileError(f"the parts of {name} do not make one tensor", str(self.path))
        first = infos[0]
        return Whole(first.dtype, (sum(rows), *first.shape[1:]) if first.shape else ())

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target`, of the whole's shape, any dtype and device."""
        assert tuple(target.shape) == self.infos[name].shape, (name, target.shape)
        if not target.ndim:
            self._parts[name][0][1].read_into(name, target)
        else:
            self.read_part(name, 0, target)

    def read_part(self, name: str, first: int, target: Tensor) -> None:
        """Fill `target` with as many rows, from row `first` on."""
        for begin, file in self._parts[name]:
            rows = file.infos[name].shape[0]
            low, high = max(first, begin), min(first + len(target), begin + rows)
            if low < high:
                file.read_part(name, low - begin, target[low - first : high - first])


def _firsts(file: TensorFile) -> dict[str, int]:
    """The first row of every tensor in a file."""
    try:
        info = parse_json(file.metadata.get(_INFO, ""))
        firsts = {name: [*info[name][_OFFSETS], 0][0] for name in file.infos}
        if not all(type(first) is int and 0 <= first < 2**62 for first in firsts.values()):
            raise ValueError("offsets that are no counts")
        return firsts
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelFileError("this file does not say which rows it holds", str(file.path)) from error
