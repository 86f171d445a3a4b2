"""The two ends of a streamed decoder: embedding rows are gathered from disk, the head passes by in blocks of rows.

In a small model with a large vocabulary they are the largest matrices: 136 of Qwen2.5-0.5B's 494 million weights. Both
may be one matrix on disk (tied); each has a file handle of its own, so they can be read at the same time. A head that
multiplies integers has a copy of its own, in int8 (`offload.head_store`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shoestring.models.rounded_rows import RoundedRows
from shoestring.models.weight_files import Place
from shoestring.models.weights import TensorFile
from shoestring.nn.head import Block, DenseBlock, OutputHead
from shoestring.nn.quantized.int8_head import Int8Block, RoundedHead
from shoestring.offload.buffers import lying_at
from shoestring.offload.head_store import HeadFile
from shoestring.offload.prefetch import Prefetch

_BUFFERS = 2


class DiskEmbedding(nn.Embedding):
    """tokens [...] -> rows [..., D] in the dtype and on the device of `weight`, which only tells shape and place."""

    def __init__(self, weight: nn.Parameter, place: Place):
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight)
        self.weight = weight
        self._file, self._tensor = place.file.again(), place.tensor

    def forward(self, input: Tensor) -> Tensor:
        ids, where = torch.unique(input, return_inverse=True)
        info = self._file.infos[self._tensor]
        rows = torch.empty((len(ids), info.shape[1]), dtype=info.dtype)
        for number, row in enumerate(ids.tolist()):
            self._file.read_rows_into(self._tensor, row, rows[number])
        return rows.to(device=self.weight.device, dtype=self.weight.dtype)[where]

    def close(self) -> None:
        self._file.__exit__()


class RowBlocks:
    """A matrix in a file, in blocks of its rows: through two buffers, the next block read while one is used.

    file: closed at the end. head: the file of which this is the codes, whose content is checked in the first pass over
    it.
    """

    def __init__(self, file: TensorFile, tensor: str, head: HeadFile | None = None):
        self._file, self._tensor = file, tensor
        self._info = self._file.infos[tensor]
        self._prefetch: Prefetch | None = None
        self._memory: list[Tensor] = []
        self._rows = 0
        self._unchecked = head
        self._sum, self._summed = 0, 0
        self._waited_before = 0.0

    @property
    def waited(self) -> float:
        """Seconds that computing waited for the disk."""
        return self._waited_before + (0.0 if self._prefetch is None else self._prefetch.waited)

    def pass_by(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks of so many rows, each with the number of its first, good until the next is asked for."""
        height = self._info.shape[0]
        firsts = range(0, height, rows)
        reader = self._reader(rows)
        for number, first in enumerate(firsts):
            # After the last block the first one is read again: for the next pass over the matrix.
            coming = [*range(number + 1, len(firsts)), *range(len(firsts))]
            buffer = self._memory[reader.take(number, coming)]
            yield first, buffer[: min(rows, height - first)]

    def close(self) -> None:
        if self._prefetch is not None:
            self._prefetch.close()
        self._memory = []
        self._file.__exit__()

    def _reader(self, rows: int) -> Prefetch:
        if self._prefetch is not None and self._rows == rows:
            return self._prefetch
        if self._prefetch is not None:
            self._waited_before += self._prefetch.waited
            self._prefetch.close()
        self._rows = rows
        if not self._memory or self._memory[0].shape[0] < rows:
            self._memory = []
            self._memory = [self._buffer(rows) for _ in range(_BUFFERS)]
        self._prefetch = Prefetch(self._read, _BUFFERS)
        return self._prefetch

    def _buffer(self, rows: int) -> Tensor:
        """Lies as the matrix does in its file, so that blocks are read in place."""
        shape = (rows, self._info.shape[1])
        even = self._info.offset % self._info.dtype.itemsize == 0
        memory = lying_at(self._info.offset * even, math.prod(shape) * self._info.dtype.itemsize)
        return memory.view(self._info.dtype).view(shape)

    def _read(self, number: int, buffer: int) -> None:
        first = number * self._rows
        target = self._memory[buffer][: self._info.shape[0] - first]
        self._file.stream_rows(self._tensor, target, first)
        if self._unchecked is not None:
            self._check(first, target)

    def _check(self, first: int, codes: Tensor) -> None:
        """Blocks come in order in the first pass; one that was broken off begins anew."""
        assert self._unchecked is not None
        if first == 0:
            self._sum, self._summed = 0, 0
        if first == self._summed:
            self._sum = zlib.crc32(codes.reshape(-1).view(torch.uint8).numpy().data, self._sum)
            self._summed += len(codes)
        if self._summed == self._info.shape[0]:
            self._unchecked.check(self._sum)
            self._unchecked = None


class StreamedHead(OutputHead):
    """A head on disk, dense or in 8 bits. weight_VD is a placeholder: it tells shape and device."""

    def __init__(self, weight_VD: nn.Parameter, place: Place, softcap: float | None = None):
        super().__init__()
        self.vocabulary, self.width = weight_VD.shape
        self.softcap = softcap
        self.weight = weight_VD
        self._scale_V1: Tensor | None = None
        if isinstance(place.file, RoundedRows):
            self._scale_V1 = place.file.scales().float().to(self.weight.device)
            place = place.file.codes
        self.source = RowBlocks(place.file.again(), place.tensor)

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        for first, weight_VD in self.source.pass_by(rows):
            if self._scale_V1 is not None:
                weight_VD = weight_VD.to(self.weight.device) * self._scale_V1[first : first + len(weight_VD)]
            yield first, DenseBlock(weight_VD.to(device=self.weight.device, dtype=dtype))


class StreamedInt8Head(RoundedHead):
    """Its codes on disk, its scales in memory."""

    scale: Tensor

    def __init__(self, file: HeadFile, device: torch.device | str, softcap: float | None = None):
        super().__init__()
        self.softcap = softcap
        self.source = RowBlocks(TensorFile(file.path), "codes", file)
        with TensorFile(file.path) as content:
            self.vocabulary, self.width = content.infos["codes"].shape
            self.register_buffer("scale", content.read("scale").to(device))

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        for first, codes_VD in self.source.pass_by(rows):
            scale_V = self.scale[first : first + len(codes_VD)]
            yield first, Int8Block(codes_VD.to(scale_V.device), scale_V, dtype)
