"""Files and folders that appear whole or not at all, whatever instant the process is killed at.

Everything is written to a temporary sibling (same disk), flushed to the disk, then renamed. A folder that
replaces another is exchanged with it in one system call where there is one (Linux renameat2, macOS
renamex_np); elsewhere the old one is moved aside first and `recover_folder` brings it back if the process
died in between. Temporaries of dead processes are recognised and removed (`core.temporaries`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shoestring.core import temporaries
from shoestring.core.errors import RunError, ShoestringError


def cache_dir() -> Path:
    """The folder for what can be fetched or measured again:

    SHOESTRING_CACHE, else the system's place for caches.
    """
    if own := os.environ.get("SHOESTRING_CACHE"):
        folder = Path(os.path.expanduser(own))
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(xdg) / "shoestring"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "shoestring"
    elif sys.platform == "darwin":
        folder = _home() / "Library" / "Caches" / "shoestring"
    else:
        folder = _home() / ".cache" / "shoestring"
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise RunError(
            "there is no home folder for the cache", hint="set SHOESTRING_CACHE to a folder"
        ) from error


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a file ("w" UTF-8 text, "wb" bytes) that takes `path`'s place when the block ends well.

    If the block raises, or the process dies, `path` is as it was. Raises RunError when the disk is full or
    read-only.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write writes whole files: mode must be 'w' or 'wb', not {mode!r}")
    path = Path(path)
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        temporary = temporaries.new(path, "tmp")
        try:
            text: dict[str, Any] = {"encoding": encoding or "utf-8", "newline": ""} if mode == "w" else {}
            with open(temporary, mode.replace("w", "x"), **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            temporaries.forget(temporary)


@contextmanager
def exclusive(file: str | Path) -> Iterator[None]:
    """Hold the lock file, waiting for whoever has it as long as need be.

    It is free again when the process dies, however it dies.
    """
    from filelock import FileLock

    with FileLock(file):
        yield


class Held:
    """A lock file that is this process's until `release`, or until the process dies."""

    def __init__(self, lock: Any):
        self._lock = lock

    def release(self) -> None:
        self._lock.release(force=True)


def hold(file: str | Path) -> Held | None:
    """Take the lock file, without waiting; None where another has it. Raises RunError when it cannot be written."""
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=0, thread_local=False)
    with clear_errors(Path(file)):
        try:
            lock.acquire()
        except Timeout:
            return None
    return Held(lock)


