"""Distillation as a plan sees it: the student's step, and beside it a teacher in memory or read layer by layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.compression.distill.config import DistillRecipe, StudentFolder
from shoestring.compression.distill.material import Material, open_material
from shoestring.compression.distill.memory import (
    beside_teacher,
    job_shape,
    options_of,
    places,
    teacher_lines,
    with_teacher,
)
from shoestring.data.supervised.batches import SupervisedStream
from shoestring.forecast.form import Form
from shoestring.forecast.steps import (
    checkpoint_line,
    computing,
    formats,
    kept_checkpoints,
    model_bytes,
    moments,
    of_steps,
    step_forms,
)
from shoestring.models.config import ModelConfig
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Line, Machine, Prediction
from shoestring.train.exact_weights import stored_format
from shoestring.train.run_folder import Start


@dataclass(frozen=True)
class DistillWork:
    """fixed: whether rows are others than the recipe makes of its data."""

    recipe: DistillRecipe
    material: Material
    fixed: bool = False
    job = "distill"
    step = "step"
    assumed = ()

    @property
    def config(self) -> ModelConfig:
        return self.material.student.config

    @property
    def folder(self) -> Path | None:
        return self.material.teacher.base  # what is read from disk

    @property
    def longest(self) -> int | None:
        return min(self.config.context, self.material.teacher.config.context)

    @property
    def tokens(self) -> int:
        return self.material.rows * self.material.length

    def forms(self, limited: bool, settled: str) -> list[Form]:
        found: list[Form] = []
        steps = functools.cache(self._steps)
        for precision in formats(self.recipe, settled):
            recipe = computing(self.recipe, precision)
            shape, options = job_shape(recipe, self.material), options_of(recipe, self.material)
            named = {} if self.recipe.precision.compute != "auto" else {"precision.compute": precision}
            for streamed in places(recipe, self.material, limited=True):

                def predicted(shape: JobShape, spec: EngineSpec, machine: Machine, recipe=recipe, streamed=streamed):
                    rows = options_of(recipe, self.material).usual
                    more = teacher_lines(recipe, self.material, rows, streamed, machine)
                    student = predict(shape, spec, beside_teacher(machine, more))
                    both = with_teacher(student, more, self.material, recipe, machine)
                    return of_steps(both, steps(spec.microbatch), recipe.train.time)

                place = "streamed" if streamed else "resident"
                settings = named if recipe.budget.teacher != "auto" else {**named, "budget.teacher": place}
                note = f"teacher {'read layer by layer' if streamed else 'in memory'}"
                found += step_forms(shape, options, precision, limited, predicted, self._disk, settings, note)
        return found

    def _steps(self, microbatch: int) -> int | None:
        recipe, material = self.recipe, self.material
        if recipe.train.epochs is None:
            return recipe.train.steps
        if self.fixed:
            return None
        stream = SupervisedStream(
            material.dataset, material.length, microbatch, material.rows, recipe.data.layout, recipe.seed, "train",
            longest_first=recipe.data.longest_first,
        )  # fmt: skip
        each = material.rows // microbatch if recipe.data.layout == "grouped" else material.rows
        return max(round(recipe.train.epochs * stream.samples_per_epoch / each), 1)

    def _disk(self, spec: EngineSpec, prediction: Prediction) -> tuple[Line, ...]:
        each = moments(prediction)
        if not self.material.lora:
            saved = self.recipe.precision.saved
            origin = self.material.student.folder
            each += model_bytes(self.config, stored_format(origin) if saved == "auto" else saved)
        return (checkpoint_line(kept_checkpoints(self.recipe.train.keep, self.material.held_out), each),)

    def at_context(self, tokens: int) -> DistillWork:
        train = self.recipe.train.model_copy(
            update={"sequence_length": tokens, "batch_tokens": tokens, "microbatch": 1}
        )
        material = replace(self.material, rows=1, length=tokens, lengths=(1.0,))
        return replace(self, recipe=self.recipe.model_copy(update={"train": train}), material=material, fixed=True)

    def context_settings(self) -> dict[str, Any]:
        length = self.material.length
        return {"train.sequence_length": length, "train.batch_tokens": length}

    def of_model(self, config: ModelConfig) -> DistillWork:
        student = replace(self.material.student, config=config, folder=None, base=None)
        recipe = self.recipe
        if isinstance(recipe.model, StudentFolder):
            recipe = recipe.model_copy(update={"model": config})
        return replace(self, recipe=recipe, material=replace(self.material, student=student, packed=False))


def open_distill(recipe: DistillRecipe) -> DistillWork:
    """With teacher, student and data, as the run opens them. Raises what `distill.material` does."""
    return DistillWork(recipe, open_material(Start(recipe, "distill", "planned")))
