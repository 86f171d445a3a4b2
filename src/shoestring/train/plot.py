"""Pictures of a run from its metrics.jsonl: loss.png, and a small plot of characters for the terminal.

Training and held-out loss share one axis, in nats per token, so that they can be compared; the axis at the
right is the same scale in bits per byte of held-out text, and `xz -9e` is a line on it. A sample of the held-out text
and all of it are two curves with two names: other text has another loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.core.units import format_count
from shoestring.train.metrics_file import read_metrics

_TRAINING, _HELD_OUT, _WHOLE, _XZ = "#1f5fa8", "#c2571a", "#7a2048", "#5a5a5a"


def column(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The values of `name` in those lines of metrics.jsonl that have it."""
    return [line[name] for line in lines if name in line]


def write_plot(metrics: Path, file: Path, title: str = "", xz_bits_per_byte: float | None = None) -> Path:
    """Draw metrics.jsonl as a PNG. xz_bits_per_byte: of the held-out text, drawn as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    lines = read_metrics(metrics)
    training, held_out = ([line for line in lines if name in line] for name in ("loss", "held_out_loss"))
    tokens, loss = column(training, "tokens"), column(training, "loss")
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens, loss, color=_TRAINING, linewidth=0.8, alpha=0.35)
    point = "o" if len(loss) == 1 else None  # a line through one point is not seen
    axes.plot(tokens, running_mean(loss), color=_TRAINING, linewidth=1.8, label="training", marker=point, markersize=4)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: format_count(count)))
    for change in stage_changes(lines):
        axes.axvline(change["tokens"], color=_XZ, linewidth=0.8, linestyle=":")
        top = axes.get_xaxis_transform()
        axes.text(change["tokens"], 0.98, f" {stage_name(change)}", transform=top, fontsize=7, color=_XZ, va="top")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.2)
    axes.spines["top"].set_visible(False)
    if held_out:
        last = held_out[-1]
        for part, colour, marker in zip(curves(held_out), (_HELD_OUT, _WHOLE), "oD", strict=True):
            if part:
                axes.plot(
                    column(part, "tokens"), column(part, "held_out_loss"),
                    color=colour, marker=marker, markersize=5, linewidth=1.2, label=_named(part[-1]),
                )  # fmt: skip
        _bits_per_byte_axis(axes, last["bits_per_byte"] / (last["held_out_loss"] or math.inf), xz_bits_per_byte)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)  # no line crosses it there
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=120)
    return file


def stage_changes(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that tell of a new stage, whole ones."""
    needed = ("tokens", "batch_tokens", "sequence_length", "layers")
    found = [line for line in lines if line.get("event") == "stage"]
    return [line for line in found if all(type(line.get(name)) is int and line[name] < 1e18 for name in needed)]


def stage_name(change: dict[str, Any]) -> str:
    """Such as: 8.2k tokens, rows of 512, 12 layers."""
    batch, length = format_count(change["batch_tokens"]), change["sequence_length"]
    return f"{batch} tokens, rows of {length}, {change['layers']} layers"


def curves(held_out: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines with a held-out loss that are of a sample, and those of all held-out text."""
    samples = [line for line in held_out if line.get("held_out_set") == "sample"]
    return samples, [line for line in held_out if line.get("held_out_set") != "sample"]


def _named(line: dict[str, Any]) -> str:
    part = "a sample" if line.get("held_out_set") == "sample" else "all"
    tokens, bits = format_count(line["held_out_tokens"]), line["bits_per_byte"]
    return f"held out, {part} of {tokens} tokens: {bits:.2f} bits per byte"


def _bits_per_byte_axis(axes: Any, bits_per_nat: float, xz_bits_per_byte: float | None) -> None:
    """bits_per_nat: bits per byte for each nat per token, which depends on the tokenizer and the text alone."""
    if not math.isfinite(bits_per_nat) or bits_per_nat <= 0:
        return
    if xz_bits_per_byte is not None:
        height = xz_bits_per_byte / bits_per_nat
        label = f"xz -9e, {xz_bits_per_byte:.2f} bits per byte"
        axes.axhline(height, color=_XZ, linewidth=1.2, linestyle="--", label=label)
    scales = (lambda nats: nats * bits_per_nat), (lambda bits: bits / bits_per_nat)
    axes.secondary_yaxis("right", functions=scales).set_ylabel("held-out loss in bits per byte")


def running_mean(values: Sequence[float], share: float = 0.03) -> list[float]:
    """The mean of the last `share` of the values, at least one."""
    width = max(1, round(len(values) * share))
    smooth, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        smooth.append(total / min(i + 1, width))
    return smooth


def text_plot(values: Sequence[float], width: int = 60, height: int = 8, name: str = "loss") -> str:
    """The values from left to right as rows of characters, the largest on top, with the scale at the left.

    A column is the mean of the values that fall into it; name: what the axis below says.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = min(means), max(means)
    height = height if high > low else 1
    step = (high - low) / max(height - 1, 1)
    rows = [[" "] * columns for _ in range(height)]
    for x, mean in enumerate(means):
        level = round((mean - low) / step) if step else 0
        rows[height - 1 - level][x] = "•"
    scale = [f"{high - row * step:.2f}" if row % 3 == 0 or row == height - 1 else "" for row in range(height)]
    margin = max(len(text) for text in scale)
    lines = [
        f"{text:>{margin}} {'┤' if text else '│'}{''.join(row).rstrip()}" for text, row in zip(scale, rows, strict=True)
    ]
    return "\n".join([*lines, f"{'':>{margin}} └{'─' * columns} {name}"])
