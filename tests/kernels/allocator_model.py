"""What the allocator should count, in plain Python, beside what it does; and where it cannot be had."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from shoestring.kernels import allocator

SWITCHES = ["SHOESTRING_ALLOCATOR", "SHOESTRING_KERNELS"]
NEEDS_COMPILER = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None or any(os.environ.get(name) == "off" for name in SWITCHES),
    reason="without g++ on Linux, or switched off, there is no allocator",
)
LINUX = re.match(r"(\d+)\.(\d+)", platform.release())
NEEDS_MOVES = pytest.mark.skipif(
    LINUX is None or (int(LINUX[1]), int(LINUX[2])) < (5, 7), reason="this system cannot move pages"
)
PAGE, SMALL, OVERHEAD = mmap.PAGESIZE, 1 << 16, 88
MOST = 1 << 20


class Model:
    """The library and, beside it, what it should count."""

    def __init__(self, moves: bool = True) -> None:
        library = self.functions = _own_library()
        library.memory_move(moves)  # or kept pages only go back, as on old systems
        self.moves = library.memory_move(moves)
        self.blocks: list[tuple[int, int, int]] = []  # address, length, what it is filled with
        self.marks = itertools.cycle(range(1, 256))
        self.limit(None, None)
        library.memory_give_back()

    def counts(self) -> allocator.Counts:
        numbers = (ctypes.c_int64 * 9)()
        self.functions.memory_counts(numbers)
        return allocator.Counts(*numbers)

    def used(self) -> int:
        return sum(occupied(length) for _, length, _ in self.blocks)

    def check(self, before: allocator.Counts) -> allocator.Counts:
        """What is always so, and since `before` -> the counts now."""
        now = self.counts()
        assert now.live == sum(length for _, length, _ in self.blocks)
        assert self.used() <= now.held <= max(self.used(), self.cap)
        assert now.live_peak >= now.live and now.held_peak >= now.held
        pages = (now.fresh - before.fresh) - (now.given_back - before.given_back)
        small = now.held - before.held - pages
        assert small == 0 or abs(small) < SMALL + OVERHEAD and now.fresh == before.fresh
        return now

    def take(self, length: int) -> None:
        before, used, bytes = self.counts(), self.used(), occupied(length)
        start = self.functions.memory_take(length)
        if used + bytes > self.cap:
            assert start is None and self.counts() == before
            return
        assert start is not None and start % 64 == 0
        assert all(start + length <= other or other + n <= start for other, n, _ in self.blocks)
        mark = next(self.marks)
        ctypes.memset(start, mark, length)
        self.blocks.append((start, length, mark))
        now = self.check(before)
        assert now.allocations == before.allocations + 1
        if length >= SMALL:
            assert now.held <= max(before.held, self.target, used + bytes)
            assert (now.reused > before.reused) == (now.fresh == before.fresh)
            assert now.moved == before.moved or self.moves

    def release(self, which: int) -> None:
        before = self.counts()
        start, length, mark = self.blocks.pop(which % len(self.blocks))
        assert ctypes.string_at(start, length) == bytes([mark]) * length
        self.functions.memory_release(start)
        self.check(before)

    def limit(self, cap: int | None, target: int | None) -> None:
        self.cap, self.target = (float("inf") if n is None else n for n in (cap, target))
        self.functions.memory_limit(*(2**64 - 1 if n is None else n for n in (cap, target)))
        assert self.counts().held <= max(self.used(), min(self.cap, self.target))

    def give_back(self) -> None:
        self.functions.memory_give_back()
        assert self.counts().held == self.used()

    def release_all(self) -> None:
        while self.blocks:
            self.release(0)
        self.give_back()
        assert self.counts().live == self.counts().held == 0
        assert self.functions.memory_move(True) == self.moves  # no move has failed


@functools.cache
def _own_library() -> ctypes.CDLL:
    """A copy, for torch's tensors may come from the process's own."""
    library = allocator._library()
    assert library is not None
    with tempfile.TemporaryDirectory() as folder:
        own = ctypes.CDLL(shutil.copy(library._name, Path(folder) / "own.so"))
    for name in ("memory_take", "memory_release", "memory_counts", "memory_limit", "memory_events"):
        shared = getattr(library, name)
        getattr(own, name).argtypes, getattr(own, name).restype = shared.argtypes, shared.restype
    return own


def occupied(length: int) -> int:
    return length + OVERHEAD if length < SMALL else -(-length // PAGE) * PAGE
