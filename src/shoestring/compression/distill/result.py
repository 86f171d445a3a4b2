"""What a distillation says before and after: the header, and `Distilled`, whose text is the closing lines."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.compression.decoding import decode
from shoestring.compression.distill.config import DistillConfig, DistillRecipe
from shoestring.compression.distill.material import FRESH, Material, tensor_bytes_of
from shoestring.compression.report import Decoding, Measured, report_of, write_report
from shoestring.core.machine import total_memory_bytes
from shoestring.core.units import counted, format_bytes, format_count
from shoestring.core.waiting import waiting
from shoestring.data.supervised.show import header_line
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_quantization
from shoestring.models.folder import read_config
from shoestring.models.peft_folder import is_adapter
from shoestring.train.quantize_command import merge_flags, quantize_command
from shoestring.train.result import RunResult
from shoestring.train.run import Run, find_once

STARTED = "started"  # the event with what was measured before the first step
_SHARE = 0.4  # of the memory that is there, which a model in float32 may take while its decoding is measured
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Distilled(RunResult):
    """best: the student with the lowest held-out loss; `checkpoint` is the newest. before, after, teacher: the student
    before the first step and at the best one, and the model that it learned from, on `labels` held-out tokens."""

    best: Path
    how: str
    before: Measured
    after: Measured
    teacher: Measured
    labels: int

    @property
    def model(self) -> Path:
        """OUT/latest, or OUT/best where an earlier checkpoint was better."""
        return self.out / ("latest" if self.best == self.checkpoint else "best")

    @property
    def kept(self) -> float | None:
        """Which part of the way from the student's held-out loss to the teacher's was gone; None where none was."""
        before, after, aim = self.before.loss, self.after.loss, self.teacher.loss
        if before is None or after is None or aim is None or before <= aim:
            return None
        return (before - after) / (before - aim)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "gap_closed": self.kept}

    def __str__(self) -> str:
        lines = [f"done      {self.how} · {self.cost()}", *self._table()]
        if self.kept is not None:
            lines.append(f"gap       {self.kept:.0%} of the way from the student's held-out loss to the teacher's")
        if self.best != self.checkpoint:
            lines.append(f"best      {self.best.name}: held-out loss is higher in {self.checkpoint.name}, the newest")
        lines.append(f"{'adapter  ' if is_adapter(self.best) else 'model    '} {self.model}")
        lines.append(f"chat      shoestring chat {self.model}")
        if self.quantize is not None:
            if is_adapter(self.best):
                lines.append(f"merge     shoestring merge {self.model}{merge_flags(self.quantize, self.out)}")
            lines.append(f"quantize  {self.quantize}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """The three sides, a column each."""
        sides = (self.before, self.after, self.teacher)
        rows = [("", ["student before", "after", "teacher"])]
        rows.append(("weights", [format_bytes(side.weight_bytes) for side in sides]))
        if all(side.loss is not None for side in sides):
            rows.append(("perplexity", [_shown(side.perplexity, ".3f") for side in sides]))
            if all(side.bits_per_byte is not None for side in sides):
                rows.append(("bits/byte", [_shown(side.bits_per_byte, ".4f") for side in sides]))
        if self.after.decoding is not None or self.teacher.decoding is not None:
            speeds = [_speed(side.decoding) for side in sides]
            rows.append(("decoding", speeds))
            rows.append(("memory", ["" if s.decoding is None else format_bytes(s.decoding.memory) for s in sides]))
        lines = [f"{name:<10}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows]
        if self.labels:
            lines.append(f"{'':<10}on {counted(self.labels, 'held-out token')}")
        return [line.rstrip() for line in lines]


def _shown(value: float | None, digits: str) -> str:
    return "" if value is None else format(value, digits)


def _speed(decoding: Decoding | None) -> str:
    return "" if decoding is None else f"{decoding.tokens_per_second:.1f} tok/s"


def described(settings: DistillConfig) -> str:
    """How the two are compared, in a few words."""
    name = {"forward": "KL(teacher ‖ student)", "reverse": "KL(student ‖ teacher)"}.get(
        settings.divergence, f"Jensen-Shannon, beta {settings.weight:g}"
    )
    parts = [name]
    if settings.temperature != 1:
        parts.append(f"temperature {settings.temperature:g}")
    if settings.labels:
        parts.append(f"{settings.labels:.0%} labels")
    if settings.on_policy:
        parts.append(f"{settings.on_policy:.0%} on-policy")
    if settings.cache_samples is not None:
        parts.append(f"{settings.cache_samples} samples")
    return ", ".join(parts)


def header_lines(recipe: DistillRecipe, material: Material, decoder: Decoder) -> list[str]:
    """Teacher, student, data and comparison."""
    dataset, counts = material.dataset, material.dataset.counts
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    teacher, student = material.teacher, material.student
    where = {"streamed": "read from disk layer by layer"}.get(recipe.budget.teacher, "in memory")
    if recipe.distill.cache_samples is not None:
        where = f"asked once, {where}"
    what = f"an adapter of rank {recipe.adapter.rank}" if material.lora else "every weight"
    data = header_line(dataset)
    if material.text:
        data = f"{dataset.source}: text, {format_count(counts.tokens)} tokens in {counted(counts.examples, 'window')}"
        if dataset.skipped.counts:
            data += f", left out: {dataset.skipped}"
    return [
        f"teacher   {teacher.name}: {format_count(teacher.config.parameter_count())} parameters, {where}",
        f"student   {student.name}: {format_count(student.config.parameter_count())} parameters,"
        f" {format_count(trained)} trained ({what})",
        f"data      {data}",
        *(f"note      {note}" for note in dataset.notes),
        f"split     {counts.train:,} to learn from, {counts.validation:,} held out",
        f"compare   {described(recipe.distill)}",
    ]


def collect(run: Run) -> Distilled:
    """The figures of a finished run; measures how fast both are decoded, and writes compression.json beside the
    student."""
    recipe: DistillRecipe = run.recipe
    started = next((event for event in run.state.events if event["event"] == STARTED), {})
    labels, text_bytes = (int(started.get(key) or 0) for key in ("labels", "bytes"))
    best = run.checkpoint if run.state.best_step is None else run.out / f"step-{run.state.best_step:06d}"
    teacher = find_once(recipe.teacher)
    begin = getattr(recipe.model, "init", None)
    folder = None if begin is None else find_once(begin)

    def measured(weight_bytes: int, loss: float | None, decoding: Decoding | None = None) -> Measured:
        bits = None if loss is None or not text_bytes else loss * labels / math.log(2) / text_bytes
        return Measured(weight_bytes, loss, bits, decoding)

    with waiting("decoding  teacher and student"):
        speeds = [_decoding(model, recipe.budget.memory) for model in (best, teacher)]
    after = tensor_bytes_of(best)
    model = run.out / ("latest" if best == run.checkpoint else "best")
    result = Distilled(
        **run.figures(), best=best, how=described(recipe.distill), labels=labels,
        before=measured(after if folder is None else tensor_bytes_of(folder), started.get("before")),
        after=measured(after, run.state.best_loss, speeds[0]),
        teacher=measured(tensor_bytes_of(teacher), started.get("teacher"), speeds[1]), plot=run.plot(),
        quantize=quantize_command(recipe.quantize, run.out, model, folder, is_adapter(best)),
    )  # fmt: skip
    write_report(_report(result, recipe), best)
    return result


def _report(result: Distilled, recipe: DistillRecipe) -> dict[str, Any]:
    """The content of compression.json."""
    side = result.teacher
    return report_of(
        "distill", f"distill from {recipe.teacher} by {result.how}", getattr(recipe.model, "init", FRESH),
        recipe.distill.model_dump(mode="json"), result.before, result.after,
        teacher={"model": recipe.teacher, **asdict(side), "perplexity": side.perplexity},
        data=recipe.data.named, steps=result.steps, tokens=result.tokens, held_out_tokens=result.labels,
        gap_closed=result.kept, seconds=result.seconds, peak_memory=result.peak_memory,
    )  # fmt: skip


def _decoding(folder: Path, memory: int | None) -> Decoding | None:
    """In float32, or as a folder in few bits has it; None where that takes too much, or is an adapter's."""
    if is_adapter(folder):
        return None
    config = read_config(folder)
    room = (total_memory_bytes() if memory is None else memory) * _SHARE
    if config.parameter_count() * _FLOAT > room or config.context < 16:
        return None
    return decode(folder, "file" if read_quantization(folder) is not None else "float32")
