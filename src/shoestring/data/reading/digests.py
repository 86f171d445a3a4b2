"""SHA-256 of files, remembered from one start to the next: a week's corpus is not hashed again each time.

For each folder with text a file in the cache, `file-digests/`, holds what its files hashed to, for as long as they keep
size, time of change and inode. A file that was changed in the last two seconds may be changed again without its time
showing it, so it is hashed again. What has not been used for longest makes room.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir, sha256_file
from shoestring.core.foreign import MOST_ITEMS, read_json

WORTH_KEEPING = 32 * 2**20  # bytes of a source: less is hashed faster than it is looked up
MOST_BYTES = 64 * 2**20  # of all that is kept
_MOST_FILES = MOST_ITEMS // 10  # of a folder: the largest, which take longest
_SETTLED = 2 * 10**9  # ns
_KEY = ("st_size", "st_mtime_ns", "st_ino")


def digests(files: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of each file, in hexadecimal. Raises OSError."""
    stats = {file: file.stat() for file in files}
    if sum(stat.st_size for stat in stats.values()) < WORTH_KEEPING:
        return {file: sha256_file(file) for file in stats}
    folders: dict[Path, list[Path]] = {}
    for file in stats:
        folders.setdefault(Path(os.path.abspath(file)).parent, []).append(file)
    found: dict[Path, str] = {}
    for folder, inside in folders.items():
        found |= _of_folder(folder, {file: stats[file] for file in inside})
    return found


def _of_folder(folder: Path, stats: dict[Path, os.stat_result]) -> dict[Path, str]:
    known, found, learned = _remembered(folder), {}, False
    for file, before in stats.items():
        key = [getattr(before, name) for name in _KEY]
        settled = time.time_ns() - before.st_mtime_ns > _SETTLED
        remembered = known.get(file.name)
        if settled and remembered and remembered[:3] == key:
            found[file] = remembered[3]
            continue
        found[file] = sha256_file(file)
        if settled and [getattr(file.stat(), name) for name in _KEY] == key:
            known[file.name], learned = [*key, found[file]], True
    if learned:
        _remember(folder, known)
    return found


def _remembered(folder: Path) -> dict[str, list[Any]]:
    """name -> [size, time of change, inode, digest]. What is damaged counts for nothing."""
    try:
        kept = read_json(_place(folder))
        files = kept["files"] if kept["folder"] == str(folder) else {}
        with contextlib.suppress(OSError):
            os.utime(_place(folder))  # used
        return {name: each for name, each in files.items() if list(map(type, each)) == [int, int, int, str]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ShoestringError):
        return {}


def _remember(folder: Path, known: dict[str, list[Any]]) -> None:
    """Write what is known of files that still exist; a cache that cannot be written costs time alone."""
    alive = sorted((name for name in known if (folder / name).is_file()), key=lambda name: -known[name][0])
    content = {"folder": str(folder), "files": {name: known[name] for name in alive[:_MOST_FILES]}}
    with contextlib.suppress(OSError, ShoestringError, UnicodeEncodeError):
        place = _place(folder)
        with atomic_write(place) as file:
            json.dump(content, file)
        _make_room(place)


def _make_room(newest: Path) -> None:
    kept = [(file.stat().st_mtime_ns, file, file.stat().st_size) for file in newest.parent.glob("*.json")]
    size = sum(each for *_, each in kept)
    for _, file, each in sorted(kept):
        if size > MOST_BYTES and file != newest:
            file.unlink(missing_ok=True)
            size -= each


def _place(folder: Path) -> Path:
    name = hashlib.sha256(str(folder).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return cache_dir() / "file-digests" / f"{name}.json"
