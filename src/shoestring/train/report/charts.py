"""Which figures of runs become which chart, as plain values for the page's script; figures that nobody named get one
each, so that whatever a job measures is seen."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shoestring.train.metrics_file import is_number
from shoestring.train.report.read import RunFigures
from shoestring.train.report.series import thinned

Style = Literal["noisy", "line", "dots", "dashed"]
Unit = Literal["number", "bytes", "share"]


@dataclass(frozen=True)
class Chart:
    """series: (name in metrics.jsonl, what it is called, how it is drawn, in which colour where there is one run).

    from_zero: whether the axis begins there. log: whether its axis may be logarithmic. predicted: levels of the plan:
    (name in a session's prediction, called, colour).
    """

    title: str
    series: tuple[tuple[str, str, Style, int], ...]
    axis: str = ""
    unit: Unit = "number"
    from_zero: bool = False
    log: bool = False
    predicted: tuple[tuple[str, str, int], ...] = ()


CHARTS = (
    Chart(
        "Loss",
        (
            ("loss", "training", "noisy", 0),
            ("sample_held_out_loss", "held out, a sample", "dots", 1),
            ("held_out_loss", "held out, all", "dots", 2),
        ),
        "nats per token", log=True,
    ),
    Chart(
        "Bits per byte",
        (("sample_bits_per_byte", "held out, a sample", "dots", 1), ("bits_per_byte", "held out, all", "dots", 2)),
        "bits per byte of text", log=True,
    ),
    Chart("Speed", (("tokens_per_second", "tokens per second", "noisy", 0),), "tokens per second", from_zero=True),
    Chart(
        "Memory",
        (("memory", "measured", "line", 0), ("tensors", "in tensors", "line", 1)),
        "bytes", "bytes", from_zero=True, 
        predicted=(("memory", "predicted", 0), ("tensors", "predicted, in tensors", 1)),
    ),
    Chart("Learning rate", (("lr", "learning rate", "line", 0),), "of the matrices or of all", from_zero=True),
    Chart("Gradient norm", (("grad_norm", "before clipping", "noisy", 0),), "of all gradients", log=True),
    Chart(
        "Share of the matrix peak", (("share_of_peak", "share of the peak", "noisy", 0),), "share", "share",
        from_zero=True,
    ),
)  # fmt: skip
_MARKED = ("stage", "rolled_back", "not_written", "stopped_early", "extended")
_MOST_MARKS = 60


def charts_of(runs: Sequence[RunFigures]) -> list[dict[str, Any]]:
    """Those that there is something to draw in; a curve for each run that has the figure."""
    named = {name for chart in CHARTS for name, *_ in chart.series}
    others = sorted({name for run in runs for name in run.columns} - named)
    every = [*CHARTS, *(Chart(name.replace("_", " "), ((name, name, "noisy", 0),), log=True) for name in others)]
    found = []
    for chart in every:
        curves = [
            {"run": number, "name": called, "style": style, "colour": colour, **thinned(run.columns[name])}
            for name, called, style, colour in chart.series
            for number, run in enumerate(runs)
            if name in run.columns
        ]
        if not curves:
            continue
        levels = [
            {"run": number, "name": called, "value": level, "colour": colour}
            for name, called, colour in chart.predicted
            for number, run in enumerate(runs)
            if (level := run.predicted(name)) is not None
        ]
        found.append(
            {
                "title": chart.title, "axis": chart.axis, "unit": chart.unit, "zero": chart.from_zero,
                "log": chart.log, "curves": curves, "levels": levels,
            }
        )  # fmt: skip
    return found


def marks_of(number: int, run: RunFigures) -> list[dict[str, Any]]:
    """Where something happened that a curve may show: stages, what went wrong, sessions that went on."""
    found = [
        {"run": number, "what": str(event["event"]).replace("_", " "), **_place(event)}
        for event in run.events
        if event["event"] in _MARKED
    ]
    longest = max(run.columns.values(), key=lambda column: len(column.step), default=None)
    for began, _ in run.sessions[1:]:
        step = int(began["step"]) if is_number(began.get("step")) else 0
        if longest is not None and 0 < step <= longest.step[-1]:
            at = bisect.bisect_left(longest.step, step)
            place = {"step": step, "tokens": longest.tokens[at], "seconds": longest.seconds[at]}
            found.append({"run": number, "what": "resumed", **_place(place)})
    return sorted(found, key=lambda mark: mark["step"])[:_MOST_MARKS]


def _place(event: dict[str, Any]) -> dict[str, Any]:
    return {"step": event["step"], "tokens": event["tokens"], "seconds": round(event["seconds"], 1)}
