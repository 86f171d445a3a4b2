"""What `compress` has found out so far, kept beside the folder that will be: who was stopped goes on from there.

    .OUT.compress/journal.json   what is measured of which model, and the figures of each finished candidate
    .OUT.compress/gptq-4-32/     the model that is best so far
    .OUT.compress/lock           held by who writes

The folder of a candidate that is beaten goes at once, its figures stay. Another goal for the same model and text goes
on with the same figures; another model, text or suite begins anew, and says so. All of it is gone once OUT is there, or
where the run ended with a sentence about what it was given.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring.compression.compress.choice import Figures
from shoestring.core import foreign
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError
from shoestring.core.files import atomic_write, clear_errors, hold, remove_folder
from shoestring.core.units import counted
from shoestring.models.resolve import Say

_VERSION = 2  # of candidates too: what another version measured, this one may not know how to make
_JOURNAL, _LOCK = "journal.json", "lock"
_LASTING = (ConfigError, DataError, ModelFileError)  # said of what was given, and said again if it is given again


class Journal:
    """folder: of it all. before: the model as it is, None until that is measured. found: by the candidates' keys, in
    the order in which they were tried."""

    def __init__(
        self, folder: Path, made_of: dict[str, Any], before: Figures | None = None,
        found: dict[str, Figures] | None = None,
    ):  # fmt: skip
        self.folder, self._made_of = folder, made_of
        self.before, self.found = before, found or {}

    def set_before(self, before: Figures) -> None:
        self.before = before
        self._write()

    def add(self, key: str, figures: Figures) -> None:
        self.found[key] = figures
        self._write()

    def place(self, key: str) -> Path:
        """Where a candidate's model stands, or will."""
        return self.folder / key

    def keep_only(self, key: str | None) -> None:
        """Of the models that are finished."""
        for other in self.found:
            if other != key:
                remove_folder(self.place(other))

    def _write(self) -> None:
        before = None if self.before is None else asdict(self.before)
        found = {key: asdict(figures) for key, figures in self.found.items()}
        with atomic_write(self.folder / _JOURNAL) as file:
            json.dump({"version": _VERSION, "made_of": self._made_of, "before": before, "found": found}, file, indent=1)


def place_of(out: Path) -> Path:
    """Where what is found out for a folder stands."""
    return out.with_name(f".{out.name}.compress")


@contextmanager
def journal(out: Path, made_of: dict[str, Any], say: Say | None) -> Iterator[Journal]:
    """For the folder `out`, which appears in the block, by the caller's doing.

    made_of: all that decides figures, as JSON holds it. Raises RunError where another process writes the same folder,
    or the disk refuses.
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
                keep = work.before is not None
                if keep and say is not None:
                    say(f"stopped   {counted(len(work.found), 'candidate')} done: the same command goes on from there")
                raise
        finally:
            held.release()
            if not keep:
                (folder / _JOURNAL).unlink(missing_ok=True)  # first: what is half deleted is not gone on with
                shutil.rmtree(folder, ignore_errors=True)


def _go_on(folder: Path, made_of: dict[str, Any], say: Say | None) -> Journal:
    """What an earlier run left, if it measured the same; else an empty beginning."""
    made_of = json.loads(json.dumps(made_of))
    try:
        kept = foreign.read_json(folder / _JOURNAL)
        if isinstance(kept, dict) and (kept["version"], kept["made_of"]) == (_VERSION, made_of):
            before = None if kept["before"] is None else Figures(**kept["before"])
            found = {key: Figures(**each) for key, each in kept["found"].items()}
            sound = {key: each for key, each in found.items() if each.failed is None}  # the rest is tried again
            work = Journal(folder, made_of, before, sound)
            if say is not None and work.found:
                say(f"resume    {counted(len(work.found), 'candidate')} of an earlier run are known")
            return work
        why = "it was of another model, text or settings"
    except FileNotFoundError:
        why = ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        why = "its journal is broken"
    if why and say is not None:
        say(f"anew      what was found out for this folder is not gone on with: {why}")
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        elif old.name != _LOCK:
            old.unlink(missing_ok=True)
    return Journal(folder, made_of)
