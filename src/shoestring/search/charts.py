"""Pictures of a study as SVG text: points with a line, bars, parallel coordinates.

Every mark has a `<title>`, which browsers show where the pointer rests. Colour is a second signal: what was pruned or
failed has another shape, and the best has a ring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 76, 24, 16, 46
_TICKS = 5


@dataclass(frozen=True)
class Point:
    """kind: complete, pruned, failed or best. told: where the pointer rests."""

    x: float
    y: float
    told: str
    kind: str = "complete"


@dataclass(frozen=True)
class Axis:
    """name: with its unit. show: how a value of it is written."""

    name: str
    show: Callable[[float], str] = lambda value: f"{value:.4g}"
    log: bool = False
    whole: bool = False


def scatter(points: Sequence[Point], x: Axis, y: Axis, line: Sequence[tuple[float, float]] = (), name: str = "") -> str:
    """Points, and a line of steps through `line`, from left to right. Values that are no numbers are left out."""
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return "<p>nothing to draw yet</p>"
    every_x = [point.x for point in points] + [place for place, _ in line]
    every_y = [point.y for point in points] + [value for _, value in line]
    across = _scale(every_x, LEFT, WIDTH - RIGHT, x.log)
    up = _scale(every_y, HEIGHT - BOTTOM, TOP, y.log)
    parts = [*_frame(every_x, every_y, x, y, across, up)]
    if line:
        path = f"M{across(line[0][0]):.1f},{up(line[0][1]):.1f}"
        for place, value in line[1:]:
            path += f"H{across(place):.1f}V{up(value):.1f}"
        parts.append(f'<path class="line" d="{path}"/>')
    parts += [_mark(point, across(point.x), up(point.y)) for point in points]
    return _svg(parts, name or f"{y.name} over {x.name}")


def bars(rows: Sequence[tuple[str, float]], name: str) -> str:
    """A bar for each row, its length a share of the longest."""
    if not rows:
        return "<p>nothing to draw yet</p>"
    longest = max((value for _, value in rows), default=0.0) or 1.0
    start, step = 300, 26
    parts = []
    for number, (row, value) in enumerate(rows):
        top = TOP + number * step
        length = (WIDTH - RIGHT - start - 60) * value / longest
        parts.append(f'<text x="{start - 8}" y="{top + 14}" text-anchor="end">{escape(_short(row, 40))}</text>')
        parts.append(f'<rect class="bar" x="{start}" y="{top}" width="{length:.1f}" height="18"/>')
        parts.append(f'<text x="{start + length + 6:.1f}" y="{top + 14}">{value:.0%}</text>')
    return _svg(parts, name, TOP + len(rows) * step + 8)


@dataclass(frozen=True)
class Column:
    """One axis of parallel coordinates: its name, and what stands at its lower and its upper end."""

    name: str
    low: str
    high: str


def parallel(columns: Sequence[Column], rows: Sequence[tuple[Sequence[float | None], float, str]], name: str) -> str:
    """A line for each row through its place on every axis, from 0 to 1; None where it has none there.

    rows: places, how good it is from 0 to 1, and what is told of it; the best are drawn last and strongest.
    """
    if len(columns) < 2 or not rows:
        return "<p>nothing to draw yet</p>"
    height, top, bottom = 340, 40, 300
    gap = (WIDTH - 160) / (len(columns) - 1)
    parts = []
    for places, goodness, told in sorted(rows, key=lambda row: row[1]):
        pieces, drawing = [], False
        for number, place in enumerate(places):
            if place is None:
                drawing = False
                continue
            height_of = bottom - place * (bottom - top)
            pieces.append(f"{'L' if drawing else 'M'}{80 + number * gap:.1f},{height_of:.1f}")
            drawing = True
        strength = 0.12 + 0.78 * goodness**2
        parts.append(
            f'<path class="run{" top" if goodness >= 1 else ""}" style="opacity:{strength:.2f}" d="{"".join(pieces)}">'
            f"<title>{escape(told)}</title></path>"
        )
    for number, column in enumerate(columns):
        x = 80 + number * gap
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 8}" text-anchor="middle">{escape(_short(column.high, 14))}</text>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(_short(column.low, 14))}</text>'
        )
        last = column.name.rpartition(".")[2] if len(column.name) > 16 else column.name
        parts.append(
            f'<text class="name" x="{x:.1f}" y="{bottom + 34}" text-anchor="middle">{escape(_short(last, 22))}'
            f"<title>{escape(column.name)}</title></text>"
        )
    return _svg(parts, name, height)


def _mark(point: Point, x: float, y: float) -> str:
    told = f"<title>{escape(point.told)}</title>"
    if point.kind in ("pruned", "failed"):
        cross = f"M{x - 4:.1f},{y - 4:.1f}l8,8m-8,0l8,-8"
        return f'<path class="{point.kind}" d="{cross}">{told}</path>'
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>' if point.kind == "best" else ""
    return f'{ring}<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4">{told}</circle>'


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Callable[[float], float]:
    low, high = min(values), max(values)
    log = log and low > 0

    def moved(value: float) -> float:
        return math.log(value) if log else value

    room = (moved(high) - moved(low)) or abs(moved(low)) or 1.0
    low_, room = moved(low) - 0.04 * room, 1.08 * room
    return lambda value: start + (end - start) * (moved(value) - low_) / room


def _frame(
    xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis, across: Callable[[float], float],
    up: Callable[[float], float],
) -> list[str]:  # fmt: skip
    parts = []
    for value in ticks(min(xs), max(xs), x.log, x.whole):
        place = across(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" y1="{TOP}" x2="{place:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(x.show(value))}</text>'
        )
    for value in ticks(min(ys), max(ys), y.log, y.whole):
        place = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(y.show(value))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.name)}</text>')
    turned = f"rotate(-90 14 {HEIGHT / 2 - 20})"
    parts.append(
        f'<text class="name" x="14" y="{HEIGHT / 2 - 20}" text-anchor="middle" transform="{turned}">'
        f"{escape(y.name)}</text>"
    )
    return parts


def ticks(low: float, high: float, log: bool = False, whole: bool = False) -> list[float]:
    """Round numbers within the range, a few of them."""
    if log and low > 0 and high / low > 8:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [base * 10.0**exponent for exponent in exponents for base in (1, 2, 5)]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        return found[:: max(1, math.ceil(len(found) / 8))]
    if high <= low:
        return [low]
    raw = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(parts: Sequence[str], name: str, height: int = HEIGHT) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name, quote=True)}">'
    return head + "".join(parts) + "</svg>"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
