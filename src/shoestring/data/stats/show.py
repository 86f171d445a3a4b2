"""Statistics of a corpus for people: lines and bars for a terminal, and the same histogram as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import format_bytes, format_count
from shoestring.data.quality.review import EXACT, SHORT
from shoestring.data.stats.corpus import Part, Statistics, bytes_per_token

_BLUE, _BARS, _PARTS = "#1f5fa8", 40, " ▏▎▍▌▋▊▉"


def parts_table(found: Statistics) -> Any:
    """A line for each part, and one for all where there are several."""
    parts = [*found.parts.items()]
    if len(parts) > 1:
        parts.append(("together", found.total))
    columns = ("source", "documents", "tokens", "text", "bytes per token")
    used = columns if found.unit == "tokens" else (*columns[:2], columns[3])
    rows = [[dict(zip(columns, _cells(name, part), strict=True))[column] for column in used] for name, part in parts]
    return console.table(used, rows, right=used[1:])


def _cells(name: str, part: Part) -> tuple[str, ...]:
    ratio = bytes_per_token(part)
    tokens = "" if part.tokens is None else format_count(part.tokens)
    return name, f"{part.documents:,}", tokens, format_bytes(part.bytes), "" if ratio is None else f"{ratio:.2f}"


def histogram_table(found: Statistics) -> Any:
    """Documents by length, with a bar each."""
    bins = found.lengths.bins()
    most = max((count for _, _, count in bins), default=1)
    rows = [(_span(low, high), f"{count:,}", bar(count / most)) for low, high, count in bins]
    return console.table((found.unit, "documents", ""), rows, right=(found.unit, "documents"))


def bar(share: float) -> str:
    """Of a length from 0 to 1, in eighths of a character; never empty for what is not zero."""
    eighths = max(round(share * _BARS * 8), int(share > 0))
    return "█" * (eighths // 8) + _PARTS[eighths % 8].strip()


def lines(found: Statistics) -> Iterator[str]:
    """What stands below the tables."""
    lengths, rows, left_out = found.lengths, found.rows, found.left_out
    yield (
        f"lengths     shortest {lengths.shortest or 0:,}, median {lengths.quantile(0.5):,}, mean {lengths.mean:,.0f},"
        f" 95% up to {lengths.quantile(0.95):,}, longest {lengths.longest:,} {found.unit}"
    )
    if rows is not None:
        yield (
            f"rows        of {rows.length:,} tokens: best fit leaves {rows.padding:.2%} padding and cuts"
            f" {_percent(rows.longer, rows.documents)} of the documents, which no row holds;"
            f" concatenation cuts {_percent(rows.cut, rows.documents)}"
        )
    for reason in (EXACT, SHORT):
        if reason not in left_out.counts:
            yield f"left out    no {reason}"
    for name, sentences in (("left out", left_out.sentences()), ("unread", found.unread.sentences())):
        for sentence in sentences:
            yield f"{name:<11} {sentence}"


def write_histogram(found: Statistics, file: Path, title: str) -> Path:
    """Documents by length as a PNG. Raises ConfigError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    bins = found.lengths.bins()
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(range(len(bins)), [count for _, _, count in bins], width=0.9, color=_BLUE)
    axes.set_xticks(range(len(bins)), [f"{low:,}" for low, _, _ in bins], fontsize=7)
    axes.set_xlabel(f"{found.unit} of a document, from this power of two to below the next")
    axes.set_ylabel("documents")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: format_count(count)))
    if found.rows is not None and bins:
        place = math.log2(found.rows.length) + 0.5 - bins[0][1].bit_length()
        if -0.5 < place < len(bins) - 0.5:
            axes.axvline(place, color="#c2571a", linewidth=1.2, linestyle="--")
            top = axes.get_xaxis_transform()
            axes.text(place, 0.98, f" rows of {found.rows.length:,}", transform=top, fontsize=8, va="top")
    axes.grid(axis="y", alpha=0.2)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left")
    try:
        figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"the plot cannot be written: {error.strerror or error}", str(file)) from error
    return file


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _percent(count: int, of: int) -> str:
    return f"{count / of if of else 0:.1%}"
