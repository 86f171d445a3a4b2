"""One split's shards as they are written: an open one that can be cut back to any point, then whole ones.

The open shard is two files that only grow, ids and beginnings, so a run that was killed goes on from what the journal
says of them. A shard that is full is read once more, block by block: its checksums are made, it is compressed where
that is asked for, and written under its name; the open one stays until the journal says so.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shoestring.core.errors import DataError
from shoestring.core.files import atomic_write
from shoestring.data.shards import Shard, token_file_name
from shoestring.data.token_file import BLOCK, TokenWriter

_BEGIN = np.dtype("<i8")


@dataclass(frozen=True)
class Extent:
    """What an open shard holds."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


class SplitWriter:
    """number: of the open shard. compress: zstd's level, 0 for none. Raises DataError where less is there than
    `extent`."""

    def __init__(
        self, out: Path, split: str, dtype: np.dtype, separator_id: int, compress: int, number: int, extent: Extent
    ) -> None:
        self._out, self.split, self._dtype, self._compress = out, split, dtype, compress
        self._separator = np.array([separator_id], dtype)
        self.number, self.extent = number, extent
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        if extent.documents:
            self._open()

    def add(self, ids: np.ndarray, size: int) -> None:
        """ids and bytes of text of one document."""
        if self._files is None:
            self._open()
        assert self._files is not None
        before = self.extent
        self._files[0].write(self._separator.tobytes() + ids.astype(self._dtype).tobytes())
        self._files[1].write(np.array([before.tokens, before.bytes], _BEGIN).tobytes())
        self.extent = Extent(before.documents + 1, before.tokens + 1 + len(ids), before.bytes + size)

    def flush(self) -> None:
        """To the disk, so that `extent` can be entered in the journal."""
        for file in self._files or ():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> Shard | None:
        """Make the open shard whole; None where nothing is in it."""
        if self._files is None:
            return None
        for file in self._files:
            file.close()
        self._files = None
        ids, begins = self._partial()
        name, extent = f"{self.split}-{self.number:05d}", self.extent
        digest = hashlib.sha256()
        with atomic_write(self._out / token_file_name(name, self._compress > 0), "wb") as file:

            def write(content: bytes) -> None:
                digest.update(content)
                file.write(content)

            made = TokenWriter(self._dtype, self._compress, write)
            with open(ids, "rb") as content:
                while block := content.read(BLOCK * self._dtype.itemsize):
                    made.add(np.frombuffer(block, self._dtype))
            made.close()
        pairs = np.fromfile(begins, _BEGIN).reshape(-1, 2)
        offsets = np.concatenate([pairs, [[extent.tokens, extent.bytes]]]).astype(_BEGIN).T.tobytes()
        checked = TokenWriter(_BEGIN, 0, len)
        checked.add(np.frombuffer(offsets, _BEGIN))
        checked.close()
        blocks = np.array(made.sums + checked.sums, "<u4").tobytes()
        if self._compress:
            blocks += np.array(made.places, _BEGIN).tobytes()
        for suffix, written in (("offsets", offsets), ("blocks", blocks)):
            with atomic_write(self._out / f"{name}.{suffix}", "wb") as file:
                file.write(written)
        self.number, self.extent = self.number + 1, Extent()
        return Shard(
            name, self.split, extent.tokens, extent.documents, extent.bytes, made.places[-1], digest.hexdigest(),
            hashlib.sha256(offsets).hexdigest(), hashlib.sha256(blocks).hexdigest(),
        )  # fmt: skip

    def forget(self) -> None:
        """Remove what became whole shards, once the journal knows of them."""
        for old in self._out.glob(f".{self.split}-*.partial"):
            if old not in self._partial():
                old.unlink()

    def _partial(self) -> tuple[Path, Path]:
        name = f".{self.split}-{self.number:05d}"
        return self._out / f"{name}.ids.partial", self._out / f"{name}.begins.partial"

    def _open(self) -> None:
        """As long as `extent` says: what was written after that is written again."""
        sizes = self.extent.tokens * self._dtype.itemsize, self.extent.documents * 2 * _BEGIN.itemsize
        opened = []
        for path, size in zip(self._partial(), sizes, strict=True):
            file = open(path, "r+b" if size else "w+b")
            if os.fstat(file.fileno()).st_size < size:
                raise DataError("less was written than the journal says", str(path), "remove the folder and try again")
            file.truncate(size)
            file.seek(size)
            opened.append(file)
        self._files = opened[0], opened[1]
