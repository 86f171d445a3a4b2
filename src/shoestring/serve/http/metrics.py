"""Figures of the server in Prometheus' text form (prometheus.io/docs/instrumenting/exposition_formats).

Counters only grow; whoever reads them takes differences. They are added to on the event loop alone, but for those of
decoding, which belong to the schedulers and are only read here.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shoestring.core.machine import rss_bytes

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_PREFIX = "shoestring_"
_Values = dict[tuple[tuple[str, Any], ...], float]  # labels -> value


class Histogram:
    """Seconds, counted by the smallest bound that they do not exceed."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """refused: requests for which there was no room. left: clients that went away before their answer's end."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.first_token, self.duration = Histogram(), Histogram()
        self.refused = self.left = 0

    def text(self, lanes: Mapping[str, Any], pending: Mapping[str, int]) -> str:
        """The whole page. lanes: by the model's name. pending: texts of each that run or wait."""
        running = {name: len(lane.scheduler.running) for name, lane in lanes.items()}
        waiting = {name: max(pending[name] - running[name], 0) for name in lanes}
        speeds = {name: lane.speed for name, lane in lanes.items()}
        asked: _Values = {
            (("path", path), ("status", status)): count for (path, status), count in sorted(self.requests.items())
        }
        groups: list[tuple[str, str, str, _Values]] = [
            ("requests_total", "counter", "requests answered", asked),
            ("refused_total", "counter", "requests for which there was no room", {(): self.refused}),
            ("clients_left_total", "counter", "clients that left before the end", {(): self.left}),
            ("texts_running", "gauge", "texts that have a slot", _by_model(running)),
            ("texts_waiting", "gauge", "texts that wait for one", _by_model(waiting)),
            ("slots", "gauge", "texts at once", _by_model({name: lane.slots for name, lane in lanes.items()})),
            ("prompt_tokens_total", "counter", "tokens of prompts that were read",
             _by_model({name: speed.prompt_tokens for name, speed in speeds.items()})),
            ("generated_tokens_total", "counter", "tokens that were written behind the first of each text",
             _by_model({name: speed.new_tokens for name, speed in speeds.items()})),
            ("prompt_seconds_total", "counter", "seconds of reading prompts",
             _by_model({name: round(speed.prompt_seconds, 6) for name, speed in speeds.items()})),
            ("generation_seconds_total", "counter", "seconds of writing",
             _by_model({name: round(speed.new_seconds, 6) for name, speed in speeds.items()})),
            ("guessed_tokens_total", "counter", "tokens that were guessed ahead",
             _by_model({name: speed.guessed for name, speed in speeds.items()})),
            ("guessed_right_total", "counter", "guesses that were right",
             _by_model({name: speed.right for name, speed in speeds.items()})),
            ("resident_bytes", "gauge", "memory of the process", {(): rss_bytes()}),
        ]  # fmt: skip
        lines: list[str] = []
        for name, kind, help, values in groups:
            lines += [f"# HELP {_PREFIX}{name} {help}", f"# TYPE {_PREFIX}{name} {kind}"]
            lines += [f"{_PREFIX}{name}{_labels(labels)} {value}" for labels, value in values.items()]
        for name, help, histogram in (
            ("first_token_seconds", "from a request's admission to its first token", self.first_token),
            ("request_seconds", "from a request's first byte to its answer's last", self.duration),
        ):
            lines += [f"# HELP {_PREFIX}{name} {help}", f"# TYPE {_PREFIX}{name} histogram"]
            lines += histogram.lines(_PREFIX + name)
        return "\n".join(lines) + "\n"


def _by_model(values: Mapping[str, float]) -> _Values:
    return {(("model", name),): value for name, value in values.items()}


def _labels(labels: tuple[tuple[str, Any], ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
