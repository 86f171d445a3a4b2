"""A folder of prepared token shards: what `prepare` writes and loaders read.

    index.json              format, tokenizer fingerprint, dtype, separator, compression; per shard its tokens,
    documents,
                            bytes, SHA-256 of each file
    train-00000.bin         the documents' ids one after another, uint16 or uint32, little endian; each document begins
                            with the separator id. train-00000.bin.zst: the same, each block compressed by itself
    train-00000.offsets     int64 [2, documents + 1]: where each document begins, in tokens and in bytes of text
    train-00000.blocks      uint32: CRC-32 of each block of the ids, then of the offsets; in a compressed shard then
    int64
                            [blocks + 1]: where each block of the ids begins in its file
    tokenizer/              the tokenizer that made them

Everything is memory-mapped and checked block by block as it is read, so that opening costs nothing and resident memory
follows what is read.
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
from shoestring.core.files import sha256_file
from shoestring.core.foreign import read_json
from shoestring.data.token_file import BLOCK, TokenFile
from shoestring.data.tokenizer import Tokenizer

FORMAT = 2
SPLITS = ("train", "validation")
INDEX = "index.json"
_AGAIN = "prepare again"


@dataclass(frozen=True)
class ShardDocument:
    """tokens: ids without the separator [t]. bytes: size of its text in UTF-8."""

    tokens: np.ndarray
    bytes: int


@dataclass(frozen=True)
class Shard:
    """One group of files. tokens count the separators; bytes are of text; stored: bytes of the ids' file."""

    name: str
    split: str
    tokens: int
    documents: int
    bytes: int
    stored: int
    sha256: str
    offsets_sha256: str
    blocks_sha256: str


class Begins:
    """Where the documents of a shard begin, in tokens and in bytes of text; only what is asked for is read.

    Raises DataError for damage.
    """

    def __init__(self, file: TokenFile, documents: int) -> None:
        self._file, self.documents = file, documents

    def tokens(self, first: int, last: int) -> np.ndarray:
        """int64 [last − first]: the beginnings, in tokens, of documents first … last − 1; that of number `documents` is
        the shard's end."""
        return self._file[first:last]

    def text(self, first: int, last: int) -> np.ndarray:
        """The same in bytes of text."""
        above = self.documents + 1
        return self._file[above + first : above + last]

    def between(self, low: int, high: int) -> tuple[int, np.ndarray]:
        """The first document that begins in tokens low … high − 1, and the beginnings of all that do."""
        every = self._file.unchecked[: self.documents + 1]
        first, last = (int(np.searchsorted(every, at)) for at in (low, high))
        last = min(last, self.documents)
        around = self.tokens(max(first - 1, 0), last + 1)  # what was looked at unchecked is checked by what it led to
        begins = around[first - max(first - 1, 0) : len(around) - 1]
        before = first == 0 or around[0] < low
        if not before or (np.diff(around) < 1).any() or (len(begins) and begins[0] < low) or around[-1] < high:
            raise DataError("the document offsets are damaged", str(self._file.file), _AGAIN)
        return first, begins

    def find(self, token: int) -> tuple[int, int, int]:
        """The document that has this token, where it begins, and where it ends."""
        every = self._file.unchecked[: self.documents + 1]
        number = min(int(np.searchsorted(every, token, "right")), self.documents) - 1
        begin, end = self.tokens(max(number, 0), max(number, 0) + 2).tolist()
        if not begin <= token < end:
            raise DataError("the document offsets are damaged", str(self._file.file), _AGAIN)
        return number, begin, end


