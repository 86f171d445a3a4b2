"""The line on stderr while a run trains: loss, held-out bits per byte, speed, share of the matrix peak,
memory, time left.

On a terminal one line is redrawn with a bar; elsewhere (a log file, a pipe) a plain line appears every few
seconds.
"""

from __future__ import annotations

import time
from collections import deque

import torch

from shoestring.core import console
from shoestring.core.units import format_bytes, format_count, format_seconds
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.metrics import memory_bytes, share_of_peak

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
_WINDOW = 10  # steps that the speed is averaged over


class ProgressLine(Callback):
    """Comes last of the callbacks. Call `close` when the run ends, however it ends."""

    def __init__(self, token_flops: float, peak: float, device: torch.device, held_out: str = "bits/byte"):
        """held_out: "bits/byte" or "loss", how a held-out measurement is shown."""
        from rich.progress import BarColumn, Progress, TextColumn

        self.token_flops, self.peak, self.device, self.held_out = token_flops, peak, device, held_out
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._last_line = 0.0
        self._events: int | None = None
        self._live = None
        if console.err.is_terminal and parallel.rank() == 0:
            self._live = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), console=console.err
            )
            self._task = self._live.add_task("step", total=None)
            self._live.start()

    def after_step(self, event: StepEvent) -> None:
        if parallel.rank() != 0:
            return
        self._recent.append((event.tokens, event.seconds))
        state = event.state
        if self._events is None:  # those of earlier sessions have been told
            self._events = sum(values["step"] < state.step for values in state.events)
        for values in state.events[self._events :]:
            if sentence := _tell(values, event):
                console.err.print(sentence)
        self._events = len(state.events)
        line = self.line(event)
        if self._live is not None:
            self._live.update(self._task, description=line, total=state.total_steps, completed=state.step)
            return
        now = time.monotonic()
        if event.last or event.stopping or now - self._last_line >= PLAIN_EVERY:
            self._last_line = now
            console.err.print(line)

    def line(self, event: StepEvent) -> str:
        """Such as: step 210/610  loss 3.21  held-out 2.31 bits/byte  41k tok/s  63% of matrix peak  ..."""
        state = event.state
        total = f"{state.total_steps}" if state.total_steps is not None else "?"
        rate = sum(tokens for tokens, _ in self._recent) / max(
            sum(seconds for _, seconds in self._recent), 1e-9
        )
        parts = [f"step {state.step:>{len(total)}}/{total}", f"loss {event.loss.mean:.2f}"]
        if state.held_out is not None:
            bits, loss = state.held_out.bits_per_byte, state.held_out.loss
            parts.append(f"held-out {bits:.2f} bits/byte" if self.held_out == "bits/byte" else f"held-out {loss:.3f}")
        parts.append(f"{format_count(rate)} tok/s")
        parts.append(f"{share_of_peak(rate, self.token_flops, self.peak):.0%} of matrix peak")
        parts.append(format_bytes(memory_bytes(self.device)))
        left = event.pace.seconds_left(state)
        if left is not None and not event.last:
            parts.append(f"{format_seconds(left)} left")
        return "  ".join(parts)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _tell(values: dict, event: StepEvent) -> str | None:
    if values["event"] == "stopped_early":
        return f"stopped   the held-out loss has not fallen since step {values['best_step']:,}"
    if values["event"] == "skipped":
        return f"skipped   step {values['step']:,} changed nothing: {values['reason']}"
    if values["event"] == "planned":
        return f"time      fits {values['steps']:,} steps of {event.tokens:,} tokens"
    if values["event"] != "shortened":
        return None
    return f"time      slower than the first steps: {values['to']:,} steps instead of {values['from']:,}"
