"""What `factorize` returns and prints: parameters, bytes, losses on held-out text, rank and error of each matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.report import Measured, change_lines, report_of
from shoestring.core.units import format_bytes, format_count, format_seconds


@dataclass(frozen=True)
class MatrixRank:
    """full: the largest rank it could have. error, plain: squared error of what it gives on the calibration inputs, as
    a part of what it gives; without calibration of its weights. plain: of an SVD of the weights alone."""

    name: str
    rank: int
    full: int
    error: float
    plain: float


@dataclass(frozen=True)
class Factorized:
    """What `factorize` returns. parameters: before and after, of the factors also where their products are written.
    matrices: those that became factors. tokens, examples: calibrated with. labels: tokens measured. peak_memory: of the
    process, in bytes."""

    folder: Path
    model: str
    settings: dict[str, Any]
    before: Measured
    after: Measured
    parameters: tuple[int, int]
    tokens: int
    examples: int
    labels: int
    matrices: tuple[MatrixRank, ...]
    seconds: float
    peak_memory: int

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        settings = self.settings
        size = f"rank {settings['rank']}" if settings["rank"] else f"{settings['parameters']} parameters"
        how = f"factorize to {size}{', multiplied out' if settings['dense'] else ''}"
        return report_of(
            "factorize", how, self.model, settings, self.before, self.after,
            parameters={"before": self.parameters[0], "after": self.parameters[1]},
            calibration={"tokens": self.tokens, "examples": self.examples}, held_out_tokens=self.labels,
            matrices=[asdict(matrix) for matrix in self.matrices], seconds=self.seconds, peak_memory=self.peak_memory,
        )  # fmt: skip

    def __str__(self) -> str:
        before, after, (old, new) = self.before, self.after, self.parameters
        lines = [
            f"model     {self.folder}",
            f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}"
            f" ({after.weight_bytes / before.weight_bytes - 1:+.0%})",
            f"size      {format_count(old)} -> {format_count(new)} parameters ({new / old - 1:+.0%})"
            + (", multiplied out again" if self.settings["dense"] else ""),
            f"ranks     {self._ranks()}",
        ]
        lines += change_lines(before, after, self.labels)
        count = max(len(self.matrices), 1)
        error, plain = (sum(getattr(matrix, name) for matrix in self.matrices) / count for name in ("error", "plain"))
        of = "outputs" if self.tokens else "weights"
        beside = f", {plain:.3%} by an SVD of the weights" if self.tokens else ""
        lines += [
            f"error     {error:.3%} of the {of} of a matrix, squared{beside}",
            f"took      {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}",
            f"chat      shoestring chat {self.folder}",
        ]
        if not self.settings["dense"]:
            lines.append(f"others    shoestring merge {self.folder} multiplies it out for tools that read no factors")
        return "\n".join(lines)

    def _ranks(self) -> str:
        ranks = sorted(matrix.rank for matrix in self.matrices)
        return f"{ranks[0]:,} to {ranks[-1]:,}, of {len(ranks):,} matrices"
