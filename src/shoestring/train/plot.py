"""Pictures of a run from its metrics.jsonl: loss.png, and a small plot of characters for the terminal.

Training loss is drawn in nats per token with a running mean, held-out text in bits per byte on its own
axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.train.metrics import read_metrics

Curve = tuple[list[float], list[float]]


def curves(lines: Sequence[dict[str, Any]]) -> tuple[Curve, Curve]:
    """((tokens, loss) of training, (tokens, bits per byte) of held-out text)."""
    training = [(line["tokens"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["tokens"], line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    return _columns(training), _columns(held_out)


def write_plot(metrics: Path, file: Path, title: str = "") -> Path:
    """Draw metrics.jsonl as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (tokens, loss), (held_out_tokens, bits) = curves(read_metrics(metrics))
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens, loss, color="#9ab8d8", linewidth=0.8)
    axes.plot(
        tokens, running_mean(loss), color="#1f5fa8", linewidth=1.6, label="training loss (nats per token)"
    )
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    if bits:
        right = axes.twinx()
        right.plot(
            held_out_tokens,
            bits,
            color="#c2571a",
            marker="o",
            markersize=3,
            linewidth=1.2,
            label="held-out (bits per byte)",
        )
        right.set_ylabel("bits per byte")
        more, names = right.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    axes.legend(handles, labels, loc="upper right")
    axes.set_title(title)
    figure.savefig(file, dpi=120)
    return file


def running_mean(values: Sequence[float], share: float = 0.03) -> list[float]:
    """The mean of the last `share` of the values, at least one."""
    width = max(1, round(len(values) * share))
    smooth, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        smooth.append(total / min(i + 1, width))
    return smooth


def text_plot(values: Sequence[float], width: int = 60, height: int = 8, name: str = "loss") -> str:
    """The values from left to right as rows of characters, the largest on top, with the scale at the left."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = min(means), max(means)
    rows = [[" "] * columns for _ in range(height)]
    for x, mean in enumerate(means):
        level = 0 if high == low else round((mean - low) / (high - low) * (height - 1))
        rows[height - 1 - level][x] = "*"
    scale = [""] * height
    scale[0], scale[-1] = f"{high:.2f}", f"{low:.2f}"
    margin = max(len(text) for text in scale)
    lines = [f"{text:>{margin}} |{''.join(row).rstrip()}" for text, row in zip(scale, rows, strict=True)]
    return "\n".join([*lines, f"{'':>{margin}} +{'-' * columns} {name}"])


def _columns(points: list[tuple[float, float]]) -> Curve:
    return [x for x, _ in points], [y for _, y in points]
