"""Inputs of layers between the way up and the way down: layers × tokens × width numbers, in memory or in a file.

In a file they cost one write and one read of each number in a step, and memory for one layer's alone. The file has no
name, so nothing is left behind whatever happens.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from shoestring.core.errors import RunError


class Kept(NamedTuple):
    """Where one input is: in `tensor`, or at `offset` of the file."""

    tensor: Tensor | None
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Inputs:
    """folder: for the file, None keeps everything in memory. Raises RunError when the disk is full."""

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0

    def begin(self) -> None:
        """A new step: what was kept is gone."""
        self._end = 0

    def keep(self, x: Tensor) -> Kept:
        if self._folder is None:
            return Kept(x, 0, x.shape, x.dtype, x.device)
        kept = Kept(None, self._end, x.shape, x.dtype, x.device)
        memory = x.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  closed with us
            self._file.seek(self._end)
            while memory:
                memory = memory[self._file.write(memory) :]
        except OSError as error:
            hint = "free some space, or allow more memory, so that inputs of layers stay there"
            raise RunError(f"inputs of layers cannot be written: {error.strerror}", str(self._folder), hint) from error
        self._end += x.numel() * x.element_size()
        return kept

    def take(self, kept: Kept) -> Tensor:
        """A tensor of its own; it can be taken once."""
        if kept.tensor is not None:
            return kept.tensor
        assert self._file is not None
        tensor = torch.empty(kept.shape, dtype=kept.dtype)
        memory = tensor.view(-1).view(torch.uint8).numpy().data
        self._file.seek(kept.offset)
        while memory:
            memory = memory[self._file.readinto(memory) :]  # type: ignore[attr-defined]
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), kept.offset, tensor.nbytes, os.POSIX_FADV_DONTNEED)
        return tensor.to(kept.device)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
