"""One caching allocator for all CPU tensors, through torch's own interface (c10::SetCPUAllocator).

The system clears a page when it is first touched, which takes longer than most passes over it; so freed pages are kept
and used again, in whatever pieces they are (pages.h). Bytes are counted, not sampled, and limits are kept before the
system is asked (allocator.cpp): a tensor that does not fit is an error with its size. Tensors alone: files, libraries
and the Python heap are outside. mlverse/torch keeps CPU tensors' memory through the same hook (its pull request 1447).
SHOESTRING_ALLOCATOR=off leaves tensors to torch and glibc.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from shoestring.core.allocator import LARGE, map_large_tensors, trim_heap
from shoestring.kernels.compiled import kernel

_NO_LIMIT = 2 ** (8 * ctypes.sizeof(ctypes.c_size_t)) - 1
# What allocator.cpp says of a tensor beyond the cap.
_REFUSED = re.compile(r"no room for a tensor of (\d+) bytes: (\d+) live of at most (\d+)")

_installed = False


@dataclass(frozen=True)
class Counts:
    """Bytes, and how often, since the allocator was installed.

    live: asked for and not freed. held: resident for it, pages kept for reuse included (a block counts whole, touched
    or not). allocations: of any size; of those, `reused` took pages that were there. fresh: new pages handed out, each
    cleared by the system when touched. moved: pages taken from where they were free to where a block needed them.
    given_back: pages that went back to the system.
    """

    live: int
    held: int
    live_peak: int
    held_peak: int
    allocations: int
    reused: int
    fresh: int
    moved: int
    given_back: int


class Refusal(NamedTuple):
    """Bytes asked for, live then, and the cap that held would have passed."""

    asked: int
    live: int
    cap: int


class Event(NamedTuple):
    """Bytes taken or, negative, freed; bytes live thereafter; the block's address while it lives."""

    bytes: int
    live: int
    block: int


def install(threshold: int = LARGE) -> bool:
    """From now on torch makes CPU tensors here, if it can be had -> whether it does. Again: nothing more happens.

    Tensors that are there already go back to where they are from. threshold: where it cannot be had (no compiler, not
    Linux, switched off), glibc is told instead to give back blocks of so many bytes when they are freed.
    """
    global _installed
    library = None if os.environ.get("SHOESTRING_ALLOCATOR", "") == "off" else _library()
    if library is not None and not _installed:
        _installed = bool(library.install_for_torch())
    if not _installed:
        map_large_tensors(threshold)
    return _installed


def installed() -> bool:
    """Whether torch makes CPU tensors here."""
    return _installed


def counts() -> Counts | None:
    """As they are now; None where torch makes CPU tensors elsewhere."""
    if not _installed:
        return None
    numbers = (ctypes.c_int64 * len(Counts.__dataclass_fields__))()
    _ours().memory_counts(numbers)
    return Counts(*numbers)


def kept() -> int:
    """Bytes that no tensor has now and that are kept for the next; 0 where nothing counts them."""
    now = counts()
    return 0 if now is None else max(now.held - now.live, 0)


def live() -> int:
    """Bytes that tensors have now; 0 where nothing counts them."""
    now = counts()
    return 0 if now is None else now.live


def limit(cap: int | None = None, target: int | None = None) -> None:
    """Of held bytes, from now on; None: no limit. Kept pages beyond go back at once. Where torch makes CPU tensors
    elsewhere, nothing is limited, here and below.

    cap: a tensor that would need more is refused (`refused`). target: before new pages would make held exceed the
    larger of it and what live tensors occupy, kept ones go back; where the system can move pages (Linux 5.7) that is
    seldom needed, because kept ones are used before new ones wherever they are. Small blocks (under 64 kB) mind the
    cap alone.
    """
    if _installed:
        _ours().memory_limit(_NO_LIMIT if cap is None else cap, _NO_LIMIT if target is None else target)


def reset_peaks() -> None:
    """Peaks begin again at what is live and held."""
    if _installed:
        _ours().memory_reset_peaks()


def give_back() -> None:
    """All kept pages go back to the system, and what is free in the C library's heap."""
    if _installed:
        _ours().memory_give_back()
    trim_heap()


def refused(error: BaseException) -> Refusal | None:
    """What the cap refused, if that is what `error` says (a torch.OutOfMemoryError, or what was made of one)."""
    found = _REFUSED.search(str(error))
    return None if found is None else Refusal(*(int(number) for number in found.groups()))


def trace_start() -> None:
    """Every block taken and freed is written down from now on: 24 bytes of memory that no count has."""
    _ours().memory_trace(1)


def trace_stop() -> list[Event]:
    """What was written down, in order; nothing more is."""
    library = _ours()
    library.memory_trace(0)
    numbers = (ctypes.c_int64 * (3 * library.memory_events(None)))()
    library.memory_events(numbers)
    return [Event(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)]


def _ours() -> ctypes.CDLL:
    library = _library()
    assert _installed and library is not None, "install() first, and only where it returned True"
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = kernel("allocator", with_torch=True)
    if found is not None:
        at, size = ctypes.c_void_p, ctypes.c_size_t
        found.memory_take.argtypes, found.memory_take.restype = [size], at
        found.memory_release.argtypes = [at]
        found.memory_counts.argtypes = [at]
        found.memory_limit.argtypes = [size, size]
        found.memory_events.argtypes, found.memory_events.restype = [at], size
    return found
