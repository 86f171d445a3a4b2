"""What writes the codes that a run trained its weights with: a line for the end of the run."""

from __future__ import annotations

from pathlib import Path

from shoestring.train.exact_weights import stored_format
from shoestring.train.quantize_config import QuantizeSection

MERGED, QUANTIZED = "merged", "quantized"  # in the run's folder


def quantize_command(
    section: QuantizeSection | None, out: Path, model: Path, origin: Path | None, adapter: bool = False
) -> str | None:
    """None where nothing was rounded. model: what was trained; an adapter is merged first, in float32 (`merge_flags`).
    origin: the folder that the run began from, None for a fresh model."""
    if section is None:
        return None
    return section.command(out / MERGED if adapter else model, out / QUANTIZED, stored_format(origin))


def merge_flags(command: str | None, out: Path) -> str:
    """What `merge` is told where its weights will be quantized by that command."""
    return "" if command is None else f" --dtype float32 --out {out / MERGED}"
