"""Layers of a store brought into memory one after another, and bound to the parameters of their blocks.

A block outside memory has placeholders for its matrices: one number that stands for all of them (NaN, so that a use by
mistake shows), with the right shape. `load(index)` fills a buffer, points the block's parameters at it, and begins to
read the next layer on a thread. Half-precision matrices are made float32 once, for all the microbatches that follow.
On a GPU, a buffer is pinned memory, and the reading thread copies it to one of as many buffers there on a stream of its
own; that path has not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.offload.buffers import lying_at
from shoestring.offload.prefetch import Prefetch
from shoestring.offload.store import Piece, Store, checksum

_ALIGNMENT = 64


def placeholder(shape: Iterable[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor of this shape that takes the memory of one number."""
    value = torch.nan if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(tuple(shape))


class LayerStream:
    """slots: buffers, at least 2 to read ahead. dtype: that dense matrices are used in.

    waited: seconds that computing waited for the disk; bytes_read: from it. An index is that of a unique block.
    """

    def __init__(
        self, store: Store, blocks: nn.ModuleList, slots: int = 2, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu", prefetch: bool = True,
    ):  # fmt: skip
        self.store = store
        self.layers = len(store.layers)
        self.slots = max(min(slots, self.layers), min(2, self.layers))
        self.bytes_read = 0
        self._device = torch.device(device)
        self._places = _layout(store.layers[0])
        self._owners = [[_owner(block, piece.name) for piece in store.layers[0]] for block in blocks]
        size = max((start + piece.bytes for piece, start in zip(store.layers[0], self._places, strict=True)), default=0)
        pinned = self._device.type == "cuda"
        self._together = [_together(layer) for layer in store.layers]
        begin = store.layers[0][0].offset if self._together[0] else 0
        self._buffers = [lying_at(begin, size, pinned) for _ in range(self.slots)]
        self._views = [self._view(buffer) for buffer in self._buffers]
        self._upload = _Upload(size, self.slots, self._device, self._view) if pinned else None
        self._wide = self._converted(dtype)
        self._checked: set[int] = set()
        self._bound: int | None = None
        ahead = min(2, self.slots - 1) if prefetch else 0
        self._prefetch = Prefetch(self._read, self.slots, ahead)

    @property
    def waited(self) -> float:
        return self._prefetch.waited

    @property
    def reads(self) -> int:
        """Layers read so far."""
        return self._prefetch.reads

    def load(self, index: int, coming: Iterable[int] = ()) -> None:
        """Make block `index` whole until the next call. coming: the blocks that will be asked for after it."""
        if index == self._bound:
            return
        self.release()
        slot = self._prefetch.take(index, coming)
        views = self._views[slot] if self._upload is None else self._upload.ready(slot)
        for (owner, name), view, wide in zip(self._owners[index], views, self._wide, strict=True):
            if wide is not None:
                view = wide.copy_(view)
            _point(owner, name, view)
        self._bound = index

    def release(self) -> None:
        """Leave no block whole. Buffers keep what they hold."""
        if self._bound is None:
            return
        for owner, name in self._owners[self._bound]:
            old = getattr(owner, name)
            _point(owner, name, placeholder(old.shape, old.dtype, old.device))
        if self._upload is not None:
            self._upload.used()
        self._bound = None

    def close(self) -> None:
        """End the reading thread and close the files."""
        self.release()
        self._prefetch.close()
        self._buffers, self._views, self._wide = [], [], []
        self.store.close()

    def _read(self, index: int, slot: int) -> None:
        pieces = self.store.layers[index]
        if self._upload is not None:
            self._upload.wait(slot)
        if self._together[index]:
            size = sum(piece.bytes for piece in pieces)
            pieces[0].file.stream(pieces[0].offset, self._buffers[slot][:size])
        else:
            for piece, view in zip(pieces, self._views[slot], strict=True):
                piece.file.stream_rows(piece.tensor, view)
        self.bytes_read += sum(piece.bytes for piece in pieces)
        if self.store.checks is not None and index not in self._checked:
            self._check(index, self._views[slot])
        if self._upload is not None:
            self._upload.start(slot, self._buffers[slot])

    def _check(self, index: int, views: list[Tensor]) -> None:
        assert self.store.checks is not None
        if checksum(views) != self.store.checks[index]:
            file = self.store.layers[index][0].file.path
            raise ModelFileError(
                "the store of streamed layers is corrupted: its content does not match its checksum", str(file),
                f"delete the folder {file.parent}: it is made again from the model",
            )  # fmt: skip
        self._checked.add(index)

    def _view(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[start : start + piece.bytes].view(piece.dtype).view(piece.shape)
            for piece, start in zip(self.store.layers[0], self._places, strict=True)
        ]

    def _converted(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Where matrices that are stored in another dtype are made `dtype`; None for those used as they are."""
        found: list[Tensor | None] = []
        dense = [getattr(owner, name) for owner, name in self._owners[0]]
        numbers = sum(old.numel() for piece, old in zip(self.store.layers[0], dense, strict=True)
                      if isinstance(old, nn.Parameter) and piece.dtype != dtype)  # fmt: skip
        memory, used = torch.empty(numbers, dtype=dtype, device=self._device), 0
        for piece, old in zip(self.store.layers[0], dense, strict=True):
            if isinstance(old, nn.Parameter) and piece.dtype != dtype:
                found.append(memory[used : used + old.numel()].view(old.shape))
                used += old.numel()
            else:
                found.append(None)
        return found


class _Upload:
    """Copies of the buffers on a GPU, made by the reading thread on a stream of their own."""

    def __init__(self, size: int, slots: int, device: torch.device, view):
        self._copies = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(slots)]
        self._views = [view(copy) for copy in self._copies]
        self._stream = torch.cuda.Stream(device)
        self._arrived = [torch.cuda.Event() for _ in range(slots)]
        self._released = torch.cuda.Event()

    def wait(self, slot: int) -> None:
        """Until the pinned buffer is no longer copied from."""
        self._arrived[slot].synchronize()

    def start(self, slot: int, buffer: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._released)
            self._copies[slot].copy_(buffer, non_blocking=True)
            self._arrived[slot].record(self._stream)

    def ready(self, slot: int) -> list[Tensor]:
        torch.cuda.current_stream().wait_event(self._arrived[slot])
        return self._views[slot]

    def used(self) -> None:
        self._released.record(torch.cuda.current_stream())


def _together(pieces: tuple[Piece, ...]) -> bool:
    """Whether they lie one behind another in one file, each where its numbers can be used: as a store is written."""
    end, first = pieces[0].offset, pieces[0]
    for piece in pieces:
        if piece.file is not first.file or piece.offset != end or end % piece.dtype.itemsize:
            return False
        end += piece.bytes
    return True


def _layout(pieces: tuple[Piece, ...]) -> list[int]:
    """Where each piece begins in a buffer: as in its file, where they lie together there."""
    together, starts, used = _together(pieces), [], 0
    for piece in pieces:
        used = used if together else -(-used // _ALIGNMENT) * _ALIGNMENT
        starts.append(used)
        used += piece.bytes
    return starts


def _owner(block: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, last = name.rpartition(".")
    return block.get_submodule(module), last


def _point(owner: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(owner, name)
    if isinstance(old, nn.Parameter):
        old.data = tensor
    else:
        setattr(owner, name, tensor)
