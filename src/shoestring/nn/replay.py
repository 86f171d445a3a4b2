"""Choices made once: what a recomputed part decided in its first run is read back in the second, not decided again.

Reversible blocks rebuild their inputs, which then differ in the last bits and can flip an expert router's
top-k; a memory bank has changed between the two runs. A part that chooses wraps the choice in `replayed`,
and whoever runs it twice wraps both runs in one `Replay`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_thread = threading.local()


def replayed(choose: Callable[[], T]) -> T:
    """`choose()` in a first run, what it gave then in every later one. The result must carry no gradient."""
    tape: Replay | None = getattr(_thread, "tape", None)
    return choose() if tape is None else tape.take(choose)


class Replay:
    """The choices of one part. The first `with tape.run():` records, each later one reads in the same order."""

    def __init__(self) -> None:
        self.choices: list = []
        self.recorded = False
        self.next = 0

    def take(self, choose: Callable[[], T]) -> T:
        if not self.recorded:
            self.choices.append(choose())
            return self.choices[-1]
        self.next += 1
        return self.choices[self.next - 1]

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        before = getattr(_thread, "tape", None)
        self.next = 0
        _thread.tape = self
        try:
            yield
        finally:
            _thread.tape = before
            self.recorded = True
