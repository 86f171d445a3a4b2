"""What is done of a folder that is being made, kept beside it, so that who was stopped or killed goes on from there.

    .OUT.unfinished/journal.json            what is made of what, and what each finished part is
    .OUT.unfinished/part-00007.safetensors  a part's tensors, as they will be in the folder
    .OUT.unfinished/lock                    held by who writes

A part counts once the journal, which appears whole or not at all, names it with its size and checksum. Another run of
the same goes on; a run of something else begins anew, and says so. It is gone once the folder is there, and where the
run ended with a sentence about what it was given, which would say the same again.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shoestring.compression.tensor_stream import Streamed, write_streamed
from shoestring.core import foreign
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError
from shoestring.core.files import atomic_write, clear_errors, hold
from shoestring.core.units import counted
from shoestring.models.resolve import Say
from shoestring.models.weights import TensorFile

_VERSION = 1
_JOURNAL, _LOCK = "journal.json", "lock"
_LASTING = (ConfigError, DataError, ModelFileError)  # said of what was given, and said again if it is given again


class Unfinished:
    """folder: of what is done. parts: what was said of each finished part, in order. libraries: that multiplied
    matrices, as `core.matmul.TABLE.choices` has them, so that who goes on computes the same bits."""

    def __init__(
        self, folder: Path, made_of: dict[str, Any], parts: list[dict[str, Any]], libraries: dict[str, Any]
    ):
        self.folder, self._made_of, self.parts, self.libraries = folder, made_of, parts, libraries
        self._scratch = 0

    def add(self, tensors: Sequence[Streamed], **said: Any) -> None:
        """The next part. said: of it, for the journal: what JSON holds."""
        file = self._file(len(self.parts))
        write_streamed(file, tensors)
        self.parts.append({"bytes": file.stat().st_size, "crc32": _checksum(file), **said})
        self._write()

    def open(self, number: int) -> TensorFile:
        """A finished part."""
        return TensorFile(self._file(number))

    def scratch(self) -> Path:
        """A file for what is computed on the way, gone with the folder."""
        self._scratch += 1
        return self.folder / f"text-{self._scratch:05d}"

    @contextmanager
    def all(self) -> Iterator[list[TensorFile]]:
        """Every finished part, open."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.open(number)) for number in range(len(self.parts))]

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def _write(self) -> None:
        with atomic_write(self.folder / _JOURNAL) as file:
            content = {"version": _VERSION, "made_of": self._made_of, "libraries": self.libraries, "parts": self.parts}
            json.dump(content, file, indent=1)

    def _whole(self) -> bool:
        """Whether every part is as the journal says."""
        for number, part in enumerate(self.parts):
            file = self._file(number)
            if not file.is_file() or file.stat().st_size != part["bytes"] or _checksum(file) != part["crc32"]:
                return False
        return True


@contextmanager
def unfinished(out: Path, made_of: dict[str, Any], say: Say | None, first: bool = False) -> Iterator[Unfinished]:
    """What is done of the folder `out`, which appears in the block, by the caller's doing.

    made_of: all that decides what is written, as JSON holds it. first: whether the first part alone is worth keeping.
    Raises RunError where another process writes the same folder, or the disk refuses.
    """
    out = Path(os.path.abspath(out))
    folder = place_of(out)
    with clear_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(folder / _LOCK)
        if held is None:
            raise RunError("another process is making this folder", str(out), "wait for it, or choose another --out")
        keep = False
        try:
            work = _go_on(folder, made_of, say)
            try:
                yield work
            except _LASTING:
                raise
            except BaseException:
                keep = len(work.parts) > (0 if first else 1)  # usually the first takes no time
                if keep and say is not None:
                    done = counted(len(work.parts) - 1, "block")
                    say(f"stopped   {done} done: the same command goes on from there")
                raise
        finally:
            held.release()
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def place_of(out: Path) -> Path:
    """Where what is done of a folder stands."""
    return out.with_name(f".{out.name}.unfinished")


def _go_on(folder: Path, made_of: dict[str, Any], say: Say | None) -> Unfinished:
    """What an earlier run left, if it made the same; else an empty beginning."""
    made_of = json.loads(json.dumps(made_of))
    try:
        journal = foreign.read_json(folder / _JOURNAL)
        same = isinstance(journal, dict) and (journal["version"], journal["made_of"]) == (_VERSION, made_of)
        parts = [dict(part) for part in journal["parts"]] if same else []
        found = Unfinished(folder, made_of, parts, dict(journal["libraries"]) if same else {})
        if same and found._whole():
            if say is not None and len(parts) > 1:
                say(f"resume    behind {counted(len(parts) - 1, 'block')} of an earlier run")
            return found
        why = "its files are broken" if same else "it was of another model, text or settings"
    except FileNotFoundError:
        why = ""
    except (OSError, ValueError, KeyError, TypeError):
        why = "its journal is broken"
    if why and say is not None:
        say(f"anew      an unfinished run of this folder is not gone on with: {why}")
    for old in [*folder.glob("part-*.safetensors"), *folder.glob("text-*"), folder / _JOURNAL]:
        old.unlink(missing_ok=True)
    return Unfinished(folder, made_of, [], {})


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
