"""The recipe of a trial: the study's recipe with what was chosen, as long as every other trial. Torch-free.

What a trial may not choose is refused by name: how long it is (all are equally long), where and what it writes, and
what it is measured on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shoestring.core.config_keys import nearest_key, setting_keys
from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import YamlDocument, parse_value
from shoestring.search.config import StudyConfig
from shoestring.search.jobs import searched_job
from shoestring.search.parameters import Choices, Parameter, Range, label
from shoestring.search.space import Space, described, never_holds
from shoestring.train.recipe import RunRecipe
from shoestring.train.recipe_files import load_run_recipe

_DRAWS = 24  # of the rest of the space, for each value of a parameter that is tried
_WRITTEN = ("out", "job", "base", "description", "extends", "log", "train.keep", "train.checkpoint_every")
_MEASURED = (
    "train.evaluate_every", "train.evaluate_tokens", "train.final_evaluate_tokens", "train.evaluate_examples",
    "train.answers", "data.source", "data.mixture", "data.text_field", "data.validation", "data.validation_source",
    "data.quality", "data.template", "data.supervise", "data.format", "data.columns", "data.special_tokens",
    "data.on_bad_line", "data.separate_documents", "evaluate",
)  # fmt: skip


def base_document(recipe: RunRecipe) -> YamlDocument:
    """What the recipe says, without what it leaves to its kinds."""
    return YamlDocument(recipe.model_dump(mode="json", exclude_unset=True), name="the study's recipe")


def complete(recipe: RunRecipe) -> dict[str, Any]:
    """Every value of a recipe, nested."""
    return recipe.model_dump(mode="json")


def trial_recipe(study: StudyConfig, base: YamlDocument, settings: Mapping[str, Any], **fixed: Any) -> RunRecipe:
    """With these settings, and as long as the study says. fixed: other settings, dots as two underscores.

    Raises ConfigError where the settings do not go together.
    """
    job = searched_job(study.job)
    given = {**{key: _typed(value) for key, value in settings.items()}, **equal_length(study, base, settings)}
    given |= {key.replace("__", "."): value for key, value in fixed.items() if value is not None}
    given["train.evaluate_every"] = None  # ten times over the run, whatever its steps
    if "evaluate" in job.recipe.model_fields:  # what is asked before and after a run is not asked of every trial
        given |= {"evaluate": {}, "train.answers": 0}
    if study.memory is not None:
        given["budget.memory"] = study.memory
    return load_run_recipe(job.recipe, base, given, tell=False)


def equal_length(study: StudyConfig, base: YamlDocument, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The setting by which a trial is as long as all others; none where the recipe's own length is that."""
    budget, job = study.budget, searched_job(study.job)
    if budget.tokens is None:
        return {} if budget.time is None else {"train.time": budget.time}
    if "tokens" in job.lengths:
        return {"train.tokens": budget.tokens}
    default = load_run_recipe(
        job.recipe, base, {key: _typed(value) for key, value in settings.items()}, tell=False
    ).train
    if getattr(default, "batch_rows", None) is not None:
        raise ConfigError(
            "a budget of tokens needs steps of so many tokens (train.batch_tokens), and train.batch_rows is given",
            hint="give each trial a time instead, or leave out train.batch_rows",
        )
    return {"train.steps": max(round(budget.tokens / default.batch_tokens), 1)}


def best_recipe(study: StudyConfig, base: YamlDocument, settings: Mapping[str, Any]) -> YamlDocument:
    """The study's recipe with what was found, at the recipe's own length."""
    job = searched_job(study.job)
    given = {key: _typed(value) for key, value in settings.items()}
    recipe = load_run_recipe(job.recipe, base, given, tell=False)
    values = recipe.model_dump(mode="json", exclude_unset=True)
    description = f"{study.recipe} with {described(settings)}"
    return YamlDocument({"job": study.job, **values, "description": description, "base": study.recipe})


def check_space(study: StudyConfig, space: Space, base: YamlDocument, recipe: RunRecipe, named: bool) -> Space:
    """The space, once every value in it has been seen in a possible recipe.

    named: of a space with a name, values that this recipe cannot have are left out. Raises ConfigError for settings
    that do not exist or are not a trial's to choose, and for values that no recipe can have.
    """
    keys = setting_keys(searched_job(study.job).recipe)
    for parameter in space.parameters:
        _check_key(study, parameter.key, parameter.place, keys, recipe)
        for condition in parameter.when:
            _check_known(condition.key, parameter.place, keys, recipe)
    values, drawn = complete(recipe), random.Random(study.seed)
    kept = []
    for parameter in space.parameters:
        tried = parameter.values if isinstance(parameter, Choices) else (parameter.grid()[0], parameter.grid()[-1])
        possible, why = [], None
        for value in tried:
            error = _impossible(study, space, base, values, parameter, value, drawn)
            if error is None:
                possible.append(value)
            else:
                why = why or (value, error)
        if why is not None and not named:
            raise _refused(parameter, *why)
        if not possible or (isinstance(parameter, Choices) and len(possible) < 2):
            continue
        if isinstance(parameter, Choices):
            parameter = replace(parameter, values=tuple(possible))
        kept.append(parameter)
    if named:  # of a kind that was left out
        kept = [parameter for parameter in kept if never_holds(parameter, kept, values) is None]
    if not kept:
        raise ConfigError("nothing of this space is possible with this recipe")
    return Space(tuple(kept))


