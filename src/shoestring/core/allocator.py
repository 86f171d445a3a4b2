"""Gives freed tensors back to the system where the caching allocator (`kernels.allocator`) cannot be had, so that a
run's memory is the sum of what it holds.

glibc raises the size above which it maps blocks by themselves up to 32 MB as large blocks are freed; from then
on tensors share its heap, and the holes between long-lived activations stay resident: 300 MB at 112M parameters
and 2 × 1024 tokens. Pinning that size keeps each tensor of a megabyte or more in a mapping of its own; where a limit is
to be kept, each of 128 kB or more, because hidden states of a short row leave holes too.
"""

from __future__ import annotations

import ctypes
import sys

LARGE = 1 << 20  # the threshold that leaves few holes
GIVEN_BACK = 1 << 17  # with which memory is the sum of what is held
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


def map_large_tensors(threshold: int = LARGE) -> bool:
    """From now on, blocks of `threshold` bytes or more go back to the system when freed.

    Returns whether the C library could be told: only glibc can, and elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # What is free at the heap's end goes back beyond twice that, as glibc has it when it chooses for itself.
    trimmed = libc.mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(2 * threshold))
    return bool(libc.mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(threshold)) and trimmed)


def trim_heap() -> None:
    """What is free between blocks of the C library's heap goes back to the system; only glibc can be told."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.malloc_trim(ctypes.c_size_t(0))
