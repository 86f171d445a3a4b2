"""Arrays of a shard on disk, read a slice at a time and checked where they are read.

A file is a row of blocks, each of so many numbers; for each there is a CRC-32 of what it holds, and where it is
compressed (zstd, one frame to a block, so that any of them is read alone) its place in the file. A block is checked
when it is first read: opening costs nothing, and no damage is trained on in silence.
"""

from __future__ import annotations

import mmap
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard

from shoestring.core.errors import DataError

BLOCK = 1 << 15  # numbers: 64 kB of tokens of two bytes
_KEPT = 64  # blocks that stay uncompressed in memory, 8 MB at most
_AGAIN = "prepare again"
_RESIDENT = 32 * 2**20  # bytes of mapped files that count as the process's own, by our count
_TOUCHED = 2**16  # that come into memory with any byte that is read


class TokenFile:
    """[length] numbers of `dtype`, mapped into memory or compressed. sums: CRC-32 of each block; places: int64
    [blocks + 1] in a compressed file, None in a plain one.

    Slices raise DataError for damage. Safe to read from several threads.
    """

    def __init__(
        self, file: Path, dtype: np.dtype, length: int, sums: np.ndarray, places: np.ndarray | None = None
    ) -> None:
        self.file, self.dtype, self._length = file, dtype, length
        self._sums, self._places = sums, places
        self._checked = np.zeros(len(sums), bool)
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._mapped = mapped(file, np.dtype("u1") if places is not None else dtype)
        _Resident.add(self._mapped)

    def __len__(self) -> int:
        return self._length

    @property
    def unchecked(self) -> np.ndarray:
        """All of a plain file as it is, for a search."""
        assert self._places is None
        _Resident.touched(self._length.bit_length() * _TOUCHED)
        return self._mapped

    def __getitem__(self, of: slice) -> np.ndarray:
        begin, end, step = of.indices(self._length)
        assert step == 1
        if end <= begin:
            return np.zeros(0, self.dtype)
        first, last = begin // BLOCK, (end - 1) // BLOCK
        _Resident.touched((end - begin) * self.dtype.itemsize + _TOUCHED)
        if self._places is None:
            for block in range(first, last + 1):
                if not self._checked[block]:
                    self._check(block, self._mapped[block * BLOCK : (block + 1) * BLOCK])
            return self._mapped[begin:end]
        parts = [self._unpacked(block) for block in range(first, last + 1)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined[begin - first * BLOCK : end - first * BLOCK]

    def _unpacked(self, block: int) -> np.ndarray:
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        assert self._places is not None
        low, high = int(self._places[block]), int(self._places[block + 1])
        size = min(BLOCK, self._length - block * BLOCK) * self.dtype.itemsize
        try:
            packed = self._mapped[low:high].tobytes()
            if zstandard.frame_content_size(packed) != size:  # before room for it is made
                raise self._damaged(block)
            content = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self._damaged(block) from error
        values = np.frombuffer(content, self.dtype)
        self._check(block, values)
        self._kept[block] = values
        while len(self._kept) > _KEPT:
            try:
                self._kept.popitem(last=False)
            except KeyError:  # another thread was faster
                break
        return values

    def _check(self, block: int, values: np.ndarray) -> None:
        if zlib.crc32(values) != int(self._sums[block]):  # type: ignore[arg-type]
            raise self._damaged(block)
        self._checked[block] = True

    def _damaged(self, block: int) -> DataError:
        return DataError(f"block {block} is damaged: its checksum is wrong", str(self.file), _AGAIN)


class _Resident:
    """Keeps what was read of mapped files from counting as the process's own memory for long.

    Mapped pages stay in the system's cache, but each one that was ever touched is counted with the process until it is
    let go. What is read again is found in the cache.
    """

    _maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
    _read = 0

    @classmethod
    def add(cls, array: np.ndarray) -> None:
        if isinstance(array.base, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            cls._maps.add(array.base._mmap)  # type: ignore[attr-defined]

    @classmethod
    def touched(cls, size: int) -> None:
        cls._read += size
        if cls._read > _RESIDENT:
            cls._read = 0
            for one in list(cls._maps):
                one.madvise(mmap.MADV_DONTNEED)


class TokenWriter:
    """Writes such a file: `add` numbers, then `close`. compress: zstd's level, 0 for none."""

    def __init__(self, dtype: np.dtype, compress: int, write: Callable[[bytes], object]) -> None:
        self.dtype, self._compress, self._write = dtype, compress, write
        self.sums: list[int] = []
        self.places = [0]
        self.length = 0
        self._rest = np.zeros(0, dtype)

    def add(self, values: np.ndarray) -> None:
        self.length += len(values)
        joined = (
            np.concatenate([self._rest, values.astype(self.dtype)]) if len(self._rest) else values.astype(self.dtype)
        )
        whole = len(joined) // BLOCK * BLOCK
        for begin in range(0, whole, BLOCK):
            self._put(joined[begin : begin + BLOCK])
        self._rest = joined[whole:]

    def close(self) -> None:
        if len(self._rest):
            self._put(self._rest)
            self._rest = self._rest[:0]

    def _put(self, block: np.ndarray) -> None:
        content = block.tobytes()
        self.sums.append(zlib.crc32(content))
        if self._compress:
            content = zstandard.ZstdCompressor(level=self._compress).compress(content)
        self._write(content)
        self.places.append(self.places[-1] + len(content))


def mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    """A whole file as an array, mapped into memory; an empty one cannot be."""
    if file.stat().st_size == 0:
        return np.zeros(0, dtype)
    # The plain view of a memmap slices much faster than the memmap itself.
    return np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)
