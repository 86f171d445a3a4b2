"""A run that outgrows its budget stops at a checkpoint, instead of being killed by the system.

Tensors are kept below the budget by the allocator, which refuses; this watches the whole process after each step.
"""

from __future__ import annotations

from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import format_bytes
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent


class MemoryGuard(Callback):
    """memory: bytes of the whole process, None: no limit. After a step that took more the run is left, saved.

    What the process took before, for something else, is not held against the run. Stands before the checkpoints.
    """

    def __init__(self, memory: int | None):
        self.memory = memory
        self.before = peak_rss_bytes()
        self.exceeded: int | None = None

    def after_step(self, event: StepEvent) -> None:
        if self.memory is None or event.last:
            return
        peak = peak_rss_bytes()
        over = peak > max(self.memory, self.before)
        if parallel.sum_numbers(over)[0]:
            self.exceeded = peak
            event.stopping = (
                f"the run took {format_bytes(peak)}, more than its budget of {format_bytes(self.memory)}, and was"
                f" stopped after step {event.state.step}"
            )
