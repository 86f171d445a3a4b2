"""What `prune` returns and prints: sizes, losses on held-out text, what went in each block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.report import Measured, change_lines, report_of
from shoestring.core.units import counted, format_bytes, format_seconds


@dataclass(frozen=True)
class Pruned:
    """What `prune` returns. what: was done, in a few words. settings: of `PruneConfig`. zeros: of the weights in the
    blocks' matrices how many are zero, and how many there are. rounds: of each, what was kept and what was lost.
    recovered: steps, tokens and seconds of training behind each. tokens, examples: chosen by. labels: tokens measured.
    peak_memory: of the process, in bytes."""

    folder: Path
    model: str
    settings: dict[str, Any]
    what: str
    before: Measured
    after: Measured
    parameters_before: int
    parameters_predicted: int
    parameters: int
    zeros: tuple[int, int]
    rounds: tuple[dict[str, Any], ...]
    recovered: tuple[dict[str, Any], ...]
    tokens: int
    examples: int
    labels: int
    seconds: float
    peak_memory: int

    @property
    def sparsity(self) -> float:
        """The part of the weights in the blocks' matrices that is zero."""
        return self.zeros[0] / max(self.zeros[1], 1)

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.report()}

    def report(self) -> dict[str, Any]:
        """The content of compression.json."""
        how = f"prune {self.what}"
        if len(self.rounds) > 1:
            how += f", in {len(self.rounds)} rounds"
        if self.recovered:
            how += f", recovered in {counted(sum(run['steps'] for run in self.recovered), 'step')}"
        parameters = {
            "before": self.parameters_before, "predicted": self.parameters_predicted, "found": self.parameters
        }  # fmt: skip
        return report_of(
            "prune", how, self.model, self.settings, self.before, self.after, parameters=parameters,
            zeros={"weights": self.zeros[0], "of": self.zeros[1]},
            calibration={"tokens": self.tokens, "examples": self.examples}, held_out_tokens=self.labels,
            rounds=list(self.rounds), recovered=list(self.recovered), seconds=self.seconds,
            peak_memory=self.peak_memory,
        )  # fmt: skip

    def __str__(self) -> str:
        before, after = self.before, self.after
        size = f"weights   {format_bytes(before.weight_bytes)} -> {format_bytes(after.weight_bytes)}"
        lines = [f"model     {self.folder}", f"{size} ({after.weight_bytes / before.weight_bytes - 1:+.0%})"]
        if self.parameters == self.parameters_before:
            lines.append(
                f"zeros     {self.sparsity:.2%} of {self.zeros[1]:,} weights in the blocks; they are written like"
                " others, and no quicker here"
            )
        else:
            lines.append(
                f"size      {self.parameters_before:,} -> {self.parameters:,} parameters"
                f" ({self.parameters / self.parameters_before - 1:+.1%}, {self.parameters_predicted:,} predicted)"
            )
        lines += change_lines(before, after, self.labels)
        if self.recovered:
            steps, tokens = (sum(run[name] for run in self.recovered) for name in ("steps", "tokens"))
            seconds = format_seconds(sum(run["seconds"] for run in self.recovered))
            lines.append(f"recovered {counted(steps, 'step')} of training, {tokens:,} tokens, {seconds}")
        lines.append(f"took      {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}")
        if not self.recovered and self.parameters != self.parameters_before:
            lines.append("better    --recover 200 trains what is left, on the same source")
        return "\n".join([*lines, f"chat      shoestring chat {self.folder}"])
