"""Who watches the runs of this process from outside, such as a search that ends a trial early.

A watcher is a callback that comes right behind a run's evaluations: it may read `state.held_out`, and end the run by
`event.stopping` or `event.last`, as any callback may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from shoestring.train.loop import Callback

WATCHING: ContextVar[tuple[Callback, ...]] = ContextVar("watching", default=())


@contextlib.contextmanager
def watched_by(*callbacks: Callback) -> Iterator[None]:
    """Inside, every run is watched by these too."""
    token = WATCHING.set((*WATCHING.get(), *callbacks))
    try:
        yield
    finally:
        WATCHING.reset(token)
