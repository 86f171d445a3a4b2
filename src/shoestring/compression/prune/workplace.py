"""Where the rounds of a run stand until its folder is there, so that who was stopped or killed goes on from there.

    .OUT.rounds/made.json     what is made of what
    .OUT.rounds/round-1/      the model behind a round of pruning, whole; round.json says what was chosen
    .OUT.rounds/recover-1/    the run that trained it
    .OUT.rounds/lock          held by who writes

It is gone once the folder is there, and where the run ended with a sentence about what it was given.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoestring.core import foreign
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError
from shoestring.core.files import atomic_write, clear_errors, hold
from shoestring.models.resolve import Say

_MADE, _LOCK = "made.json", "lock"
_LASTING = (ConfigError, DataError, ModelFileError)


@contextmanager
def workplace(out: Path, made_of: dict[str, Any], say: Say | None) -> Iterator[Path]:
    """The folder for the rounds of `out`. made_of: all that decides what is written, as JSON holds it. Raises RunError
    where another process makes the same folder."""
    folder = place_of(out)
    with clear_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(folder / _LOCK)
        if held is None:
            raise RunError("another process is making this folder", str(out), "wait for it, or choose another --out")
        keep = False
        try:
            _begin(folder, json.loads(json.dumps(made_of)), say)
            try:
                yield folder
            except _LASTING:
                raise
            except BaseException:
                keep = any(path.name not in (_MADE, _LOCK) for path in folder.iterdir())
                raise
        finally:
            held.release()
            if not keep:
                (folder / _MADE).unlink(missing_ok=True)  # first: what is half deleted is not gone on with
                shutil.rmtree(folder, ignore_errors=True)


def place_of(out: Path) -> Path:
    """Where the rounds of a folder stand."""
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.rounds")


def _begin(folder: Path, made_of: dict[str, Any], say: Say | None) -> None:
    """Leave what an earlier run of the same left, and take away all else."""
    left = [path for path in folder.iterdir() if path.name != _LOCK]
    try:
        if foreign.read_json(folder / _MADE) == made_of:
            return
    except (OSError, ValueError):
        pass
    if len(left) > 1 and say is not None:
        say("anew      an unfinished run of this folder was of another model, text or settings")
    for path in sorted(left, key=lambda path: path.name != _MADE):  # first, for the same reason
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with atomic_write(folder / _MADE) as file:
        json.dump(made_of, file)
