"""Many values brought down to as many as a picture shows, without hiding what stood out: mean, lowest and highest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoestring.train.report.read import Column

MOST = 500  # points of a curve


def thinned(column: Column, most: int = MOST) -> dict[str, Any]:
    """-> step, tokens, seconds and mean of each bucket; low and high beside, where a bucket holds several values.

    A bucket stands where its last value does, so that the curve ends where the run does.
    """
    count = len(column.values)
    buckets = min(most, count)
    edges = [round(n * count / buckets) for n in range(buckets + 1)] if buckets else [0]
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    parts = [column.values[a:b] for a, b in spans]
    found: dict[str, Any] = {
        "step": [int(column.step[b - 1]) for _, b in spans],
        "tokens": [int(column.tokens[b - 1]) for _, b in spans],
        "seconds": [round(column.seconds[b - 1], 1) for _, b in spans],
        "mean": _short(sum(part) / len(part) for part in parts),
    }
    if buckets < count:
        found |= {"low": _short(map(min, parts)), "high": _short(map(max, parts))}
    return found


def median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _short(values: Any) -> list[float]:
    """Six digits: more than a screen has, and half the size."""
    return [float(f"{value:.6g}") for value in values]
