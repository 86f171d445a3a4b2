"""What a fine-tuning run says before and after: the header, and `FinetuneResult`, whose text is the closing lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.machine import total_memory_bytes
from shoestring.core.units import format_bytes, format_count, format_seconds
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.finetune.before_after import Answer, side_by_side
from shoestring.finetune.config import FinetuneRecipe
from shoestring.finetune.show import header_line
from shoestring.models.decoder import Decoder
from shoestring.train.state import TrainerState


@dataclass(frozen=True)
class FinetuneResult:
    """out: the run folder; checkpoint: the newest adapter or model in it, best: the one with the lowest held-out loss.

    loss_before, loss_after: nats per supervised held-out token, before the first step and at the best one. seconds:
    wall clock of training over all sessions. peak_memory: the process's largest resident set, in bytes, beside what was
    predicted for it (None when nothing was left to train). engine: how the model was kept.
    """

    out: Path
    checkpoint: Path
    best: Path
    method: str
    steps: int
    tokens: int
    seconds: float
    loss_before: float | None
    loss_after: float | None
    peak_memory: int
    answers: list[Answer] = field(default_factory=list)
    plot: Path | None = None
    predicted_memory: int | None = None
    engine: str = "resident"

    @property
    def model(self) -> Path:
        """What to go on with: OUT/latest, or OUT/best where an earlier checkpoint was better."""
        return self.out / ("latest" if self.best == self.checkpoint else "best")

    def to_json(self) -> dict[str, Any]:
        paths = {name: str(value) for name, value in asdict(self).items() if isinstance(value, Path)}
        return {**asdict(self), **paths, "model": str(self.model)}

    def __str__(self) -> str:
        peak = f"peak {format_bytes(self.peak_memory)}"
        if self.predicted_memory is not None:
            peak += f" ({format_bytes(self.predicted_memory)} predicted)"
        done = [format_seconds(self.seconds), peak]
        if self.loss_before is not None and self.loss_after is not None:
            done.insert(0, f"held-out loss {self.loss_before:.3f} → {self.loss_after:.3f}")
        lines = [f"done      {' · '.join(done)}"]
        if self.best != self.checkpoint:
            lines.append(f"best      {self.best.name}: held-out loss is higher in {self.checkpoint.name}, the newest")
        if self.answers:
            lines += ["", side_by_side(self.answers, console.out.width), ""]
        if self.method == "full":
            lines.append(f"model     {self.model}")
        else:
            lines.append(f"adapter   {self.model} (PEFT)")
        lines.append(f"chat      shoestring chat {self.model}")
        if self.method != "full":
            lines.append(f"merge     shoestring merge {self.model}")
        return "\n".join(lines)


def header(
    recipe: FinetuneRecipe, out: Path, decoder: Decoder, dataset: SupervisedDataset, rows: int, length: int,
    state: TrainerState, predicted: int,
) -> str:  # fmt: skip
    """The aligned lines before training. predicted: bytes of the whole process."""
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    section = recipe.adapter
    method: str = section.method
    if method != "full":
        method += f", rank {section.rank}" + (f" on {section.base}" if method == "qlora" else "")
    size = format_count(decoder.config.parameter_count())
    counts = dataset.counts
    least = "at least " * (recipe.budget.memory is None)  # freed memory is then kept for reuse
    lines = [
        f"model     {recipe.model}: {size} parameters, {format_count(trained)} trained ({method})",
        f"out       {out}",
        f"data      {header_line(dataset)}",
        f"split     {counts.train:,} to learn from, {counts.validation:,} held out",
        f"memory    {least}{format_bytes(predicted)} predicted for the whole process ({recipe.budget.engine});"
        f" {format_bytes(total_memory_bytes())} here",
        f"time      {_length(recipe, rows * length)}",
    ]
    if state.step:
        lines.append(f"resuming  after step {state.step:,}, {format_seconds(state.seconds)} used")
    return "\n".join(lines)


def _length(recipe: FinetuneRecipe, tokens: int) -> str:
    train = recipe.train
    if train.time is not None:
        return f"{format_seconds(train.time)}, in steps of up to {tokens:,} tokens; the first ones tell how many fit"
    if train.steps is not None:
        return f"{train.steps:,} steps of up to {tokens:,} tokens"
    return f"{train.epochs:g} epochs, in steps of up to {tokens:,} tokens"
