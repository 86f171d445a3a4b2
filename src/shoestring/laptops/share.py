"""What the first machine lets the others fetch: the files of a run by name and range, and nothing else. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoestring.laptops.pieces import Piece, RemoteFile, cut, joined, tensor_ranges
from shoestring.laptops.wire import MOST_BYTES, LinkError

WEIGHTS = ".safetensors"
# Of a model folder, beside its weights.
_BESIDE = (".json", ".txt", ".jinja", ".model")


class Shared:
    """Of one machine that joined: `offer` says what it may read, `read` answers."""

    def __init__(self, hashes: dict[tuple[str, int, int, int, int], str] | None = None):
        self._places: dict[str, tuple[Path, RemoteFile]] = {}
        self._hashes = {} if hashes is None else hashes  # of pieces, for all machines
        self.number = 0

    def begin(self, number: int) -> None:
        """Another start of the run, for which nothing has been offered yet."""
        self.number, self._places = number, {}

    def offer(self, file: Path, path: str, ranges: list[tuple[int, int]] | None = None) -> RemoteFile:
        """These ranges of a file, None: all of it. path: where it is to stand there."""
        status = file.stat()
        wanted = [(0, status.st_size)] if ranges is None else ranges
        key = (str(file), status.st_size, status.st_mtime_ns)
        pieces = self._known(file, key, wanted)
        found = RemoteFile(path, status.st_size, pieces)
        self._places[path] = (file, found)
        return found

    def offer_folder(
        self, folder: Path, path: str, wanted: Callable[[str], bool] = lambda tensor: True, whole: int = 0
    ) -> list[RemoteFile]:
        """A model folder or a checkpoint: of each weight file its header and the tensors that are wanted, by name.

        whole: weight files of no more bytes go as they are.
        """
        found = []
        for file in sorted(folder.iterdir()):
            name = f"{path}/{file.name}"
            if file.name.startswith("."):
                continue
            if file.is_dir():
                found += self.offer_folder(file, name, wanted, whole)
            elif file.suffix == WEIGHTS and file.stat().st_size > whole:
                header, tensors = tensor_ranges(file)
                spans = [tensors[each] for each in tensors if wanted(each)]
                found.append(self.offer(file, name, [(0, header), *spans]))
            elif file.suffix == WEIGHTS or file.suffix in _BESIDE:
                found.append(self.offer(file, name))
        return found

    def offer_tree(self, folder: Path, path: str) -> list[RemoteFile]:
        """All files of a folder, as they are."""
        found = []
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            if file.is_file() and not any(part.startswith(".") for part in name.parts):
                found.append(self.offer(file, f"{path}/{name.as_posix()}"))
        return found

    def read(self, fields: dict[str, Any]) -> bytes:
        """Some bytes of a file that was offered, at most MOST_BYTES. Raises LinkError for all else."""
        path, begin, size = (fields.get(name) for name in ("path", "begin", "size"))
        place = self._places.get(path) if isinstance(path, str) else None
        if place is None or type(begin) is not int or type(size) is not int or not 0 < size <= MOST_BYTES:
            raise LinkError("it asks for what was not offered")
        file, remote = place
        if not any(piece.begin <= begin and begin + size <= piece.end for piece in remote.pieces):
            raise LinkError(f"it asks for bytes of {path} that were not offered")
        with open(file, "rb", buffering=0) as opened:
            opened.seek(begin)
            return _read(opened, size)

    def _known(self, file: Path, key: tuple[str, int, int], ranges: list[tuple[int, int]]) -> tuple[Piece, ...]:
        """Hashed once for all machines that need the same range."""
        pieces: list[Piece] = []
        for begin, end in joined(ranges):
            at = (*key, begin, end)
            if at not in self._hashes:
                self._hashes[at] = "\n".join(f"{p.begin} {p.end} {p.sha256}" for p in cut(file, [(begin, end)]))
            for line in self._hashes[at].splitlines():
                first, last, digest = line.split()
                pieces.append(Piece(int(first), int(last), digest))
        return tuple(pieces)


def _read(opened: Any, size: int) -> bytes:
    parts = []
    while size:
        part = opened.read(size)
        if not part:
            raise LinkError(f"{os.path.basename(opened.name)} became shorter")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
