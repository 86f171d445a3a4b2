"""What a person sees of work that has no steps of its own to tell: a line on stderr that says what is being done.

On a terminal it is drawn at once, kept up to date, and gone at the end. Elsewhere it comes after two seconds, and again
now and then: what takes longer than that has a line, and what is quicker has none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shoestring.core import console
from shoestring.core.units import format_seconds

FIRST, AGAIN = 2.0, 20.0  # seconds until the first line where there is no terminal, and between the others


class Waiting:
    """what: is done, such as "before    measuring". total: of what `advance` counts, None where nothing does."""

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total, self.done = what, total, 0
        self._started = time.monotonic()
        self._found = 0  # of those done, what took no time

    def advance(self, count: int = 1) -> None:
        self.done += count

    def found(self, count: int) -> None:
        """So many were done before: they say nothing about the time that the others take."""
        self.done += count
        self._found += count

    def line(self) -> str:
        """Such as: before    measuring: 12 of 128, 0:05, 0:48 left."""
        seconds = time.monotonic() - self._started
        if self.total is None:
            return f"{self.what}: {format_seconds(seconds)}"
        done, timed = min(self.done, self.total), self.done - self._found
        left = ""
        if timed > 0 and seconds >= FIRST and done < self.total:
            left = f", {format_seconds(seconds / timed * (self.total - done))} left"
        return f"{self.what}: {done:,} of {self.total:,}, {format_seconds(seconds)}{left}"


@contextmanager
def waiting(what: str, total: int | None = None) -> Iterator[Waiting]:
    """Around the work, which must start no other display."""
    told = Waiting(what, total)
    if os.environ.get("RANK", "0") != "0":  # one process tells it for all
        yield told
    elif console.err.is_terminal:
        from rich.live import Live
        from rich.text import Text

        def drawn() -> Text:
            return Text(told.line(), no_wrap=True, overflow="ellipsis")

        with Live(console=console.err, transient=True, refresh_per_second=4, get_renderable=drawn):
            yield told
    else:
        over = threading.Event()

        def tell() -> None:
            seconds = FIRST
            while not over.wait(seconds):
                console.err.print(told.line())
                seconds = AGAIN

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield told
        finally:
            over.set()
            teller.join()