class ShardFolder:
    """An opened folder of shards. Raises DataError when a file is missing or has the wrong size."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = _read_index(self.folder)
        self.dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self.separator_id = int(self.index["separator"])
        self.vocabulary_size = int(self.index["vocabulary"])
        self.compressed = self.index["compression"] is not None
        self.shards = [Shard(**{key: entry[key] for key in Shard.__annotations__}) for entry in self.index["shards"]]
        for shard in self.shards:
            if not self.compressed and shard.stored != shard.tokens * self.dtype.itemsize:
                raise DataError("not a readable index of shards: sizes contradict", str(self.folder / INDEX), _AGAIN)
            sizes = (shard.stored, 2 * (shard.documents + 1) * 8, self._blocks_size(shard))
            for file, size in zip(self.files(shard), sizes, strict=True):
                check_size(file, size)

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

    def files(self, shard: Shard) -> tuple[Path, Path, Path]:
        """Of the ids, the offsets, and their blocks."""
        names = (token_file_name(shard.name, self.compressed), f"{shard.name}.offsets", f"{shard.name}.blocks")
        return self.folder / names[0], self.folder / names[1], self.folder / names[2]

    def tokens(self, shard: Shard) -> TokenFile:
        """The shard's ids, to be sliced: [shard.tokens] of the folder's dtype."""
        sums, _, places = self._blocks(shard)
        return TokenFile(self.files(shard)[0], self.dtype, shard.tokens, sums, places)

    def begins(self, shard: Shard) -> Begins:
        """Where its documents begin, looked up one by one."""
        _, sums, _ = self._blocks(shard)
        file = TokenFile(self.files(shard)[1], np.dtype("<i8"), 2 * (shard.documents + 1), sums)
        return Begins(file, shard.documents)

    def offsets(self, shard: Shard) -> np.ndarray:
        """int64 [2, documents + 1], all of them: beginnings in tokens, and in bytes. Raises DataError for damage."""
        begins = self.begins(shard)
        offsets = np.stack([part(0, shard.documents + 1) for part in (begins.tokens, begins.text)])
        whole = offsets[:, 0].any() or offsets[:, -1].tolist() != [shard.tokens, shard.bytes]
        if whole or (np.diff(offsets[0]) < 1).any() or (np.diff(offsets[1]) < 0).any():
            raise DataError("the document offsets are damaged", str(self.files(shard)[1]), _AGAIN)
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
            sums = (shard.sha256, shard.offsets_sha256, shard.blocks_sha256)
            for file, expected in zip(self.files(shard), sums, strict=True):
                if sha256_file(file) != expected:
                    raise DataError("the checksum is wrong: the file is damaged", str(file), _AGAIN)
        if self.tokenizer.fingerprint() != self.tokenizer_fingerprint:
            raise DataError("the tokenizer is not the one that made these shards", str(self.folder / "tokenizer"))

    def _blocks_size(self, shard: Shard) -> int:
        ids, offsets = _block_count(shard.tokens), _block_count(2 * (shard.documents + 1))
        return 4 * (ids + offsets) + (8 * (ids + 1) if self.compressed else 0)

    def _blocks(self, shard: Shard) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """CRC-32 of each block of the ids and of the offsets, and the places of the former."""
        file = self.files(shard)[2]
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.blocks_sha256:
            raise DataError("the checksum is wrong: the file is damaged", str(file), _AGAIN)
        ids, offsets = _block_count(shard.tokens), _block_count(2 * (shard.documents + 1))
        sums = np.frombuffer(content, "<u4", ids + offsets)
        places = np.frombuffer(content, "<i8", ids + 1, 4 * (ids + offsets)) if self.compressed else None
        return sums[:ids], sums[ids:], places


def token_file_name(shard: str, compressed: bool) -> str:
    return f"{shard}.bin.zst" if compressed else f"{shard}.bin"


def check_size(file: Path, size: int) -> None:
    """Raises DataError unless the file exists with this many bytes."""
    if not file.is_file():
        raise DataError("this file of the shards is missing", str(file), _AGAIN)
    actual = file.stat().st_size
    if actual != size:
        raise DataError(f"truncated or damaged: {actual:,} bytes instead of {size:,}", str(file), _AGAIN)


def is_shard_folder(folder: str | Path) -> bool:
    return (Path(folder) / INDEX).is_file()


def index_checksum(index: dict[str, Any]) -> str:
    """SHA-256 of the index without its own checksum, in canonical form."""
    content = json.dumps({k: v for k, v in index.items() if k != "sha256"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _block_count(numbers: int) -> int:
    return -(-numbers // BLOCK)


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
        raise DataError(f"not a readable index of shards: {error}", str(file), _AGAIN) from error
    if version != FORMAT:
        raise DataError(f"shards of format {version}; this version reads {FORMAT}", str(file), _AGAIN)
    return index
