"""How every machine spends its time, told on the first one now and then: at work, waiting, on the network."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shoestring.core import console
from shoestring.core.units import format_bytes
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent

EVERY = 15.0  # seconds


class Shares(Callback):
    """Comes behind `offload.pipeline.times.MachineTimes`, which gathers the seconds; each other machine tells its own.

    names: of the machines by rank.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._last = time.monotonic()
        self._sums: dict[int, list[float]] = {}
        self._layers: dict[int, tuple[int, int]] = {}

    def after_step(self, event: StepEvent) -> None:
        if parallel.rank() != 0:
            return
        for line in event.lines:
            if "machine" in line:
                rank = line["machine"]
                self._layers[rank] = tuple(line["layers"])
                now = [line["work"], line["waiting"], line["network"], float(line["sent"])]
                before = self._sums.get(rank, [0.0] * len(now))
                self._sums[rank] = [a + b for a, b in zip(before, now, strict=True)]
        if self._sums and (event.last or time.monotonic() - self._last >= EVERY):
            for text in self.lines():
                console.say(text)
            self._last, self._sums = time.monotonic(), {}

    def lines(self) -> list[str]:
        """Such as: anna      layers 12 to 23: works 71%, waits 20%, network 9%, 1.2 MB sent."""
        found = []
        for rank, (work, waiting, network, sent) in sorted(self._sums.items()):
            whole, (first, end) = max(work + waiting + network, 1e-9), self._layers[rank]
            found.append(
                f"{self.names[rank]:<9} layers {first} to {end - 1}: works {work / whole:.0%},"
                f" waits {waiting / whole:.0%}, network {network / whole:.0%}, {format_bytes(sent)} sent"
            )
        return found
