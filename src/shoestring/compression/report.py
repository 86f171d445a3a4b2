"""What a compression did to a model: bytes, loss on held-out text, speed of decoding, before and after. Printed, and
kept in the folder as compression.json, in one form for every verb."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.core import foreign
from shoestring.core.errors import ModelFileError
from shoestring.core.units import counted, format_bytes

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


def report_of(
    verb: str, how: str, model: str, settings: dict[str, Any], before: Measured, after: Measured, **more: Any
) -> dict[str, Any]:
    """The content of compression.json. how: what was done, in a few words. more: what only this verb has."""
    sides = {
        name: {**asdict(side), "perplexity": side.perplexity} for name, side in (("before", before), ("after", after))
    }
    return {"version": _VERSION, "verb": verb, "how": how, "model": model, "settings": settings, **sides, **more}


def change_lines(before: Measured, after: Measured, labels: int) -> list[str]:
    """Lines for a person: of what was measured on `labels` held-out tokens, and of decoding."""
    lines = []
    if before.loss is not None and after.loss is not None:
        lines.append(f"held out  {_change(before, after)}, on {counted(labels, 'token')}")
    old, new = before.decoding, after.decoding
    if old is not None and new is not None:
        lines += [
            f"decoding  {old.tokens_per_second:.1f} -> {new.tokens_per_second:.1f} tokens/s"
            f" ({new.tokens_per_second / old.tokens_per_second:.2f}x) with --weights {new.weights}",
            f"memory    {format_bytes(old.memory)} -> {format_bytes(new.memory)} of weights while decoding",
        ]
    return lines


def _change(before: Measured, after: Measured) -> str:
    pairs = [("perplexity", before.perplexity, after.perplexity, ".3f")]
    if before.bits_per_byte is not None:
        pairs.insert(0, ("bits per byte", before.bits_per_byte, after.bits_per_byte, ".4f"))
    parts = []
    for name, old, new, digits in pairs:
        if old is not None and new is not None:
            parts.append(f"{name} {old:{digits}} -> {new:{digits}} ({new / max(old, 1e-12) - 1:+.2%})")
    return ", ".join(parts)


def write_report(report: dict[str, Any], folder: Path) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False)
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
        before, after = report["before"], report["after"]
        line = f"{report['how']}: {format_bytes(before['weight_bytes'])} -> {format_bytes(after['weight_bytes'])}"
        if after["perplexity"] is not None and before["perplexity"] is not None:
            line += f", perplexity {before['perplexity']:.3f} -> {after['perplexity']:.3f}"
        if before.get("decoding") and after.get("decoding"):
            old, new = (side["decoding"]["tokens_per_second"] for side in (before, after))
            line += f", decoding {old:.1f} -> {new:.1f} tokens/s"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{REPORT} lacks what it should hold: {error}", hint=_BROKEN) from error
    return line
