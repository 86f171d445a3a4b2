"""A worker inside a memory cgroup: the kernel, not our own bookkeeping, says whether a budget was kept.

A child of this process's own group (version 1 of the memory controller) is given a limit, without swap. Everything a
process causes counts against it: its pages, the page cache of what it reads, the kernel's own memory for it. At the
limit the kernel drops page cache; where that is not enough it kills the worker, and that fails the benchmark. Groups
can only be made by root on Linux; elsewhere `why_not` says so, and a benchmark then reports "not proven".
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTROLLER = Path("/sys/fs/cgroup/memory")
_SECONDS = 5.0  # in which the kernel lets go of an emptied group


@dataclass(frozen=True)
class MemoryGroup:
    """folder: of the group in the memory controller's file system. limit: bytes, swap included."""

    folder: Path
    limit: int

    @property
    def peak(self) -> int:
        """The most that was charged at once, in bytes: page cache counts, so long reading ends at the limit."""
        return int((self.folder / "memory.max_usage_in_bytes").read_text())

    @property
    def kills(self) -> int:
        """Processes that the kernel ended because nothing else could go."""
        words = (self.folder / "memory.oom_control").read_text().split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def command(self, arguments: list[str]) -> list[str]:
        """The same command, inside from its first page on."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *arguments]


def why_not() -> str | None:
    """The reason why this process cannot make such a group, in a sentence; None where it can."""
    if sys.platform != "linux":
        return "memory cgroups exist on Linux only"
    if not (_CONTROLLER / "memory.limit_in_bytes").is_file():
        return (
            "version 1 of the memory controller is not mounted; where systemd runs, "
            "systemd-run --scope -p MemoryMax=900M -p MemorySwapMax=0 COMMAND limits a whole command instead"
        )
    if not os.access(_own(), os.W_OK):
        return f"only root may make a group in {_own()}"
    return None


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group of `limit` bytes that is removed at the end. Raises RuntimeError where `why_not` gives a reason."""
    if reason := why_not():
        raise RuntimeError(f"no memory cgroup can be made: {reason}")
    folder = _own() / f"shoestring-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        _set(folder / "memory.limit_in_bytes", limit)
        _set(folder / "memory.swappiness", 0)
        if (folder / "memory.memsw.limit_in_bytes").exists():  # the kernel counts swap at all
            _set(folder / "memory.memsw.limit_in_bytes", limit)
        yield MemoryGroup(folder, limit)
    finally:
        _remove(folder)


def _own() -> Path:
    """The folder of the group this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = _CONTROLLER / path.lstrip("/")
            return folder if folder.is_dir() else _CONTROLLER  # inside a container the path may be another's
    return _CONTROLLER


def _set(file: Path, value: int) -> None:
    file.write_text(str(value))


def _remove(folder: Path) -> None:
    """A group can go once its processes are gone, which the kernel may take a moment to see."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
