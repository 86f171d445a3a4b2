"""A file, or the parts of one that a machine needs, cut into pieces that are known by their SHA-256. Torch-free.

A machine holds some layers of a model, so it fetches some ranges of a weight file: into a file of the same size and
header, in which the other tensors are a hole that takes no room on the disk. Whoever opens such a folder finds each
tensor where it stands in the whole one; `PARTS` beside the files says what they are parts of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ModelFileError
from shoestring.core.foreign import parse_json
from shoestring.laptops.wire import LinkError

PIECE = 8 * 2**20  # bytes at most: what is fetched again where the connection ended in the middle
MOST_FILES, MOST_PIECES = 4096, 100_000
MOST_FILE = 2**44
_LONGEST_HEADER = 100_000_000
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
# Names in models' files, and in those of a run's state.
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embedding)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|head)\.")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Piece:
    """Bytes begin to end of a file."""

    begin: int
    end: int
    sha256: str


@dataclass(frozen=True)
class RemoteFile:
    """path: where it is to stand, below the folder of the run, with / between. size: of the whole file, in bytes."""

    path: str
    size: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """That are fetched."""
        return sum(piece.end - piece.begin for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "pieces": [[p.begin, p.end, p.sha256] for p in self.pieces]}

    @classmethod
    def of(cls, value: Any) -> RemoteFile:
        """From another machine. Raises LinkError for what is no such thing, or would stand elsewhere."""
        try:
            path, size, pieces = value["path"], value["size"], value["pieces"]
            found = tuple(Piece(begin, end, sha256) for begin, end, sha256 in pieces)
        except (TypeError, KeyError, ValueError):
            raise LinkError("a file is not told as it should be") from None
        if not isinstance(path, str) or not is_below(path):
            raise LinkError(f"a file would stand at {path!r:.100}")
        if type(size) is not int or not 0 <= size <= MOST_FILE or len(found) > MOST_PIECES:
            raise LinkError(f"{path} has an impossible size")
        reached = 0
        for piece in found:
            whole = all(type(n) is int for n in (piece.begin, piece.end)) and isinstance(piece.sha256, str)
            if not whole or not reached <= piece.begin < piece.end <= size or piece.end - piece.begin > PIECE:
                raise LinkError(f"{path} has an impossible piece")
            if not _HEX.fullmatch(piece.sha256):
                raise LinkError(f"{path} has a piece without a hash")
            reached = piece.end
        return cls(path, size, found)


def is_below(path: str) -> bool:
    """Whether a path of plain names stays below its folder, on every system."""
    parts = path.split("/")
    return 0 < len(parts) <= 8 and all(_PART.fullmatch(part) and not part.endswith(".") for part in parts)


def read_files(values: Any) -> list[RemoteFile]:
    """Raises LinkError."""
    if not isinstance(values, list) or len(values) > MOST_FILES:
        raise LinkError("the files of the run are not told")
    files = [RemoteFile.of(value) for value in values]
    if len({file.path.lower() for file in files}) != len(files):
        raise LinkError("two files would stand in one place")
    return files


def cut(file: Path, ranges: Iterable[tuple[int, int]]) -> tuple[Piece, ...]:
    """Hash these ranges of a file, in pieces; ranges that touch are one."""
    pieces = []
    with open(file, "rb", buffering=0) as opened:
        for begin, end in joined(ranges):
            start = begin
            while start < end:  # cut at multiples, so that ranges of another split have most pieces in common
                stop = min(start // PIECE * PIECE + PIECE, end)
                pieces.append(Piece(start, stop, hash_of(opened, start, stop)))
                start = stop
    return tuple(pieces)


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those that touch or overlap as one, empty ones left out."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if begin == end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def hash_of(opened: Any, begin: int, end: int) -> str:
    digest, left = hashlib.sha256(), end - begin
    opened.seek(begin)
    while left:
        block = opened.read(min(left, 2**20))
        if not block:
            raise ModelFileError("the file became shorter while it was read", str(opened.name))
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def tensor_ranges(file: Path) -> tuple[int, dict[str, tuple[int, int]]]:
    """Of a safetensors file: where its header ends, and where each tensor lies. Raises ModelFileError."""
    with open(file, "rb", buffering=0) as opened:
        begin = opened.read(8)
        length = int.from_bytes(begin, "little")
        if len(begin) < 8 or length > _LONGEST_HEADER:
            raise ModelFileError("not a safetensors file", str(file))
        try:
            header = parse_json(opened.read(length))
            data = 8 + length
            offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            return data, {name: (data + int(first), data + int(last)) for name, (first, last) in offsets.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"not a safetensors file: {error}", str(file)) from None


def needed(tensor: str, start: int, end: int, layers: int, tied: bool) -> bool:
    """Whether a machine with these layers of a model reads a tensor of its files.

    The embedding is on the first machine and the head on the last; a tied head is the embedding, on both. Norms and
    what else belongs to no layer are small, and everywhere.
    """
    if match := _LAYER.search(tensor):
        return start <= int(match[1]) < end
    first, last = start == 0, end == layers
    if _EMBEDDING.search(tensor):
        return first or (tied and last)
    if _HEAD.search(tensor):  # beside a tied embedding the two are compared when the files are opened
        return last or (tied and first)
    return True
