"""The two ends of a streamed decoder: embedding rows are gathered from disk, the head passes by in blocks of rows.

In a small model with a large vocabulary they are the largest matrices: 136 of Qwen2.5-0.5B's 494 million weights. Both
may be one matrix on disk (tied); each has a file handle of its own, so they can be read at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.models.decoder import Head
from shoestring.models.weight_files import Place
from shoestring.models.weights import TensorFile
from shoestring.nn.frozen_head_loss import block_rows
from shoestring.offload.prefetch import Prefetch

_BUFFERS = 2


class DiskEmbedding(nn.Embedding):
    """tokens [...] -> rows [..., D] in the dtype and on the device of `weight`, which only tells shape and place."""

    def __init__(self, weight: nn.Parameter, place: Place):
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight)
        self.weight = weight
        self._file, self._tensor = TensorFile(place.file.path), place.tensor

    def forward(self, input: Tensor) -> Tensor:
        ids, where = torch.unique(input, return_inverse=True)
        info = self._file.infos[self._tensor]
        rows = torch.empty((len(ids), info.shape[1]), dtype=info.dtype)
        for number, row in enumerate(ids.tolist()):
            self._file.read_rows_into(self._tensor, row, rows[number])
        return rows.to(device=self.weight.device, dtype=self.weight.dtype)[where]

    def close(self) -> None:
        self._file.__exit__()


class StreamedHead(Head):
    """hidden [..., D] -> logits [..., V], or the weight block by block. softcap: as `SoftcappedHead`, None: none."""

    def __init__(self, weight_VD: nn.Parameter, place: Place, softcap: float | None = None):
        super().__init__(weight_VD)
        self.softcap = softcap
        self._file, self._tensor = TensorFile(place.file.path), place.tensor
        self._stored = place.info.dtype
        self._prefetch: Prefetch | None = None
        self._memory: list[Tensor] = []
        self._rows = 0
        self.waited_before = 0.0

    @property
    def waited(self) -> float:
        """Seconds that computing waited for the disk."""
        return self.waited_before + (0.0 if self._prefetch is None else self._prefetch.waited)

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = torch.empty((len(rows), self.weight.shape[0]), dtype=hidden.dtype, device=hidden.device)
        for first, block_VD in self.blocks(block_rows(self.weight.shape[1])):
            logits[:, first : first + len(block_VD)] = matmul(rows, block_VD.to(hidden.dtype))
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits.view(*hidden.shape[:-1], -1)

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """The weight in blocks of so many rows, in its own dtype; a block is good until the next is asked for."""
        vocabulary, device = self.weight.shape[0], self.weight.device
        firsts = range(0, vocabulary, rows)
        reader = self._reader(rows)
        for number, first in enumerate(firsts):
            # After the last block the first one is read again: for the next pass over the head.
            coming = [*range(number + 1, len(firsts)), *range(len(firsts))]
            buffer = self._memory[reader.take(number, coming)]
            yield first, buffer[: min(rows, vocabulary - first)].to(device=device, dtype=self.weight.dtype)

    def close(self) -> None:
        if self._prefetch is not None:
            self._prefetch.close()
        self._file.__exit__()

    def _reader(self, rows: int) -> Prefetch:
        if self._prefetch is not None and self._rows == rows:
            return self._prefetch
        if self._prefetch is not None:
            self.waited_before += self._prefetch.waited
            self._prefetch.close()
        self._rows = rows
        if not self._memory or self._memory[0].shape[0] < rows:
            shape = (rows, self.weight.shape[1])
            self._memory = []
            self._memory = [torch.empty(shape, dtype=self._stored) for _ in range(_BUFFERS)]
        self._prefetch = Prefetch(self._read, _BUFFERS)
        return self._prefetch

    def _read(self, number: int, buffer: int) -> None:
        first = number * self._rows
        rows = min(self._rows, self.weight.shape[0] - first)
        self._file.read_rows_into(self._tensor, first, self._memory[buffer][:rows])
        self._file.forget(self._tensor, first, first + rows)
