"""A run that outgrows its budget stops at a checkpoint, instead of being killed by the system."""

from __future__ import annotations

from pathlib import Path

from shoestring.core.errors import BudgetError
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import format_bytes
from shoestring.train.interrupt import StopRequest
from shoestring.train.loop import Callback, StepEvent


class MemoryGuard(Callback):
    """memory: bytes of the whole process, None: no limit. After a step that took more the run is asked to stop.

    What the process took before, for something else, is not held against the run.
    """

    def __init__(self, memory: int | None):
        self.memory = memory
        self.before = peak_rss_bytes()
        self.stop: StopRequest | None = None
        self.exceeded: int | None = None

    def after_step(self, event: StepEvent) -> None:
        if self.memory is None or self.exceeded is not None or event.last:
            return
        peak = peak_rss_bytes()
        if peak > max(self.memory, self.before) and self.stop is not None:
            self.exceeded = peak
            self.stop.requested = True

    def error(self, out: Path) -> BudgetError:
        """What the user is told, once the checkpoint is written."""
        assert self.memory is not None and self.exceeded is not None
        return BudgetError(
            f"the run took {format_bytes(self.exceeded)}, more than its budget of {format_bytes(self.memory)}, and was"
            f" stopped and saved in {out}",
            hint="start a new run with a larger --memory, or a smaller --train.batch_tokens",
        )
