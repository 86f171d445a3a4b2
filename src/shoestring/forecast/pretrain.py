"""Pretraining as a plan sees it: every weight of a recipe's shapes, or of a model that is there; stages and all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from shoestring.models.families.registry import read_config
from shoestring.plan.choose import Choice
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Line, Machine, Options, Prediction
from shoestring.pretraining.config import InitFrom, PretrainRecipe
from shoestring.pretraining.staged import choose_all, job_shapes, largest_of, options_of
from shoestring.train.exact_weights import stored_format
from shoestring.train.planning import engines, rows_at_once
from shoestring.train.stages import stage_steps


@dataclass(frozen=True)
class PretrainWork:
    """folder: of the model that it goes on from, None for fresh weights."""

    recipe: PretrainRecipe
    config: ModelConfig
    folder: Path | None = None
    job = "pretrain"
    step = "step"

    @property
    def longest(self) -> int | None:
        return None if self.folder is None else self.config.context  # fresh shapes are free

    @property
    def tokens(self) -> int:
        return self.recipe.train.batch_tokens

    @property
    def assumed(self) -> tuple[str, ...]:
        alone = ("one process: what parallel.kind fsdp divides among several is not planned",)
        return ("disk: prepared text is not counted", *(alone if self.recipe.parallel.kind == "fsdp" else ()))

    def forms(self, limited: bool, settled: str) -> list[Form]:
        found: list[Form] = []
        for precision in formats(self.recipe, settled):
            recipe = computing(self.recipe, precision)
            shapes, portion = job_shapes(recipe, self.config), recipe.train.portions[-1]
            options = options_of(recipe, shapes[-1], portion, engines(recipe), portion.batch_tokens)
            if recipe.optimizer.in_backward:
                options = rows_at_once(options, shapes[-1])
            named = {} if self.recipe.precision.compute != "auto" else {"precision.compute": precision}
            found += step_forms(
                shapes[-1], options, precision, limited, _Predicting(recipe, shapes), self._disk, named
            )
        return found

    def _disk(self, spec: EngineSpec, prediction: Prediction) -> tuple[Line, ...]:
        settings = self.recipe.train
        saved: str = self.recipe.precision.saved
        if saved == "auto":
            saved = "float32" if self.recipe.quantize is not None else stored_format(self.folder)
        count = kept_checkpoints(settings.keep, settings.keep_best)
        return (checkpoint_line(count, model_bytes(self.config, saved) + moments(prediction)),)

    def at_context(self, tokens: int) -> PretrainWork:
        train = self.recipe.train.model_copy(
            update={"sequence_length": tokens, "batch_tokens": tokens, "microbatch": 1, "stages": ()}
        )
        config = self.config.model_copy(update={"context": max(self.config.context, tokens)})
        return replace(self, recipe=self.recipe.model_copy(update={"train": train}), config=config)

    def context_settings(self) -> dict[str, Any]:
        length = self.recipe.train.sequence_length
        asked: dict[str, Any] = {"train.sequence_length": length, "train.batch_tokens": length}
        if not isinstance(self.recipe.model, InitFrom) and self.config.context > self.recipe.model.context:
            asked["model.context"] = self.config.context
        return asked

    def of_model(self, config: ModelConfig) -> PretrainWork:
        return replace(self, config=config, folder=None)


class _Predicting:
    """A step of the last stage; memory of the stage that takes most, seconds of all."""

    def __init__(self, recipe: PretrainRecipe, shapes: list[JobShape]):
        self.recipe, self.shapes = recipe, shapes

    def __call__(self, shape: JobShape, spec: EngineSpec, machine: Machine) -> Outcome:
        settings = self.recipe.train
        if len(self.shapes) == 1:
            return of_steps(predict(shape, spec, machine), settings.planned_steps, settings.time)
        last = self.shapes[-1]

        def choose(one: JobShape, options: Options) -> Choice:
            taken = spec if one is last else replace(spec, microbatch=options.microbatch or options.usual)
            return Choice(taken, predict(one, taken, machine))

        choices = choose_all(_of_engine(self.recipe, spec), self.shapes, choose)
        prediction = replace(choices[largest_of(choices)].prediction, seconds=choices[-1].prediction.seconds)
        if settings.planned_steps is None:
            return of_steps(prediction, None, settings.time)
        counts = stage_steps(settings.stage_ends, settings.planned_steps)
        seconds = sum(n * choice.prediction.seconds for n, choice in zip(counts, choices, strict=True))
        return Outcome(prediction, settings.planned_steps, seconds)


def _of_engine(recipe: PretrainRecipe, spec: EngineSpec) -> PretrainRecipe:
    budget = recipe.budget.model_copy(update={"engine": spec.engine})
    return recipe.model_copy(update={"budget": budget})


def open_pretrain(recipe: PretrainRecipe, say: Say) -> PretrainWork:
    """Raises ConfigError and ModelFileError for a model to go on from that is not there."""
    if isinstance(recipe.model, InitFrom):
        folder = folder_of(recipe.model.init, say)
        return PretrainWork(recipe, read_config(folder), folder)
    return PretrainWork(recipe, recipe.model)
