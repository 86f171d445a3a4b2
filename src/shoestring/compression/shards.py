"""Weights of a model folder written as they come, so that no more than a shard of them is in memory."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from shoestring.models.weight_files import INDEX, WEIGHTS
from shoestring.models.weights import save_file


class ShardWriter:
    """Into a folder that the caller makes appear at once. shard_bytes: after which a shard is written."""

    def __init__(self, folder: Path, shard_bytes: float = 5e8):
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self.total = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Contiguous tensors on the CPU, by their names in the folder."""
        self._waiting |= tensors
        size = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        self._bytes, self.total = self._bytes + size, self.total + size
        if self._bytes >= self._shard_bytes:
            self._write()

    def finish(self) -> None:
        """What is left, and the index where there are several shards."""
        if self._waiting:
            self._write()
        if len(self._shards) == 1:
            self._part(1).rename(self._folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        self._shards.append(list(self._waiting))
        save_file(self._waiting, self._part(len(self._shards)), metadata={"format": "pt"})
        self._waiting, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.safetensors"
