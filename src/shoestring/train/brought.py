"""A run's folder on machines that do not see the first one's disk: what stages of one model need of it is sent to them.

The first process writes a run, checkpoints and all. Stages on other machines need its recipe and the checkpoint that
they go on from; where one lacks them, or has others, all of its files go to it in pieces of one size. Nothing is sent
where all see one disk, nor outside `parallel.stages`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
import torch.distributed as dist

from shoestring.core.errors import RunError
from shoestring.core.files import atomic_folder, atomic_write
from shoestring.train import parallel

_PIECE = 4 * 2**20  # bytes
Listed = list[tuple[str, int]]  # names below the folder, and bytes


def bring_folder(folder: Path, sign: Path) -> None:
    """A folder of the first process to everyone who lacks it. sign: the file by whose content it is known."""
    if not parallel.are_stages():
        return
    first = parallel.by_first(lambda: _digest(folder / sign))
    here = _digest(folder / sign) == first
    if parallel.sum_numbers(float(here))[0] == parallel.world_size():
        return
    listed: Listed = [(name, size) for name, size in parallel.by_first(lambda: _listed(folder))]
    if here:
        for name, size in listed:
            for _ in _pieces(folder / name if parallel.rank() == 0 else None, size):
                pass
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, replace=True) as temporary:
        for name, size in listed:
            place = temporary / _checked(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                for piece in _pieces(None, size):
                    file.write(piece)


def bring_text(file: Path, wanted: bool = True) -> None:
    """A small text file likewise. wanted: by this process. Raises RunError where another one stands."""
    if not parallel.are_stages():
        return
    content = parallel.by_first(lambda: file.read_text(encoding="utf-8") if file.is_file() else None)
    if content is None or not wanted or (file.is_file() and file.read_text(encoding="utf-8") == content):
        return
    if file.is_file():
        raise RunError("another run stands in this folder on this machine", str(file.parent), "move it away")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as written:
        written.write(content)


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _listed(folder: Path) -> Listed:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def _checked(name: str) -> PurePosixPath:
    """A name that stays below its folder. Raises RunError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise RunError(f"the first machine sends a file with the name {name!r}, which is none of a run")
    return path


def _pieces(file: Path | None, size: int) -> Iterator[bytes]:
    """The content of a file of the first process, on every process. file: where this is the first."""
    place = parallel.exchange_device()
    with contextlib.nullcontext() if file is None else open(file, "rb") as source:
        for start in range(0, size, _PIECE):
            length = min(_PIECE, size - start)
            piece = torch.empty(length, dtype=torch.uint8)
            if source is not None:
                piece = torch.frombuffer(bytearray(source.read(length)), dtype=torch.uint8)
            piece = piece.to(place)
            with parallel.telling_of_losses():
                dist.broadcast(piece, 0)
            yield piece.cpu().numpy().tobytes()
