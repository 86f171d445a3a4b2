"""What a store was made from, and what a run began with: weight files, told apart by their content.

Reading gigabytes to hash them takes seconds, so a hash is remembered in the cache for as long as the file keeps its
size and its time of change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_write, cache_dir, sha256_file
from shoestring.core.foreign import read_json

_REMEMBERED = "hashes.json"
# Beside weight files of which only some tensors are there, the rest being holes: {"whole": the SHA-256 of the whole
# file by name, "held": which part it is} (`laptops.fetch`).
PARTS = "parts.json"


@dataclass(frozen=True)
class Fingerprint:
    """files: (path, size, time of change in ns). digest: SHA-256 over the files' contents, in hex. part: which part of
    that content is there, "" where all of it is."""

    files: tuple[tuple[str, int, int], ...]
    digest: str
    part: str = ""

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Fingerprint:
        known = _remembered()
        found, digest, learned, part = [], hashlib.sha256(), False, ""
        for path in sorted(paths):
            stat = path.stat()
            file = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
            key = f"{file[0]} {file[1]} {file[2]}"
            if (path.parent / PARTS).is_file():
                content, part = _whole(path)
            else:
                if key not in known:
                    known[key], learned = sha256_file(path), True
                content = known[key]
            found.append(file)
            digest.update(content.encode())
        if learned:
            _remember(known)
        return cls(tuple(found), digest.hexdigest(), part)

    @property
    def key(self) -> str:
        """A short name for the content, and for what is there of it."""
        return self.digest[:16] + self.part

    def check(self) -> None:
        """Raises ModelFileError when a file is gone or was changed since."""
        for path, size, changed in self.files:
            try:
                stat = os.stat(path)
            except OSError as error:
                raise ModelFileError("the model's weights are gone while they are used", path) from error
            if (stat.st_size, stat.st_mtime_ns) != (size, changed):
                raise ModelFileError(
                    "the model's weights were changed while they are used", path, "put the old file back, or begin anew"
                )


def _whole(path: Path) -> tuple[str, str]:
    """The SHA-256 of the file of which this one is a part, and which part. Raises ModelFileError."""
    try:
        content = read_json(path.parent / PARTS)
        return str(content["whole"][path.name]), f"-{content['held']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError("it is not told what this file is a part of", str(path), "fetch it again") from error


def _remembered() -> dict[str, str]:
    try:
        known = read_json(cache_dir() / _REMEMBERED)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    alive = {key: value for key, value in known.items() if Path(key.rsplit(" ", 2)[0]).is_file()}
    cache_dir().mkdir(parents=True, exist_ok=True)
    with atomic_write(cache_dir() / _REMEMBERED) as file:
        json.dump(alive, file, indent=1)
