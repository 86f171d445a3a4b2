"""What `merge` returns and prints: the folder, and what is lost where matrices are rounded again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.merge.fold import MergedMatrix
from shoestring.compression.report import Measured, change_lines, report_of
from shoestring.core.units import format_bytes

WHOLE = "whole matrices"


@dataclass(frozen=True)
class Merged:
    """What `merge` returns. kept: how the merged matrices are. before: base and adapter, side by side. labels: tokens
    measured. matrices: those that were rounded again."""

    folder: Path
    adapter: str
    kept: str
    settings: dict[str, Any]
    before: Measured
    after: Measured
    labels: int
    matrices: tuple[MergedMatrix, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.report(), "model": str(self.folder), "adapter": self.adapter}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        return report_of(
            "merge", f"merge an adapter, {self.kept}", self.adapter, self.settings, self.before, self.after,
            held_out_tokens=self.labels, matrices=[asdict(matrix) for matrix in self.matrices],
        )  # fmt: skip

    def __str__(self) -> str:
        before, after = self.before, self.after
        lines = [
            f"model     {self.folder}",
            f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}: {self.kept}",
            *change_lines(before, after, self.labels),
        ]
        if self.matrices:
            count = len(self.matrices)
            error = sum(matrix.error for matrix in self.matrices) / count
            update = sum(matrix.of_update for matrix in self.matrices) / count
            lines.append(
                f"error     {error:.3%} of a merged matrix, squared, {update:.1%} of what the adapter changes in it"
            )
            if before.loss is None:
                lines.append("measure   --calibrate SOURCE says what that costs on text")
            lines.append("exact     --dense keeps whole matrices, and nothing is rounded to few bits")
        return "\n".join([*lines, f"chat      shoestring chat {self.folder}"])
