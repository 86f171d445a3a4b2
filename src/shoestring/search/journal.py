"""A study's journal: Optuna's own format, a line for each thing that happened, shared by every process at work on it.

Optuna's own lock is a file that a killed process leaves behind; this one ends with its process. A last line that a
killed process left half written is cut off; any other damage is told with its line, and the file stays as it is.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import RunError
from shoestring.core.extras import need
from shoestring.core.files import clear_errors
from shoestring.core.foreign import parse_json

if TYPE_CHECKING:
    import optuna

JOURNAL, LOCK = "journal.log", ".journal.lock"
_KEPT = "nothing in it was changed; a copy of before, or another --out, goes on"


def load_optuna() -> Any:
    """The package, quiet. Raises ConfigError where it is not installed."""
    need("optuna", "search", "search")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna.*")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class _Lock:
    """A lock file that is free once its process is gone."""

    def __init__(self, file: Path):
        from filelock import FileLock

        self._lock = FileLock(file)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_journal(folder: Path) -> optuna.storages.BaseStorage:
    """The storage of the study in this folder. Raises RunError for a journal that cannot be read."""
    load_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file, lock = folder / JOURNAL, _Lock(folder / LOCK)
    with clear_errors(file):
        lock.acquire()
        try:
            _mend(file)
        finally:
            lock.release()
        try:
            return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))  # type: ignore[arg-type]
        except (OSError, RunError):
            raise
        except Exception as error:  # of the replay, whatever a damaged line makes it stumble over
            raise damaged(file, f"{type(error).__name__}: {error}") from error


def damaged(file: Path, what: str, line: int | None = None) -> RunError:
    where = str(file) if line is None else f"{file}:{line}"
    return RunError(
        f"this is not the journal of a study: {what.splitlines()[0] if what else 'it is empty'}", where, _KEPT
    )


def _mend(file: Path) -> None:
    """Check every line, and cut off a last one that was being written when its process was killed."""
    if not file.is_file():
        return
    raw = file.read_bytes()
    whole, _, torn = raw.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            values = parse_json(line)
        except ValueError as error:
            raise damaged(file, f"no JSON ({error})", number) from None
        if not isinstance(values, dict) or not isinstance(values.get("op_code"), int):
            raise damaged(file, "no operation", number)
    if torn:
        if not whole and not torn.startswith(b'{"op_code":'):  # someone else's file
            raise damaged(file, "its first line does not end", 1)
        with open(file, "rb+") as opened:
            opened.truncate(len(raw) - len(torn))
            os.fsync(opened.fileno())