@contextmanager
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill, which becomes `path` when the block ends well.

    replace: an existing, non-empty folder at `path` is exchanged for the new one and then deleted; without it
    such a folder is an error before any work. Killed at any instant, `path` is either the old folder or the
    new one, whole (where the system cannot exchange folders, after `recover_folder`). Raises RunError when
    the disk is full or read-only.
    """
    path = Path(os.path.abspath(path))
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        remove_stale(path)
        _check_replaceable(path, replace)
        temporary = temporaries.new(path, "tmp")
        try:
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            _check_replaceable(path, replace)
            _put_in_place(temporary, path)
            _sync_folder(path.parent)
        finally:
            if temporary.is_symlink():  # `path` was a link to a folder elsewhere, which stays
                temporary.unlink()
            shutil.rmtree(temporary, ignore_errors=True)
            temporaries.forget(temporary)


def check_new(path: str | Path) -> None:
    """Raises RunError where a file or a folder that is not empty stands at `path`, or nothing can be written there."""
    path = Path(os.path.abspath(path))
    recover_folder(path)
    _check_replaceable(path, replace=False)
    check_place(path)


def recover_folder(path: str | Path) -> None:
    """Bring back the old folder if a process died between moving it aside and putting the new one there."""
    path = Path(os.path.abspath(path))
    if os.path.exists(path) or not os.path.isdir(path.parent):
        return
    moved = [
        found for found, match in temporaries.of(path) if match["kind"] == "old" and temporaries.is_stale(found, match)
    ]
    if moved:
        os.rename(max(moved, key=lambda folder: folder.stat().st_mtime), path)


def remove_stale(path: str | Path) -> None:
    """Delete what dead processes left behind while they wrote `path`.

    An old folder goes only once `path` exists.
    """
    path = Path(path)
    for found, match in temporaries.of(path):
        if temporaries.is_stale(found, match) and (match["kind"] == "tmp" or path.exists()):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def remove_folder(path: str | Path) -> None:
    """Delete a folder, if it is there, so that none is ever found half deleted in its place."""
    path = Path(os.path.abspath(path))
    aside = temporaries.new(path, "tmp")
    try:
        with suppress(FileNotFoundError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        temporaries.forget(aside)


def replace_symlink_or_pointer(link: str | Path, target: str) -> None:
    """Make `link` (such as OUT/latest) name its sibling `target`, atomically.

    A relative symlink where the system allows one; otherwise (Windows without the privilege) a text file that
    holds the name.
    """
    link = Path(link)
    with clear_errors(link):
        remove_stale(link)
        temporary = temporaries.new(link, "tmp")
        try:
            try:
                os.symlink(target, temporary, target_is_directory=True)
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
                    raise
                temporary.write_text(target + "\n", encoding="utf-8")
            os.replace(temporary, link)
            _sync_folder(link.parent)
        finally:
            temporary.unlink(missing_ok=True)
            temporaries.forget(temporary)


def resolve_pointer(link: str | Path) -> Path:
    """The path that `replace_symlink_or_pointer` made `link` name;

    `link` itself if it is an ordinary path.
    """
    link = Path(link)
    if link.is_symlink():
        return link.parent / os.readlink(link)
    if os.path.isfile(link) and link.stat().st_size < 1024:
        return link.parent / link.read_text(encoding="utf-8", errors="replace").strip()
    return link


def check_place(path: str | Path) -> None:
    """Raises RunError where `path` could not be written, so that this is told before any work."""
    path = Path(os.path.abspath(path))
    with clear_errors(path):
        with suppress(FileNotFoundError):
            os.lstat(path)
        parent = next(parent for parent in (path, *path.parents) if parent.exists())
        if not os.access(parent, os.W_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(parent))


LFS_POINTER = "this is a Git LFS pointer, a note of where the file is, and not the file"
LFS_HINT = "fetch the files themselves: git lfs pull, in the folder that was cloned"


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one where Git LFS is not installed."""
    begin = b"version https://git-lfs.github.com/spec/"
    try:
        with open(path, "rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def sha256_file(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- renaming and flushing ----------------------------------------------------------------------------------


def _check_replaceable(path: Path, replace: bool) -> None:
    if not os.path.exists(path):
        return
    if not os.path.isdir(path):
        raise RunError(
            "this is a file, and a folder is to be written there",
            where=str(path),
            hint="choose another --out",
        )
    if not any(path.iterdir()):
        return
    if not replace:
        raise RunError(
            "this folder exists and is not empty",
            where=str(path),
            hint="choose another --out, or remove it first",
        )
    if Path.cwd().is_relative_to(path) or _home().is_relative_to(path):
        raise RunError(
            "this folder would be replaced as a whole, and you are in it",
            where=str(path),
            hint="choose another --out",
        )


def _put_in_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`, exchanging it with a non-empty folder there, and delete the old one."""
    if not path.exists() or not any(path.iterdir()):
        if sys.platform == "win32" and path.exists():
            path.rmdir()
        os.rename(new, path)
        return
    if _exchange(new, path):
        return  # `new` is the old folder now; the caller deletes it
    aside = temporaries.new(path, "old")
    os.rename(path, aside)
    os.rename(new, path)
    _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
    temporaries.forget(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one system call; False where system or file system cannot."""
    swap, here = 2, -100  # RENAME_EXCHANGE and RENAME_SWAP are both 2; AT_FDCWD on Linux is -100
    names = os.fsencode(first), os.fsencode(second)
    library: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return library.renameat2(here, names[0], here, names[1], swap) == 0
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return library.renamex_np(names[0], names[1], swap) == 0
    return False


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(parent, name)
            if not os.path.islink(file):
                descriptor = os.open(file, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder; Windows keeps them in its own journal and cannot open a folder."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


# --- clear errors -------------------------------------------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_FULL_OR_READ_ONLY = _FULL | {errno.EROFS}


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Around writing `path`: what a disk or place refuses is told in a sentence; other errors pass."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # it would have to stand in recipes, configs and plots
        raise RunError(
            "this name is not UTF-8 text", where=ascii(str(path)), hint="choose another --out"
        ) from None
    try:
        yield
    except ShoestringError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors writes from Rust and reports in words: "No space left on device (os error 28)"
        found = re.search(r"\(os error (\d+)\)", str(error)) if number is None else None
        number = int(found.group(1)) if found else number
        if number in _FULL:
            raise RunError(
                "the disk is full: this was not written; what was written before it stays",
                where=str(path),
                hint=_free_hint(path),
            ) from error
        if number == errno.EROFS:
            raise RunError("the disk is read-only", where=str(path), hint="choose another --out") from error
        if isinstance(error, OSError) and number in (errno.EACCES, errno.EPERM) and _concerns(error, path):
            raise RunError(
                "no permission to write here", where=str(path), hint="choose another --out"
            ) from error
        if isinstance(error, OSError) and error.strerror and _concerns(error, path):
            reason = "a file stands in the way" if isinstance(error, FileExistsError) else error.strerror
            raise RunError(f"cannot write here: {reason}", where=str(path), hint="choose another --out") from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about `path`, its temporary sibling or a folder above, not the caller's input."""
    for name in (error.filename, error.filename2):
        if isinstance(name, (str, os.PathLike)):
            failed, parent = Path(os.path.abspath(name)), Path(os.path.abspath(path)).parent
            match = temporaries.PATTERN.fullmatch(failed.name)
            if (
                failed == parent / path.name
                or parent.is_relative_to(failed)
                or (match and match["name"] == path.name)
            ):
                return True
    return False


def _free_hint(path: Path) -> str:
    folder = next(parent for parent in (path, *path.parents, Path(".")) if os.path.isdir(parent))
    free = shutil.disk_usage(folder).free
    return f"{free / 1e6:.0f} MB are free there; make room or choose another --out"
