"""What `quantize` returns and prints: sizes, losses on held-out text, errors of each matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.quantize.config import WIDE, told
from shoestring.compression.report import Measured, change_lines, report_of
from shoestring.core.units import format_bytes, format_seconds
from shoestring.plan.receipt import Receipt, shown_seconds


@dataclass(frozen=True)
class MatrixError:
    """error, nearest: squared error of what a linear gives on the calibration inputs, as a part of what it gives;
    without calibration of its weights. nearest: of rounding to nearest. Where the dense model is followed, beside the
    weights that follow it."""

    name: str
    error: float
    nearest: float


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns. packed_bytes: of the matrices in few bits. settings: of `QuantizeConfig`. tokens,
    examples: calibrated with. labels: tokens measured. peak_memory: of the process, in bytes; receipt: beside
    what was predicted for that, and for the seconds of a block."""

    folder: Path
    model: str
    settings: dict[str, Any]
    before: Measured
    after: Measured
    packed_bytes: int
    dense_dtype: str
    tokens: int
    examples: int
    labels: int
    matrices: tuple[MatrixError, ...]
    seconds: float
    peak_memory: int
    receipt: Receipt | None = None

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        settings = self.settings
        bits = told(settings["bits"], settings["group"], settings["wide"], settings["embedding"])
        return report_of(
            "quantize", f"quantize to {bits}, {settings['method']}", self.model, settings,
            self.before, self.after, packed_bytes=self.packed_bytes,
            calibration={"tokens": self.tokens, "examples": self.examples}, held_out_tokens=self.labels,
            matrices=[asdict(matrix) for matrix in self.matrices], seconds=self.seconds, peak_memory=self.peak_memory,
            receipt=None if self.receipt is None else self.receipt.to_json(),
        )  # fmt: skip

    def __str__(self) -> str:
        before, after, bits = self.before, self.after, str(self.settings["bits"])
        if self.settings["wide"] or (self.settings["embedding"] and self.settings["bits"] != WIDE):
            bits += f" and {WIDE}"
        rest = after.weight_bytes - self.packed_bytes
        lines = [
            f"model     {self.folder}",
            f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}"
            f" ({after.weight_bytes / before.weight_bytes - 1:+.0%}): {format_bytes(self.packed_bytes)} in {bits} bits,"
            f" {format_bytes(rest)} in {self.dense_dtype}",
        ]
        lines += change_lines(before, after, self.labels)
        kept = sum(matrix.error for matrix in self.matrices) / max(len(self.matrices), 1)
        plain = sum(matrix.nearest for matrix in self.matrices) / max(len(self.matrices), 1)
        of = "outputs" if self.tokens else "weights"
        nearest = f", {plain:.3%} rounded to nearest" if self.tokens else ""
        lines += [
            f"error     {kept:.3%} of the {of} of a matrix, squared{nearest}",
            f"took      {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}" + self._predicted(),
        ]
        if self.dense_dtype == "float32" and rest > self.packed_bytes:
            lines.append("smaller   --dtype bfloat16 makes what is not quantized half as large")
        return "\n".join([*lines, f"chat      shoestring chat {self.folder}"])

    def _predicted(self) -> str:
        found = self.receipt
        if found is None or found.told_memory is None or found.told_seconds is None:
            return ""
        measured = "" if found.measured_seconds is None else f"{shown_seconds(found.measured_seconds)} a block, "
        return (
            f" ({format_bytes(found.told_memory)} predicted) · {measured}{shown_seconds(found.told_seconds)} predicted"
        )
