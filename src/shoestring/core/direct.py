"""Parts of a file read past the system's page cache, where the system and the disk allow it (Linux's O_DIRECT).

What is streamed from a disk again and again inside a memory limit finds nothing in the page cache: there, each read
takes pages, copies them and gives them back. On one core of a Zen 4 that took a second of the processor for 2.2 GB, and
a direct read one for 24 GB.

The disk writes whole blocks at addresses that are multiples of a block. So the target must lie in memory as its part
does in the file, up to whole blocks: then all but its ends are read in place.
"""

from __future__ import annotations

import mmap
import os
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 4096  # bytes; what disks ask for, or a multiple of it


class DirectFile:
    """`read_into` fills memory, or says that it could not and nothing is lost. Not for several threads at once."""

    def __init__(self, path: Path):
        self._path = path
        self._file: FileIO | None = None
        self._refused = not hasattr(os, "O_DIRECT")
        self._block: mmap.mmap | None = None

    def read_into(self, offset: int, target: np.ndarray) -> bool:
        """target: uint8 [N], contiguous; filled with the file's bytes from `offset` on. False where it lies otherwise,
        where direct reads are not to be had, or the file ends before."""
        if self._refused or (target.ctypes.data - offset) % BLOCK:
            return False
        try:
            if self._file is None:
                self._file = FileIO(self._path, opener=lambda path, flags: os.open(path, flags | os.O_DIRECT))
            return self._filled(self._file.fileno(), offset, target)
        except OSError:
            self._refused = True  # this disk or file system has no direct reads
            self.close()
            return False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._block = None

    def _filled(self, file: int, offset: int, target: np.ndarray) -> bool:
        before = min(-offset % BLOCK, len(target))
        behind = before + (len(target) - before) // BLOCK * BLOCK
        done = before
        while done < behind:
            count = os.preadv(file, [target[done:behind].data], offset + done)
            if count <= 0 or count % BLOCK:
                return False
            done += count
        return self._end(file, offset, target[:before]) and self._end(file, offset + behind, target[behind:])

    def _end(self, file: int, offset: int, target: np.ndarray) -> bool:
        """A part of one block."""
        if not len(target):
            return True
        if self._block is None:
            self._block = mmap.mmap(-1, BLOCK)  # a whole page
        skipped = offset % BLOCK
        if os.preadv(file, [self._block], offset - skipped) < skipped + len(target):
            return False
        target.data[:] = memoryview(self._block)[skipped : skipped + len(target)]
        return True
