"""Which files a source is made of, in an order and under names that depend on the source alone."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shoestring.core.errors import DataError
from shoestring.data.built_in import find
from shoestring.data.hub import HUB, ON_THIS_MACHINE, HubFile, hub_files

_WILD = re.compile(r"[*?\[]")


class Listed(NamedTuple):
    """name: within the source, unique. at: on this machine, or on the hub, from where it is fetched when it is read."""

    name: str
    at: Path | HubFile

    def path(self) -> Path:
        """Where it is on this machine. Raises NetworkError."""
        return self.at.fetch() if isinstance(self.at, HubFile) else self.at

    def size(self) -> int:
        """Bytes as it lies on the disk. Raises OSError."""
        return self.at.size if isinstance(self.at, HubFile) else self.at.stat().st_size


def listed(source: str, say: Callable[[str], None] | None, names: str) -> list[Listed]:
    """The files of a data set on the hub, a file, a folder with all below it, or a glob of both, sorted by name.

    Hidden ones are left out. names: what else may be given, for the sentence that there is no such file. Raises
    DataError where there is none, NetworkError.
    """
    where, known = find(source)
    if where.startswith(HUB):
        hint = known.copies if known else ON_THIS_MACHINE
        return [Listed(file.name, file) for file in hub_files(where, say, hint)]
    where = os.path.expanduser(where)
    if os.path.isfile(where):
        return [Listed(Path(where).name, Path(where))]
    if os.path.isdir(where):
        if found := below(Path(where)):
            return [Listed(file.relative_to(where).as_posix(), file) for file in found]
        raise DataError("this folder holds no files", source, "give a folder with text files")
    if is_glob(where):
        return matching(where)
    raise DataError("no such file or folder", source, names)


def is_glob(source: str) -> bool:
    """Whether it is a pattern, and no name that looks like one."""
    return bool(_WILD.search(source)) and not os.path.lexists(source)


def matching(pattern: str) -> list[Listed]:
    """The files that a pattern names, and those in the folders that it names."""
    fixed = itertools.takewhile(lambda part: not _WILD.search(part), Path(pattern).parts)
    base = Path(*fixed)
    found: set[Path] = set()
    for match in map(Path, [] if "\0" in pattern else glob.glob(pattern, recursive=True)):
        found.update(below(match) if match.is_dir() else [match] if match.is_file() else [])
    if not found:
        raise DataError("no file matches this pattern", pattern, "* and ? stand for characters, ** for any folders")
    return sorted(Listed(file.relative_to(base).as_posix(), file) for file in found)


def below(folder: Path) -> list[Path]:
    """All files in it, sorted by name, hidden ones left out."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in names if not name.startswith(".")]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(folder).as_posix())
