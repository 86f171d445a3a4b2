"""`RunResult`: what every job's result says, and the header lines that every job shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.core.device import resolve_device
from shoestring.core.machine import total_memory_bytes
from shoestring.core.units import counted, format_bytes, format_seconds
from shoestring.plan.receipt import shown_seconds
from shoestring.plan.shapes import Prediction
from shoestring.train import parallel
from shoestring.train.precision import told
from shoestring.train.recipe import RunRecipe
from shoestring.train.state import TrainerState


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """out: the run folder; checkpoint: the newest in it. seconds: wall clock of training, over all sessions.

    engine: how the model was kept. peak_memory: the process's largest resident set, in bytes, beside what was predicted
    for it (None when nothing was left to train); tensor_memory: the most that lay in tensors, counted (None where
    nothing counts), beside what was predicted for that; step_seconds: the median of a step (None where there were too
    few to tell), beside what was predicted. quantize: the command that writes the codes which were trained, where they
    were.
    """

    out: Path
    checkpoint: Path
    steps: int
    tokens: int
    seconds: float
    engine: str
    peak_memory: int
    predicted_memory: int | None = None
    tensor_memory: int | None = None
    predicted_tensor_memory: int | None = None
    step_seconds: float | None = None
    predicted_step_seconds: float | None = None
    plot: Path | None = None
    quantize: str | None = None

    @property
    def model(self) -> Path:
        """What to go on with."""
        return self.out / "latest"

    def to_json(self) -> dict[str, Any]:
        paths = {name: str(value) for name, value in asdict(self).items() if isinstance(value, Path)}
        return {**asdict(self), **paths, "model": str(self.model)}

    def cost(self) -> str:
        """Time and memory, such as: 2:01 · 0.41 s a step (0.38 s predicted) · peak 0.89 GB (0.90 GB predicted)."""
        parts = [format_seconds(self.seconds)]
        if self.step_seconds is not None:
            told = self.predicted_step_seconds
            more = "" if told is None else f" ({shown_seconds(told)} predicted)"
            parts.append(f"{shown_seconds(self.step_seconds)} a step{more}")
        peak = f"peak {format_bytes(self.peak_memory)}"
        if self.predicted_memory is not None:
            peak += f" ({format_bytes(self.predicted_memory)} predicted)"
        return " · ".join([*parts, peak])


def common_header(recipe: RunRecipe, prediction: Prediction, length: str, state: TrainerState) -> list[str]:
    """Lines on memory, time and, for a run that goes on, how far it is. length: what is shown for the time."""
    lines = [
        f"memory    {format_bytes(prediction.total)} predicted for the whole process ({recipe.budget.engine});"
        f" {format_bytes(total_memory_bytes())} here" + _by_runs(prediction),
        f"precision {told(recipe.precision, resolve_device(recipe.device))}",
        *_processes(recipe),
        *(() if recipe.quantize is None else (f"quantize  {recipe.quantize.told()}",)),
        f"time      {length}; about {shown_seconds(prediction.seconds)} a step predicted",
    ]
    if state.step:
        lines.append(f"resuming  after step {state.step:,}, {format_seconds(state.seconds)} used")
    return lines


def _by_runs(prediction: Prediction) -> str:
    return "" if prediction.correction is None else f"; {prediction.correction}"


def _processes(recipe: RunRecipe) -> list[str]:
    world = parallel.world_size()
    if world == 1:
        return []
    has = "its part of the model" if recipe.parallel.kind == "fsdp" else "the whole model"
    return [f"parallel  {world} processes, each with {has} ({recipe.parallel.kind}); memory is of one"]


def length_line(recipe: RunRecipe, steps: int | None, portion: str) -> str:
    """How long a run is. steps: None where `train.time` bounds it. portion: of a step, such as "1,024 tokens"."""
    if recipe.train.time is not None:
        return f"{format_seconds(recipe.train.time)}, in steps of {portion}; the first ones tell how many fit"
    assert steps is not None
    return f"{counted(steps, 'step')} of {portion}"
