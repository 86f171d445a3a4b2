"""A folder of prepared token shards: what `prepare` writes and the loader reads.

    index.json              format, tokenizer fingerprint, dtype, separator; per shard its tokens,
    documents, bytes, SHA-256 train-00000.bin         the documents' ids one after another, uint16 or
    uint32, little endian; each document begins
                            with the separator id
    train-00000.offsets     int64 [2, documents + 1]: where each document begins, in tokens and in bytes of
    text tokenizer/              the tokenizer that made them

Everything is memory-mapped, so that opening costs nothing and resident memory follows what is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.core.foreign import read_json
from shoestring.core.files import sha256_file
from shoestring.data.tokenizer import Tokenizer

FORMAT = 1
SPLITS = ("train", "validation")
INDEX = "index.json"


@dataclass(frozen=True)
class ShardDocument:
    """tokens: ids without the separator [t]. bytes: size of its text in UTF-8."""

    tokens: np.ndarray
    bytes: int


@dataclass(frozen=True)
class Shard:
    """One pair of files. tokens count the separators; bytes are of text."""

    name: str
    split: str
    tokens: int
    documents: int
    bytes: int
    sha256: str
    offsets_sha256: str

    @property
    def files(self) -> tuple[str, str]:
        return f"{self.name}.bin", f"{self.name}.offsets"


class ShardFolder:
    """An opened folder of shards. Raises DataError when a file is missing or has the wrong size."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = _read_index(self.folder)
        self.dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self.separator_id = int(self.index["separator"])
        self.vocabulary_size = int(self.index["vocabulary"])
        self.shards = [
            Shard(**{key: entry[key] for key in Shard.__annotations__}) for entry in self.index["shards"]
        ]
        for shard in self.shards:
            sizes = (shard.tokens * self.dtype.itemsize, 2 * (shard.documents + 1) * 8)
            for name, size in zip(shard.files, sizes, strict=True):
                check_size(self.folder / name, size)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.index["tokenizer"]

    def of(self, split: str) -> list[Shard]:
        """The split's shards in their order."""
        if split not in SPLITS:
            raise DataError(f"no split {split!r}", str(self.folder), f"the splits are {', '.join(SPLITS)}")
        return [shard for shard in self.shards if shard.split == split]

    def token_count(self, split: str) -> int:
        """Tokens of a split, separators counted."""
        return sum(shard.tokens for shard in self.of(split))

    def document_count(self, split: str) -> int:
        return sum(shard.documents for shard in self.of(split))

    def byte_count(self, split: str) -> int:
        """Bytes of text (UTF-8) that a split stands for."""
        return sum(shard.bytes for shard in self.of(split))

    def tokens(self, shard: Shard) -> np.ndarray:
        """The shard's ids, memory-mapped: [shard.tokens] of the folder's dtype."""
        return _map(self.folder / shard.files[0], self.dtype)

    def offsets(self, shard: Shard) -> np.ndarray:
        """int64 [2, documents + 1], memory-mapped: beginnings in tokens, and in bytes. Raises DataError."""
        offsets = _map(self.folder / shard.files[1], np.dtype("<i8")).reshape(2, shard.documents + 1)
        whole = offsets[:, 0].any() or offsets[:, -1].tolist() != [shard.tokens, shard.bytes]
        if whole or (np.diff(offsets[0]) < 1).any() or (np.diff(offsets[1]) < 0).any():
            raise DataError(
                "the document offsets are damaged", str(self.folder / shard.files[1]), "prepare again"
            )
        return offsets

    def documents_of(self, split: str) -> Iterator[ShardDocument]:
        """Each document of a split in the order of the source."""
        for shard in self.of(split):
            tokens, offsets = self.tokens(shard), self.offsets(shard)
            sizes = np.diff(offsets[1])
            for n in range(shard.documents):
                yield ShardDocument(tokens[offsets[0, n] + 1 : offsets[0, n + 1]], int(sizes[n]))

    def verify(self) -> None:
        """Read everything and compare the checksums. Raises DataError naming the damaged file."""
        for shard in self.shards:
            for name, expected in zip(shard.files, (shard.sha256, shard.offsets_sha256), strict=True):
                if sha256_file(self.folder / name) != expected:
                    raise DataError(
                        "the checksum is wrong: the file is damaged", str(self.folder / name), "prepare again"
                    )
        if self.tokenizer.fingerprint() != self.tokenizer_fingerprint:
            raise DataError(
                "the tokenizer is not the one that made these shards", str(self.folder / "tokenizer")
            )


def check_size(file: Path, size: int) -> None:
    """Raises DataError unless the file exists with this many bytes."""
    if not file.is_file():
        raise DataError("this file of the shards is missing", str(file), "prepare again")
    actual = file.stat().st_size
    if actual != size:
        raise DataError(
            f"truncated or damaged: {actual:,} bytes instead of {size:,}", str(file), "prepare again"
        )


def is_shard_folder(folder: str | Path) -> bool:
    return (Path(folder) / INDEX).is_file()


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped. The plain view of a memmap slices much faster than the memmap itself.
    if file.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)


def index_checksum(index: dict[str, Any]) -> str:
    """SHA-256 of the index without its own checksum, in canonical form."""
    content = json.dumps(
        {k: v for k, v in index.items() if k != "sha256"}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(content.encode()).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.is_file():
        raise DataError(
            "no prepared shards here (no index.json)", str(folder), "shoestring prepare SOURCE --out FOLDER"
        )
    try:
        index = read_json(file)
        version = index["format"]
        if version == FORMAT and index["sha256"] != index_checksum(index):
            raise ValueError("its checksum is wrong")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a readable index of shards: {error}", str(file), "prepare again") from error
    if version != FORMAT:
        raise DataError(
            f"shards of format {version}; this version reads {FORMAT}", str(file), "prepare again"
        )
    return index
