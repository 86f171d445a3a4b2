"""What a compression did to a model: sizes, losses on held-out text, errors of each matrix; printed, and kept in the
folder as compression.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.core import foreign
from shoestring.core.errors import ModelFileError
from shoestring.core.units import counted, format_bytes, format_seconds

REPORT, _VERSION = "compression.json", 1
_BROKEN = f"remove {REPORT}: it only tells what was done"


@dataclass(frozen=True)
class Decoding:
    """How fast a folder is decoded on the CPU. weights: how they are kept (`models.decoding_formats`). memory: bytes of
    all that the model holds then."""

    weights: str
    tokens_per_second: float
    memory: int


@dataclass(frozen=True)
class Measured:
    """weight_bytes: of all tensors on disk. loss: nats per token of the held-out text, None where there was none;
    bits_per_byte: None too where ids do not stand for bytes; perplexity where it is beyond numbers. decoding: None
    where it was not measured, as the float32 model does not fit."""

    weight_bytes: int
    loss: float | None
    bits_per_byte: float | None
    decoding: Decoding | None = None

    @property
    def perplexity(self) -> float | None:
        return None if self.loss is None or self.loss > 700 else math.exp(self.loss)


@dataclass(frozen=True)
class MatrixError:
    """error, nearest: squared error of what a linear gives on the calibration inputs, as a part of what it gives;
    without calibration of its weights. nearest: of rounding to nearest."""

    name: str
    error: float
    nearest: float


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns. packed_bytes: of the matrices in few bits. settings: of `QuantizeConfig`. tokens,
    examples: calibrated with. labels: tokens measured. peak_memory: of the process, in bytes."""

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

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        sides = {
            name: {**asdict(side), "perplexity": side.perplexity}
            for name, side in (("before", self.before), ("after", self.after))
        }
        return {
            "version": _VERSION,
            "verb": "quantize",
            "model": self.model,
            "settings": self.settings,
            **sides,
            "packed_bytes": self.packed_bytes,
            "calibration": {"tokens": self.tokens, "examples": self.examples},
            "held_out_tokens": self.labels,
            "matrices": [asdict(matrix) for matrix in self.matrices],
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
        }

    def __str__(self) -> str:
        before, after, bits = self.before, self.after, self.settings["bits"]
        rest = after.weight_bytes - self.packed_bytes
        lines = [
            f"model     {self.folder}",
            f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}"
            f" ({after.weight_bytes / before.weight_bytes - 1:+.0%}): {format_bytes(self.packed_bytes)} in {bits} bits,"
            f" {format_bytes(rest)} in {self.dense_dtype}",
        ]
        if before.loss is not None and after.loss is not None:
            lines.append(f"held out  {_change(before, after)}, on {counted(self.labels, 'token')}")
        old, new = before.decoding, after.decoding
        if old is not None and new is not None:
            lines += [
                f"decoding  {old.tokens_per_second:.1f} -> {new.tokens_per_second:.1f} tokens/s"
                f" ({new.tokens_per_second / old.tokens_per_second:.2f}x) with --weights {new.weights}",
                f"memory    {format_bytes(old.memory)} -> {format_bytes(new.memory)} of weights while decoding",
            ]
        kept = sum(matrix.error for matrix in self.matrices) / max(len(self.matrices), 1)
        plain = sum(matrix.nearest for matrix in self.matrices) / max(len(self.matrices), 1)
        of = "outputs" if self.tokens else "weights"
        nearest = f", {plain:.3%} rounded to nearest" if self.tokens else ""
        lines += [
            f"error     {kept:.3%} of the {of} of a matrix, squared{nearest}",
            f"took      {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}",
        ]
        if self.dense_dtype == "float32" and rest > self.packed_bytes:
            lines.append("smaller   --dtype bfloat16 makes what is not quantized half as large")
        return "\n".join([*lines, f"chat      shoestring chat {self.folder}"])


def _change(before: Measured, after: Measured) -> str:
    pairs = [("perplexity", before.perplexity, after.perplexity, ".3f")]
    if before.bits_per_byte is not None:
        pairs.insert(0, ("bits per byte", before.bits_per_byte, after.bits_per_byte, ".4f"))
    parts = []
    for name, old, new, digits in pairs:
        if old is not None and new is not None:
            parts.append(f"{name} {old:{digits}} -> {new:{digits}} ({new / max(old, 1e-12) - 1:+.2%})")
    return ", ".join(parts)


def write_report(result: Quantized, folder: Path) -> None:
    text = json.dumps(result.report(), indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any] | None:
    """compression.json of a model folder; None where there is none. Raises ModelFileError for one that is broken."""
    file = folder / REPORT
    if not file.is_file():
        return None
    try:
        content = foreign.read_json(file)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot be read: {error}", str(file), _BROKEN) from error
    if not isinstance(content, dict):
        raise ModelFileError("not a JSON object", str(file), _BROKEN)
    return content


def summary(report: dict[str, Any]) -> str:
    """One line of a report. Raises ModelFileError where it lacks what it should hold."""
    try:
        settings, before, after = report["settings"], report["before"], report["after"]
        group = f"groups of {int(settings['group'])}" if settings["group"] else "whole rows"
        line = (
            f"{report['verb']} to {int(settings['bits'])} bits in {group}, {settings['method']}:"
            f" {format_bytes(before['weight_bytes'])} -> {format_bytes(after['weight_bytes'])}"
        )
        if after["perplexity"] is not None and before["perplexity"] is not None:
            line += f", perplexity {before['perplexity']:.3f} -> {after['perplexity']:.3f}"
        if before.get("decoding") and after.get("decoding"):
            old, new = (side["decoding"]["tokens_per_second"] for side in (before, after))
            line += f", decoding {old:.1f} -> {new:.1f} tokens/s"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{REPORT} lacks what it should hold: {error}", hint=_BROKEN) from error
    return line
