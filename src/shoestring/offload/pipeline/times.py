"""What each machine does with its time: at work, waiting for others, and on the network, for a person and the log."""

from __future__ import annotations

import time

from shoestring.core import console
from shoestring.core.units import format_bytes
from shoestring.offload.pipeline.engine import PipelineEngine, Times
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.progress import PLAIN_EVERY


class MachineTimes(Callback):
    """Comes before the metrics, which get a line of every machine; and each machine but the first, which has a progress
    line, tells its own every few seconds. every: steps between lines."""

    def __init__(self, engine: PipelineEngine, every: int):
        self.engine, self.every = engine, every
        self._told, self._since = 0.0, Times()

    def after_step(self, event: StepEvent) -> None:
        step, place = self.engine.times, self.engine.decoder.place
        self._since = self._since.plus(step)
        if event.state.step % self.every == 0:
            mine = [step.work, step.waiting, step.network, float(step.sent)]
            rows = [mine if rank == place.rank else [0.0] * len(mine) for rank in range(place.stages)]
            every = parallel.sum_numbers(*(number for row in rows for number in row))
            for rank, (first, end) in enumerate(place.ranges):
                work, waiting, network, sent = every[rank * len(mine) : (rank + 1) * len(mine)]
                event.lines.append({
                    "machine": rank, "layers": [first, end], "work": work, "waiting": waiting, "network": network,
                    "sent": int(sent),
                })  # fmt: skip
        now = time.monotonic()
        if place.rank and (event.last or now - self._told >= PLAIN_EVERY):
            total = event.state.total_steps
            console.say(f"step {event.state.step}/{'?' if total is None else total}  {self.line()}")
            self._told, self._since = now, Times()

    def line(self) -> str:
        """Such as: layers 12 to 23  work 71%  waiting 20%  network 9%  1.2 MB sent."""
        place, since = self.engine.decoder.place, self._since
        whole = max(since.work + since.waiting + since.network, 1e-9)
        shares = {"work": since.work, "waiting": since.waiting, "network": since.network}
        told = "  ".join(f"{name} {seconds / whole:.0%}" for name, seconds in shares.items())
        return f"layers {place.first} to {place.end - 1}  {told}  {format_bytes(since.sent)} sent"
