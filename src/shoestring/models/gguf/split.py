"""Models in several GGUF files, as llama.cpp splits them: NAME-00001-of-00003.gguf and so on, to be read as one.

The first part has the metadata; each has some of the tensors, and says which part it is (split.no, split.count).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoestring.models.gguf.reader import GGUFFile

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_MOST_PARTS = 1000


def part_paths(path: Path) -> list[Path]:
    """All parts of the model of which this is one, by its file's name, there or not; [path] of a whole model."""
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match["count"]) <= _MOST_PARTS:
        return [path]
    count = int(match["count"])
    names = (f"{match['name']}-{number:05d}-of-{count:05d}{match['suffix']}" for number in range(1, count + 1))
    return [path.with_name(name) for name in names]


def model_name(path: Path) -> str:
    """The file's name without its number and its ending."""
    match = _PART.fullmatch(path.name)
    return path.stem if match is None else match["name"]


def open_gguf(path: str | Path) -> GGUFFile:
    """The model of a GGUF file, with the tensors of all its parts if it is one of several. Raises ModelFileError."""
    from shoestring.models.gguf.reader import GGUFFile

    file = GGUFFile(path)
    opened = [file]
    try:
        count, number = file.integer("split.count", 1), file.integer("split.no", 0)
        if count in (0, 1):
            return file
        paths = part_paths(file.path)
        this = f"this is part {(number or 0) + 1} of {count}"
        if len(paths) != count:
            raise file.error(f"{this}, and its name does not say so", "parts are called NAME-00001-of-00002.gguf")
        if missing := [part.name for part in paths if not part.is_file()]:
            raise file.error(f"{this}, and {missing[0]} is not beside it", "put all parts into one folder")
        opened += [GGUFFile(part) for part in paths if part.name != file.path.name]
        by_number = {part.integer("split.no", 0): part for part in opened}
        if sorted(str(n) for n in by_number) != sorted(map(str, range(count))):
            raise file.error(f"{this}, and another part says that it is the same one", "fetch the parts again")
        first = by_number[0]
        first.join([by_number[n] for n in range(1, count)])
    except BaseException:
        for part in opened:
            part.close()
        raise
    return first
