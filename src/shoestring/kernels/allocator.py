"""The memory of CPU tensors: how much there is, and that freed tensors really give it back.

Until it has an allocator of its own this is glibc's threshold (`core.allocator`), and nothing is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.core.allocator import map_large_tensors


@dataclass(frozen=True)
class Counts:
    live: int = 0
    held: int = 0
    live_peak: int = 0
    held_peak: int = 0


@dataclass(frozen=True)
class Refusal:
    asked: int
    live: int
    cap: int


def install() -> bool:
    map_large_tensors()
    return False


def counts() -> Counts:
    return Counts()


def reset_peaks() -> None:
    """Nothing is counted."""


def refused(error: BaseException) -> Refusal | None:
    return None
