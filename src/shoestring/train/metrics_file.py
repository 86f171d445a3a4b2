"""metrics.jsonl: one JSON object a line, each with its `step`. Written so that a full disk loses no line; read again.

What cannot be written waits in memory, and goes out with the next line that can. Lines after the checkpoint that a run
resumes from are cut off, so no step appears twice. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core.files import atomic_write
from shoestring.core.foreign import parse_json

NAME = "metrics.jsonl"  # in a run's folder


class MetricsFile:
    """Appends to the file. failed: why its end is not on the disk yet, "" where it is."""

    def __init__(self, path: Path):
        self.path = path
        self.failed = ""
        self._file = open(path, "ab", buffering=0)  # so that what is written is known to the byte
        self._waiting = b""

    @property
    def lines_waiting(self) -> int:
        return self._waiting.count(b"\n")

    def write(self, values: dict[str, Any]) -> None:
        self._waiting += json.dumps(values).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
            self.failed = ""
        except OSError as error:
            self.failed = error.strerror or type(error).__name__


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut by a kill is left out, and so are losses without a number.

    A loss that was none, or a line that someone else wrote, must not end a run at its plot.
    """
    lines = list(metrics_lines(file))
    for line in lines:
        for name, needed in _TOGETHER.items():
            if not all(is_number(line.get(key)) for key in (name, *needed)):
                line.pop(name, None)
    return lines


# A loss, and what is drawn together with it.
_TOGETHER = {"loss": ("tokens",), "held_out_loss": ("tokens", "held_out_tokens", "bits_per_byte")}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e18  # neither NaN nor infinite


def metrics_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects with a step in a file, one after another; what is none is passed over."""
    if not file.is_file():
        return
    with open(file, encoding="utf-8", errors="replace") as opened:
        for line in opened:
            try:
                values = parse_json(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


# Of processes, not of the weights: that they were lost stays true when the run goes on from before.
LASTING = ("lost_rank", "hung_rank")


def truncate_metrics(file: Path, step: int) -> None:
    """Cut off what was written after `step`, the one to resume from, but for what happened to processes."""
    if file.is_file():
        lines = metrics_lines(file)
        kept = [values for values in lines if values["step"] <= step or values.get("event") in LASTING]
        with atomic_write(file) as opened:
            opened.writelines(json.dumps(values) + "\n" for values in kept)


def as_curves(values: dict[str, Any]) -> dict[str, Any]:
    """A line with a name for each curve: a sample's loss does not go on in the whole text's."""
    if values.get("held_out_set") != "sample":
        return values
    return {f"sample_{name}" if name in ("held_out_loss", "bits_per_byte") else name: v for name, v in values.items()}
