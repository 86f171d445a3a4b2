"""The line on stderr while a run trains: how far it is, what it has learned, what it costs.

On a terminal one line is redrawn; it ends some columns before the edge, so that the ^C which a terminal echoes does
not wrap it into a second one. What does not fit is left out from the end, so what a person needs most comes first.
Elsewhere (a log file, a pipe) a plain line with everything appears every few seconds.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import torch

from shoestring.core import console
from shoestring.core.units import counted, format_bytes, format_count, format_seconds
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.metrics import memory_bytes, share_of_peak
from shoestring.train.state import TrainerState

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
_DRAWN_EVERY = 0.1  # and between drawings where there is one
_WINDOW = 10  # steps that the speed is averaged over
_WORTH_TELLING = 0.25  # share of the planned steps
_SPARE = 5  # columns left free at the edge: two ^C and the cursor
_BAR = 16  # columns of the bar at most; below half of them there is none


class ProgressLine(Callback):
    """Comes last of the callbacks. Call `close` when the run ends, however it ends."""

    def __init__(self, token_flops: float, peak: float, device: torch.device, held_out: str = "bits/byte"):
        """held_out: "bits/byte" or "loss", how a held-out measurement is shown."""
        self.token_flops, self.peak, self.device, self.held_out = token_flops, peak, device, held_out
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._stage = 0
        self._last_line = 0.0
        self._events: int | None = None
        self._live: Live | None = None
        if console.err.is_terminal and parallel.rank() == 0:
            from rich.live import Live

            # Drawn by this thread alone: a signal cannot come between two that draw.
            self._live = Live(console=console.err, auto_refresh=False)
            self._live.start()

    def after_step(self, event: StepEvent) -> None:
        if parallel.rank() != 0:
            return
        state = event.state
        if state.stage != self._stage:
            self._recent.clear()
            self._stage = state.stage
        self._recent.append((event.tokens, event.seconds))
        if self._events is None:  # those of earlier sessions have been told
            self._events = sum(values["step"] < state.step for values in state.events)
        for values in state.events[self._events :]:
            if sentence := _tell(values, event):
                console.say(sentence)
        self._events = len(state.events)
        if event.last and (sentence := _tell_change(state)):
            console.say(sentence)
        now, every = time.monotonic(), PLAIN_EVERY if self._live is None else _DRAWN_EVERY
        if not (event.last or event.stopping or now - self._last_line >= every):
            return
        self._last_line = now
        if self._live is None:
            console.err.print(self.line(event))
        else:
            self._live.update(self._drawn(event), refresh=True)

    def line(self, event: StepEvent, width: int | None = None) -> str:
        """Such as: step 210/610  1:19 left  loss 3.21  held-out 2.31 bits/byte  41k tok/s  0.88 GB  63% of matrix peak.

        width: columns to keep to, None for all of it.
        """
        state = event.state
        total = f"{state.total_steps}" if state.total_steps is not None else "?"
        rate = sum(tokens for tokens, _ in self._recent) / max(
            sum(seconds for _, seconds in self._recent), 1e-9
        )
        parts: list[tuple[str, ...]] = [(f"step {state.step:>{len(total)}}/{total}",)]
        left = event.pace.seconds_left(state)
        if left is not None and not event.last:
            parts.append((f"{format_seconds(left)} left",))
        if event.stage is not None:
            parts.append((f"stage {state.stage + 1}",))
        parts.append((f"loss {event.loss.mean:.2f}",))
        if state.held_out is not None:
            bits, loss = state.held_out.bits_per_byte, state.held_out.loss
            text = "held-out sample" if state.held_out.sample else "held-out"
            short = f"{text} {bits:.2f}"
            parts.append((f"{short} bits/byte", short) if self.held_out == "bits/byte" else (f"{text} {loss:.3f}",))
        parts.append((f"{format_count(rate)} tok/s",))
        parts.append((format_bytes(memory_bytes(self.device)),))
        token_flops = self.token_flops if event.stage is None else event.stage.flops_per_token
        parts.append((f"{share_of_peak(rate, token_flops, self.peak):.0%} of matrix peak",))
        if width is None:
            return "  ".join(forms[0] for forms in parts)
        text = parts[0][0]
        for forms in parts[1:]:
            fitting = [form for form in forms if len(text) + 2 + len(form) <= width]
            if not fitting:
                break
            text += f"  {fitting[0]}"
        return text

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawn(self, event: StepEvent) -> Text:
        """The line for this terminal, with a bar where there is room."""
        from rich.text import Text

        width = console.err.width - _SPARE
        text = Text(self.line(event, width), no_wrap=True, overflow="crop")
        bar, total = min(_BAR, width - len(text) - 2), event.state.total_steps
        if total and bar >= _BAR // 2:
            done = bar * event.state.step // total
            full, rest = ("#", "-") if console.err.options.ascii_only else ("━", "─")
            text.append("  ").append(full * done, style="cyan").append(rest * (bar - done), style="dim")
        return text


def _tell(values: dict, event: StepEvent) -> str | None:
    if values["event"] == "stopped_early":
        return f"stopped   the held-out loss has not fallen since step {values['best_step']:,}"
    if values["event"] == "skipped":
        return f"skipped   step {values['step']:,} changed nothing: {values['reason']}"
    if values["event"] == "rolled_back":
        return f"back      to the weights of step {values['to']:,}, the batches since then left out: {values['reason']}"
    if values["event"] == "not_written":
        again = "" if event.last or event.stopping else "; the run goes on, and tries again at the next one"
        return f"not saved the {values['what']} of step {values['step']:,}: {values['reason']}{again}"
    if values["event"] == "stage":
        portion = f"{counted(values['batch_tokens'], 'token')} in rows of {values['sequence_length']:,}"
        begin = f"stage     {values['stage']} from step {values['step']:,}"
        return f"{begin}: {portion}, {counted(values['layers'], 'layer')}"
    if values["event"] == "planned":
        portion = "" if event.stage is not None else f" of {counted(event.tokens, 'token')}"
        return f"time      fits {counted(values['steps'], 'step')}{portion}"
    return None  # where the end moves to and fro with the machine's load stands in metrics.jsonl


def _tell_change(state: TrainerState) -> str | None:
    """At the end, how far a timed run was from its first plan; None for less than a quarter."""
    total, planned = state.total_steps, state.planned_steps
    if total is None or planned is None or total > (1 - _WORTH_TELLING) * planned:
        return None
    return f"time      {counted(total, 'step')}, not the {planned:,} that fitted at first: later steps were slower"
