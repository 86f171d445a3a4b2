"""What `compress` returns and prints: the table of candidates that it went through, and what was taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.compress.choice import Figures
from shoestring.compression.report import Decoding, Measured, change_lines, report_of
from shoestring.core.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Row:
    """A candidate. predicted: bytes of its weights. quality: as `choice` has it. figures: None where it was not tried.
    said: what became of it, in a few words."""

    key: str
    name: str
    predicted: int
    steps: tuple[tuple[str, dict[str, Any]], ...]
    figures: Figures | None
    quality: float | None
    said: str


@dataclass(frozen=True)
class Compressed:
    """What `compress` returns. chosen: of `rows`. labels: tokens of held-out text. settings: of `CompressConfig`."""

    folder: Path
    model: str
    settings: dict[str, Any]
    before: Figures
    chosen: Row
    rows: tuple[Row, ...]
    labels: int
    seconds: float
    peak_memory: int

    @property
    def after(self) -> Figures:
        assert self.chosen.figures is not None
        return self.chosen.figures

    @property
    def quality(self) -> float:
        """The share that is left of the model's."""
        assert self.chosen.quality is not None
        return self.chosen.quality

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        return report_of(
            "compress", f"compress: {self.chosen.name}", self.model, self.settings, *self._sides(),
            quality=self.quality, suite={"before": self.before.suite, "after": self.after.suite},
            chosen=self.chosen.key, candidates=[asdict(row) for row in self.rows], held_out_tokens=self.labels,
            seconds=self.seconds, peak_memory=self.peak_memory,
        )  # fmt: skip

    def _sides(self) -> tuple[Measured, Measured]:
        decoding = self.after.decoding or {"before": None, "after": None}
        return _measured(self.before, decoding["before"]), _measured(self.after, decoding["after"])

    def __str__(self) -> str:
        before, after = self._sides()
        lines = [
            *table(self.before, self.rows),
            "",
            f"model     {self.folder}: {self.chosen.name}",
            f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}"
            f" ({after.weight_bytes / before.weight_bytes - 1:+.0%})",
            f"quality   {self.quality:.1%} kept",
            *change_lines(before, after, self.labels),
        ]
        if self.before.suite is not None and self.after.suite is not None:
            lines.append(f"suite     {self.before.suite:.1%} -> {self.after.suite:.1%} right")
        lines += [
            f"took      {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}",
            f"chat      shoestring chat {self.folder}",
        ]
        return "\n".join(lines)


def _measured(figures: Figures, decoding: dict[str, Any] | None) -> Measured:
    speed = None if decoding is None else Decoding(**decoding)
    return Measured(figures.bytes, figures.loss, figures.bits_per_byte, speed)


def table(before: Figures, rows: tuple[Row, ...]) -> list[str]:
    """Of the candidates that were tried, in their order, under the model as it is; and a line of how many were not."""
    suite = before.suite is not None
    columns = ["", "weights", "perplexity", "kept", *(["suite"] if suite else []), "took", ""]
    cells = [_cells("as it is", before, None, "", suite)]
    cells += [_cells(row.name, row.figures, row.quality, row.said, suite) for row in rows if row.figures is not None]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    last = len(columns) - 1
    lines = [
        "  ".join(
            f"{cell:<{width}}" if number in (0, last) else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (columns, *cells)
    ]
    reasons: dict[str, int] = {}
    for row in rows:
        if row.figures is None:
            reason = row.said.partition(":")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        lines.append("not tried " + ", ".join(f"{count} ({reason})" for reason, count in reasons.items()))
    return lines


def _cells(name: str, found: Figures | None, quality: float | None, said: str, suite: bool) -> list[str]:
    assert found is not None
    asked = [] if not suite else ["" if found.suite is None else f"{found.suite:.1%}"]
    if found.failed is not None:
        return [name, "", "", "", *([""] if suite else []), format_seconds(found.seconds), said]
    kept = "" if quality is None else f"{quality:.1%}"
    took = "" if quality is None else format_seconds(found.seconds)
    return [name, format_bytes(found.bytes), f"{found.perplexity:.3f}", kept, *asked, took, said]
