"""What the allocator should count, in plain Python, beside what it does; and where it cannot be had."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import shutil
import sys

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

    def __init__(self) -> None:
        library = allocator._library()
        assert library is not None
        self.library = library
        self.blocks: list[tuple[int, int, int]] = []  # address, length, what it is filled with
        self.cap: float = float("inf")
        self.target: float = float("inf")
        self.limit(None, None)
        library.memory_give_back()

    def counts(self) -> allocator.Counts:
        numbers = (ctypes.c_int64 * 9)()
        self.library.memory_counts(numbers)
        return allocator.Counts(*numbers)

    def used(self) -> int:
        return sum(occupied(length) for _, length, _ in self.blocks)

    def take(self, length: int) -> None:
        before, fits = self.counts(), self.used() + occupied(length) <= self.cap
        start = self.library.memory_take(length)
        assert (start is not None) == fits
        if start is None:
            assert self.counts() == before
            return
        assert start % 64 == 0
        assert all(start + length <= other or other + n <= start for other, n, _ in self.blocks)
        mark = len(self.blocks) % 251 + 1
        ctypes.memset(start, mark, length)
        self.blocks.append((start, length, mark))
        now = self.counts()
        assert now.held <= max(before.held, self.target, self.used()) or length < SMALL
        assert now.live_peak >= now.live and now.held_peak >= now.held

    def release(self, which: int) -> None:
        if self.blocks:
            start, length, mark = self.blocks.pop(which % len(self.blocks))
            assert ctypes.string_at(start, length) == bytes([mark]) * length
            self.library.memory_release(start)

    def limit(self, cap: int | None, target: int | None) -> None:
        self.cap, self.target = (float("inf") if n is None else n for n in (cap, target))
        self.library.memory_limit(*(2**64 - 1 if n is None else n for n in (cap, target)))
        assert self.counts().held <= max(self.used(), min(self.cap, self.target))

    def give_back(self) -> None:
        self.library.memory_give_back()
        assert self.counts().held == self.used()


def occupied(length: int) -> int:
    return length + OVERHEAD if length < SMALL else -(-length // PAGE) * PAGE
