"""A machine that joins fetches its part of a run: piece by piece, each checked by its SHA-256 before it counts.

From a model folder of its own where it has one, from a repository of the hub where one is named, else from the first
machine. What was fetched stays in the cache, under
the model's digest, and a list beside each file says which of its pieces are there: what was cut off goes on from them,
and another split fetches only what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from shoestring.core.errors import ModelFileError, NetworkError
from shoestring.core.files import atomic_write, clear_errors
from shoestring.core.units import format_bytes
from shoestring.laptops.pieces import Piece, RemoteFile
from shoestring.laptops.wire import MOST_BYTES
from shoestring.models.fingerprint import PARTS

# path, begin, size -> bytes; raises OSError or LinkError where it has none.
Read = Callable[[str, int, int], bytes]
_HAVE = ".have"  # beside a file: the pieces of it that are there, one a line
_PATIENCE = 60.0  # seconds for an answer of the hub
_SPARE_DISK = 200_000_000  # bytes that stay free


def missing(files: Sequence[RemoteFile], folder: Path) -> int:
    """Bytes that are still to be fetched."""
    total = 0
    for file in files:
        have = _have(folder, file)
        total += sum(piece.end - piece.begin for piece in file.pieces if _line(piece) not in have)
    return total


def fetch(
    files: Sequence[RemoteFile], folder: Path, sources: Sequence[Read], advance: Callable[[int], None] = lambda n: None
) -> int:
    """Bring every piece into `folder`; -> bytes that were fetched. advance: told of bytes as they come.

    sources: in the order in which they are asked. Raises NetworkError where none has a piece as it should be, RunError
    where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = missing(files, folder)
    free = shutil.disk_usage(folder).free
    if wanted > free - _SPARE_DISK:
        raise NetworkError(
            f"{format_bytes(wanted)} are to be fetched, and {format_bytes(free)} are free on the disk", str(folder),
            "make room, or set SHOESTRING_CACHE to a folder on another disk",
        )  # fmt: skip
    for file in files:
        _fetch_one(file, folder, sources, advance)
    return wanted


def mark_parts(folder: Path, digests: dict[str, str], held: str) -> None:
    """Say what the weight files in a folder are parts of: file name -> SHA-256 of the whole; held: which part."""
    with atomic_write(folder / PARTS) as file:
        json.dump({"whole": digests, "held": held}, file, indent=1)


def from_folder(own: Path, prefix: str) -> Read:
    """The pieces of files below `prefix` from a folder that this machine has already."""

    def read(path: str, begin: int, size: int) -> bytes:
        name = path.removeprefix(prefix + "/")
        if name == path or "/" in name:
            raise FileNotFoundError(path)
        with open(own / name, "rb", buffering=0) as opened:
            opened.seek(begin)
            found = opened.read(size)
        if len(found) != size:
            raise FileNotFoundError(path)
        return found

    return read


def from_hub(repository: str, revision: str | None, prefix: str) -> Read:
    """The pieces of files below `prefix` from a public repository of the hub, which has them under the same names.

    Nothing is signed in for. What it does not give once it is not asked for again.
    """
    import huggingface_hub

    refused: list[OSError] = []

    def read(path: str, begin: int, size: int) -> bytes:
        name = path.removeprefix(prefix + "/")
        if name == path or "/" in name:
            raise FileNotFoundError(path)
        if refused:
            raise refused[0]
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
        asked = urllib.request.Request(url, headers={"Range": f"bytes={begin}-{begin + size - 1}"})
        try:
            with urllib.request.urlopen(asked, timeout=_PATIENCE) as answer:
                found = answer.read(size + 1)
                if answer.status != HTTPStatus.PARTIAL_CONTENT and begin:
                    raise OSError(f"the hub gives no ranges of {name}")
        except (OSError, HTTPException) as error:
            refused.append(OSError(f"the hub: {error}"))
            raise refused[0] from None
        return found[:size]

    return read


def _fetch_one(
    file: RemoteFile, folder: Path, sources: Sequence[Read], advance: Callable[[int], None]
) -> None:
    target, have = folder / file.path, _have(folder, file)
    todo = [piece for piece in file.pieces if _line(piece) not in have]
    if not todo and target.is_file():
        return
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not have:  # another file may have stood there
            target.unlink(missing_ok=True)
        with atomic_write(_beside(target)) as kept:  # what is written over is there no longer
            kept.writelines(f"{line}\n" for line in sorted(have) if not _overlaps(line, todo))
        with open(target, "r+b" if target.is_file() else "w+b") as opened, open(_beside(target), "a+") as listed:
            opened.truncate(file.size)
            for piece in todo:
                _bring(file, piece, opened, sources, advance)
                opened.flush()
                os.fsync(opened.fileno())
                listed.write(_line(piece) + "\n")
                listed.flush()


def _bring(
    file: RemoteFile, piece: Piece, opened, sources: Sequence[Read], advance: Callable[[int], None]
) -> None:
    why = "nobody has it"
    for read in sources:
        digest = hashlib.sha256()
        opened.seek(piece.begin)
        try:
            for begin in range(piece.begin, piece.end, MOST_BYTES):
                block = read(file.path, begin, min(MOST_BYTES, piece.end - begin))
                digest.update(block)
                opened.write(block)
        except (OSError, ModelFileError) as error:
            why = getattr(error, "strerror", None) or str(error)
            continue
        if digest.hexdigest() == piece.sha256:
            advance(piece.end - piece.begin)
            return
        why = "what came has another SHA-256"
    raise NetworkError(f"bytes {piece.begin:,} to {piece.end:,} of {file.path} could not be fetched: {why}")


def _have(folder: Path, file: RemoteFile) -> set[str]:
    """Lines of pieces that are there. A file of another size, or one that is gone, has none."""
    target = folder / file.path
    try:
        if target.stat().st_size != file.size:
            raise FileNotFoundError
        return set(_beside(target).read_text(encoding="utf-8").splitlines())
    except OSError:
        _beside(target).unlink(missing_ok=True)
        return set()


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}{_HAVE}")


def _overlaps(line: str, pieces: Sequence[Piece]) -> bool:
    begin, end = map(int, line.split()[:2])
    return any(begin < piece.end and piece.begin < end for piece in pieces)


def _line(piece: Piece) -> str:
    return f"{piece.begin} {piece.end} {piece.sha256}"
