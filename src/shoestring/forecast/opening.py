"""From RECIPE_OR_MODEL and a job to the work that is planned. A recipe's mistakes are told before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.compression.distill.config import DistillRecipe, StudentFolder, load_distill_recipe
from shoestring.core.config import Config, load_config
from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import YamlDocument
from shoestring.finetuning.config import FinetuneRecipe, load_finetune_recipe
from shoestring.forecast.config import GenerateAsked, QuantizeAsked, ServeAsked
from shoestring.forecast.form import Say, Work
from shoestring.forecast.subject import folder_of, is_model
from shoestring.models.config import ModelConfig
from shoestring.pretraining.config import InitFrom, PretrainRecipe, load_pretrain_recipe
from shoestring.train.recipe import RunRecipe
from shoestring.train.recipe_files import recipe_job, recipe_name

RECIPES: dict[str, Any] = {
    "pretrain": load_pretrain_recipe, "finetune": load_finetune_recipe, "distill": load_distill_recipe,
}  # fmt: skip
USES: dict[str, type[Config]] = {"quantize": QuantizeAsked, "serve": ServeAsked, "generate": GenerateAsked}
JOBS = (*RECIPES, *USES)
_TEXT = "(any text)"  # stands where quantize wants a source


def check_job(job: str | None) -> None:
    """Raises ConfigError for what is no job that is planned."""
    if job is None or job in JOBS:
        return
    close = difflib.get_close_matches(job, JOBS, 1)
    hint = f"did you mean {close[0]}?\n" if close else ""
    raise ConfigError(f"there is no plan for a job {job!r}", hint=f"{hint}jobs: {', '.join(JOBS)}")


def open_work(name: str, job: str | None, overrides: Mapping[str, Any], say: Say) -> Work:
    """overrides: dotted settings, of the recipe, and of the sections generate, serve and quantize. Raises ConfigError,
    and what opening the job's model and data does."""
    check_job(job)
    given = dict(overrides)
    recipe = recipe_of(name)
    if recipe is None and job is None:
        raise ConfigError(
            f"{name} is a model, and what is to be done with it is not said", hint=f"give --job: {', '.join(JOBS)}"
        )
    job = job or recipe
    assert job is not None
    if job == recipe:
        return _of_recipe(name, job, given, say)
    if job in ("pretrain", "distill"):
        what = "a recipe's text and steps" if job == "pretrain" else "a recipe's teacher, student and data"
        raise ConfigError(
            f"{job} needs {what}, and {name} is {'a model' if recipe is None else f'a recipe of {recipe}'}",
            hint=f"shoestring recipe list names recipes of {job}",
        )
    asked = {key: value for key, value in given.items() if job in USES and key.partition(".")[0] == job}
    others = {key: value for key, value in given.items() if key not in asked}
    if job == "finetune":
        return _finetune(name, recipe, given, say)
    if recipe is None and others:
        raise ConfigError(
            f"{name} is a model, and has no setting {next(iter(others))}",
            hint=f"settings of {job}: {', '.join(_names(job))}",
        )
    if unused := [key for key in others if key.partition(".")[0] != "model"]:
        raise ConfigError(
            f"{unused[0]} is of {recipe}, and of this recipe {job} takes the model alone",
            hint=f"its own settings: {', '.join(_names(job))}",
        )
    config, folder = _model_of(name, recipe, others, say)
    return _use(job, asked, config, folder)


def recipe_of(name: str) -> str | None:
    """The job of the recipe that stands there, None for a model."""
    if not is_model(name):
        return recipe_job(name)
    return None


def _of_recipe(name: str, job: str, overrides: dict[str, Any], say: Say) -> Work:
    loaded: RunRecipe = RECIPES[job](name, overrides)
    loaded.check_packages()
    _check_predicted(loaded)
    if isinstance(loaded, PretrainRecipe):
        from shoestring.forecast.pretrain import open_pretrain

        return open_pretrain(loaded, say)
    if isinstance(loaded, FinetuneRecipe):
        from shoestring.forecast.finetune import open_finetune

        return open_finetune(loaded, say)
    assert isinstance(loaded, DistillRecipe)
    from shoestring.forecast.distill import open_distill

    return open_distill(loaded)


def _check_predicted(recipe: RunRecipe) -> None:
    """Raises ConfigError for what there is no formula for."""
    precision = recipe.precision
    unknown = {
        "precision.fp8": precision.fp8 is not None,
        "precision.compile": precision.compile,
        "quantize": recipe.quantize is not None,
        "precision.compute int8 of trained weights": precision.compute == "int8" and recipe.job != "finetune",
    }
    if refused := [name for name, there in unknown.items() if there]:
        raise ConfigError(
            f"what {refused[0]} takes is not predicted",
            hint="leave it out of the plan: --precision.fp8 null, --precision.compile false, --quantize null",
        )


def _finetune(name: str, recipe: str | None, overrides: dict[str, Any], say: Say) -> Work:
    """Of a model, or of a recipe's."""
    from shoestring.forecast.finetune import assumed_recipe, open_finetune

    if recipe is None:
        return open_finetune(assumed_recipe(name, overrides), say)
    config, folder = _model_of(name, recipe, {}, say)
    if folder is not None:
        return open_finetune(assumed_recipe(str(folder), overrides), say)
    return open_finetune(assumed_recipe(recipe_name(name), overrides), say, config)


def _model_of(
    name: str, recipe: str | None, overrides: dict[str, Any], say: Say
) -> tuple[ModelConfig, Path | None]:
    """Its shapes, and where it is, None for shapes alone."""
    from shoestring.models.families.registry import read_config

    if recipe is not None:
        model = RECIPES[recipe](name, overrides).model
        if isinstance(model, ModelConfig):
            return model, None
        name = model.init if isinstance(model, (InitFrom, StudentFolder)) else model
    folder = folder_of(name, say)
    return read_config(folder), folder


def _use(job: str, asked: dict[str, Any], config: ModelConfig, folder: Path | None) -> Work:
    values: dict[str, Any] = {}
    if job == "quantize" and asked.get("quantize.method") != "rtn" and "quantize.calibrate" not in asked:
        values = {"quantize": {"calibrate": _TEXT}}
    elif job == "quantize":
        values = {"quantize": {}}
    settings: Any = load_config(USES[job], YamlDocument(values, name="the plan"), asked)
    source, packed = "float32", frozenset()
    if folder is not None:
        from shoestring.finetuning.model import packed_linears_of, source_dtype

        source, packed = source_dtype(folder), packed_linears_of(folder)
    if job == "generate":
        from shoestring.forecast.generate import GenerateWork

        return GenerateWork(config, settings.generate, source, packed, folder)
    if job == "serve":
        from shoestring.forecast.serve import ServeWork

        return ServeWork(config, settings.serve, source, folder)
    from shoestring.forecast.quantize import QuantizeWork

    if packed:
        raise ConfigError("this model's weights are in few bits already", str(folder), "quantize the dense model")
    return QuantizeWork(config, settings.quantize, source, folder)


def _names(job: str) -> list[str]:
    section = next(iter(USES[job].model_fields.values())).annotation
    return [f"{job}.{name}" for name in section.model_fields]  # type: ignore[union-attr]
