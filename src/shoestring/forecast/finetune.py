"""Fine-tuning as a plan sees it: an adapter or every weight of a model, on examples that are read, or on assumed ones.

With `data.source` the examples are opened as the run opens them, so that rows, lengths and steps are its own. Without,
rows of one length are assumed, and said.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.units import counted
from shoestring.data.supervised.batches import padded_length
from shoestring.finetuning.before_after import ANSWER
from shoestring.finetuning.config import FinetuneRecipe, finetune_recipe
from shoestring.finetuning.material import Material, open_material
from shoestring.finetuning.model import (
    Portions,
    job_shape,
    options,
    packed_linears_of,
    portions_of,
    source_dtype,
    steps_of,
    stream_of,
)
from shoestring.forecast.form import Form, Outcome, Say
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
from shoestring.forecast.subject import folder_of
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import read_config, read_quantization
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Line, Machine, Prediction
from shoestring.train.planning import rows_at_once
from shoestring.train.run_folder import Start

NO_DATA = "(no data named)"  # stands where a recipe wants a source
ROW = 512  # tokens, where neither data nor recipe say how long rows are


@dataclass(frozen=True)
class FinetuneWork:
    """material: of examples that are there. length: tokens of a row. fixed: whether the rows are another job's than the
    recipe's examples would make."""

    recipe: FinetuneRecipe
    portions: Portions
    length: int
    folder: Path | None = None
    material: Material | None = None
    fixed: bool = False
    job = "finetune"
    step = "step"

    @property
    def config(self) -> ModelConfig:
        return self.portions.config

    @property
    def longest(self) -> int | None:
        return self.config.context

    @property
    def tokens(self) -> int:
        return self.portions.rows * self.length

    @property
    def assumed(self) -> tuple[str, ...]:
        if self.material is not None:
            return ()
        said = f"no data are named (--data.source): {counted(self.portions.rows, 'row')} of {self.length:,} tokens"
        said += " are assumed" if self.portions.rows > 1 else " is assumed"
        if self.recipe.train.epochs is not None:
            said += ", and how many steps there are is not known (--train.steps)"
        return (said,)

    def forms(self, limited: bool, settled: str) -> list[Form]:
        found: list[Form] = []
        steps = functools.cache(self._steps)

        def predicted(shape: JobShape, spec: EngineSpec, machine: Machine) -> Outcome:
            grouped = self.recipe.data.layout in ("grouped", "flat")  # whose samples are a microbatch's
            count = steps(spec.microbatch if grouped else self.portions.rows)
            return of_steps(predict(shape, spec, machine), count, self.recipe.train.time)

        for precision in formats(self.recipe, settled):
            recipe = computing(self.recipe, precision)
            shape, left = job_shape(recipe, self.portions), options(recipe, self.portions)
            if recipe.optimizer.in_backward:
                left = rows_at_once(left, shape)
            named = {} if self.recipe.precision.compute != "auto" else {"precision.compute": precision}
            found += step_forms(shape, left, precision, limited, predicted, self._disk, named)
        return found

    def _steps(self, microbatch: int) -> int | None:
        if self.recipe.train.epochs is None or self.material is None or self.fixed:
            return self.recipe.train.steps
        return steps_of(self.recipe, self.material, stream_of(self.recipe, self.material, microbatch), microbatch)

    def _disk(self, spec: EngineSpec, prediction: Prediction) -> tuple[Line, ...]:
        each = moments(prediction)
        if self.recipe.adapter.method == "full":
            saved = self.recipe.precision.saved
            each += model_bytes(self.config, self.portions.source if saved == "auto" else saved)
        return (checkpoint_line(kept_checkpoints(self.recipe.train.keep, self.portions.held_out), each),)

    def at_context(self, tokens: int) -> FinetuneWork:
        train = self.recipe.train.model_copy(
            update={"sequence_length": tokens, "batch_tokens": tokens, "batch_rows": None, "microbatch": 1}
        )
        questions, prompt, answer = self.portions.asked
        asked = questions, min(prompt, tokens), answer
        portions = replace(self.portions, rows=1, padded=padded_length(tokens), lengths=(1.0,), asked=asked)
        recipe = self.recipe.model_copy(update={"train": train})
        return replace(self, recipe=recipe, portions=portions, length=tokens, fixed=True)

    def context_settings(self) -> dict[str, Any]:
        return {"train.sequence_length": self.length, "train.batch_tokens": self.length}

    def of_model(self, config: ModelConfig) -> FinetuneWork:
        portions = replace(self.portions, config=config, packed=frozenset(), quantized=False)
        return replace(self, portions=portions, folder=None)


def open_finetune(recipe: FinetuneRecipe, say: Say, config: ModelConfig | None = None) -> FinetuneWork:
    """config: of a model that is not there, in place of the recipe's. Raises what `finetuning.material` does."""
    if config is None and (recipe.data.source != NO_DATA or recipe.data.mixture):
        material = open_material(Start(recipe, "finetune", "planned"))
        portions = portions_of(recipe, material)
        return FinetuneWork(recipe, portions, material.length, material.base, material)
    folder = None if config is not None else folder_of(recipe.model, say)
    if folder is not None:
        config = read_config(folder)
    assert config is not None
    length = recipe.train.sequence_length or min(ROW, config.context)
    tokens = recipe.train.batch_tokens
    rows = recipe.train.batch_rows or max(-(-tokens // length), 1)
    asked = recipe.train.answers, min(length, max(config.context - ANSWER, 1)), ANSWER
    portions = Portions(config, rows, padded_length(length), asked=asked)
    if folder is not None:
        packed, quantized = packed_linears_of(folder), read_quantization(folder) is not None
        portions = replace(portions, source=source_dtype(folder), packed=packed, quantized=quantized)
    return FinetuneWork(recipe, portions, length, folder)


def assumed_recipe(model: str, overrides: Mapping[str, Any]) -> FinetuneRecipe:
    """Of a model, with the data that the settings name, or none. Raises ConfigError."""
    named = any(key == "data" or key.startswith(("data.source", "data.mixture")) for key in overrides)
    return finetune_recipe(model, None if named else NO_DATA, dict(overrides))