def _refused(parameter: Parameter, value: Any, error: ConfigError) -> ConfigError:
    message = error.message if parameter.key in error.message else f"{parameter.key} {label(value)}: {error.message}"
    whole = isinstance(parameter, Range) and not parameter.whole and "a whole number" in error.message
    hint = "write int or log_int for whole numbers" if whole else error.hint
    return ConfigError(message.replace(" (in the call)", "").replace(" (command line)", ""), parameter.place, hint)


def _check_known(key: str, place: str, keys: Sequence[str], recipe: RunRecipe) -> None:
    plain = ".".join("*" if part.isdigit() else part for part in key.split("."))
    if plain in keys or any(plain.startswith(f"{known}.") and known.endswith("columns") for known in keys):
        return
    hint = type(recipe).called_elsewhere(key.rpartition(".")[2], list(keys))
    near = nearest_key(key, list(keys))
    raise ConfigError(
        f"unknown setting {key}",
        place,
        hint or (f"did you mean {near}?" if near else "shoestring recipe show lists all"),
    )


def _check_key(study: StudyConfig, key: str, place: str, keys: Sequence[str], recipe: RunRecipe) -> None:
    _check_known(key, place, keys, recipe)

    def among(names: Sequence[str]) -> bool:
        return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in names)

    if among([f"train.{name}" for name in searched_job(study.job).lengths]):
        raise ConfigError(
            f"{key} is how long a trial is, and all trials are equally long", place,
            hint="--trial-tokens or --trial-time says how long",
        )  # fmt: skip
    if among(_WRITTEN):
        raise ConfigError(f"{key} changes nothing of what a trial learns", place, hint="leave it out of the space")
    if among(_MEASURED):
        raise ConfigError(
            f"{key} changes what a trial is measured on, and then two of them cannot be compared", place,
            hint="leave it out of the space",
        )  # fmt: skip
    if "loss" in study.objectives and among(["data.tokenizer"]):
        raise ConfigError(
            f"{key}: a loss for each token cannot be compared between tokenizers", place,
            hint="--objective bits_per_byte can",
        )  # fmt: skip
    if key == "model.vocabulary" and "loss" in study.objectives:
        raise ConfigError(
            "model.vocabulary: a loss for each token cannot be compared between vocabularies", place,
            hint="--objective bits_per_byte can",
        )  # fmt: skip


class Drawn:
    """A `Chooser` that draws at random, but for one parameter. Values are those of the parameter's own kind."""

    def __init__(self, drawn: random.Random, fixed: Parameter | None = None, value: Any = None):
        self._drawn, self._fixed, self._value = drawn, fixed, value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._of(name, Range(name=name, key=name, low=low, high=high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._of(name, Range(name=name, key=name, low=low, high=high, log=log, step=step, whole=True))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if self._fixed is not None and name == self._fixed.name:
            return self._fixed.drawn(self._value)
        return self._drawn.choice(list(choices))

    def _of(self, name: str, within: Range) -> Any:
        if self._fixed is not None and name == self._fixed.name:
            return self._value
        return within.at(self._drawn.random())


def _impossible(
    study: StudyConfig, space: Space, base: YamlDocument, values: Mapping[str, Any], parameter: Parameter, value: Any,
    drawn: random.Random,
) -> ConfigError | None:  # fmt: skip
    """What is wrong with a value, None where some recipe of the space can have it."""
    found: ConfigError | None = None
    for _ in range(_DRAWS):
        settings = space.settings(Drawn(drawn, parameter, value), values)
        if parameter.key not in settings or not space.holds(parameter, settings, values):
            continue
        try:
            trial_recipe(study, base, settings).check_packages()
            return None
        except ConfigError as error:
            found = found or error
    return found


def _typed(value: Any) -> Any:
    """A value for `apply_overrides`, which reads text as YAML."""
    if not isinstance(value, str):
        return value
    return value if parse_value(value) == value else json.dumps(value)
