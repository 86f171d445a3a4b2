"""Recipes by name or path: the built-in ones are YAML files in `shoestring/recipes`. Torch-free.

A name is looked up among the built-ins, a path is read as it stands. Overrides are what the command line
calls `--dotted.key value`; choosing another length (steps, tokens, time, ...) drops the recipe's own. The key `job`
says which verb runs a recipe; without it, that is `pretrain`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from shoestring.core import console
from shoestring.core.config import load_config
from shoestring.core.config_keys import classes_at
from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import YamlDocument, read_document
from shoestring.train.recipe import RunRecipe, TrainSection

R = TypeVar("R", bound=RunRecipe)


def recipe_folder() -> Path:
    """Where the built-in recipes lie."""
    return Path(__file__).parent.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Names of the built-in recipes and what each is for, in alphabetical order."""
    files = sorted(recipe_folder().glob("*.yaml"))
    return {file.stem: str(read_document(file).values.get("description", "")) for file in files}


def is_built_in(name_or_path: str | Path) -> bool:
    return isinstance(name_or_path, str) and os.path.isfile(recipe_folder() / f"{name_or_path}.yaml")


def find_recipe(name_or_path: str | Path) -> Path:
    """The YAML file of a built-in name, a file, or a run folder.

    Raises ConfigError with the nearest name.
    """
    if is_built_in(name_or_path):
        return recipe_folder() / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    if os.path.isfile(path / "recipe.yaml"):
        return path / "recipe.yaml"
    names = list(list_recipes())
    close = difflib.get_close_matches(str(name_or_path), names, 1)
    lines = [f"did you mean {close[0]}?"] if close else []
    lines.append(f"built-in recipes: {', '.join(names)}; or give the path of a YAML file")
    raise ConfigError(f"there is no recipe {str(name_or_path)!r}", hint="\n".join(lines))


def read_recipe(name_or_path: str | Path) -> YamlDocument:
    """The recipe's settings, unchecked, with what it extends. Raises ConfigError."""
    file = find_recipe(name_or_path)
    return read_document(file, find=_extended(file))


def recipe_job(name_or_path: str | Path) -> str:
    """The verb that runs a recipe, as its `job` says. Raises ConfigError for a recipe that does not exist."""
    return _job(read_recipe(name_or_path))


def load_run_recipe(
    cls: type[R],
    name_or_path: str | Path | YamlDocument | R,
    overrides: dict[str, Any] | None = None,
    tell: bool = True,
) -> R:
    """The validated recipe of this class with overrides (dotted key -> value) applied. Raises ConfigError.

    tell: as `of_other_kinds` takes it.
    """
    overrides = _one_length(cls, dict(overrides or {}))
    if isinstance(name_or_path, cls):
        if not overrides:
            return name_or_path
        plain = YamlDocument(name_or_path.model_dump(mode="json", exclude_unset=True), name="the recipe")
        return load_config(cls, of_other_kinds(cls, plain, overrides, tell), overrides)
    if isinstance(name_or_path, YamlDocument):
        return load_config(cls, of_other_kinds(cls, name_or_path, overrides, tell), overrides)
    assert isinstance(name_or_path, (str, Path))
    document = read_recipe(name_or_path)
    job, mine = _job(document), cls.model_fields["job"].default
    if job != mine:
        raise ConfigError(f"{name_or_path} is a recipe of {job}", hint=f"shoestring {job} {name_or_path} runs it")
    hint = f"shoestring recipe show {name_or_path} lists all settings"
    return load_config(cls, of_other_kinds(cls, document, overrides, tell), overrides, hint=hint)


def of_other_kinds(
    cls: type[RunRecipe], document: YamlDocument, overrides: Mapping[str, Any], tell: bool = True
) -> YamlDocument:
    """The recipe without what does not go with another `optimizer.kind` or `schedule.kind` that is given over it.

    An optimizer's rates and decays are found for its kind, so another one begins from its own usual ones. A schedule
    keeps what the other kind has too. What goes is told, unless `tell` is false.
    """
    for section, kept in (("optimizer", {"in_backward"}), ("schedule", None)):
        written, kind = document.values.get(section), overrides.get(f"{section}.kind")
        if not isinstance(kind, str) or not isinstance(written, dict):
            continue
        kind = kind.strip()
        fields = {
            option.model_fields["kind"].default: set(option.model_fields) for option in classes_at(cls, [section])
        }
        before = written.get("kind", next(iter(fields)))
        if kind == before or kind not in fields:
            continue
        goes = [key for key in written if key not in (fields[kind] if kept is None else {"kind", *kept})]
        if goes and tell:
            console.say(f"{section} {kind}: without the recipe's {', '.join(goes)}, which {before} had")
        values = {key: value for key, value in written.items() if key not in goes}
        document = replace(document, values={**document.values, section: values})
    return document


def with_short(
    settings: Mapping[str, Any] | None, short: Mapping[str, str], given: Mapping[str, Any], flags: bool = False
) -> dict[str, Any]:
    """Dotted settings, and what was given by a short name: `short` says of which setting it is.

    flags: they stand on the command line. Raises ConfigError when two say different things.
    """
    together = dict(settings or {})
    for name, value in given.items():
        key = short[name]
        if value is not None and together.setdefault(key, value) != value:
            names = f"--{name.replace('_', '-')} and --{key}" if flags else f"{name} and {key}"
            raise ConfigError(f"{names} say different things{' (command line)' * flags}")
    return together


def recipe_name(name_or_path: str | Path | RunRecipe) -> str:
    """What a run of this recipe is called: the built-in's name or the file's stem."""
    if isinstance(name_or_path, RunRecipe):
        return "run"
    path = Path(name_or_path)
    if is_built_in(name_or_path) or path.name != "recipe.yaml":
        return path.stem if path.suffix in (".yaml", ".yml") else path.name
    return path.absolute().parent.name


def begun_with(recipe: R, name: str, changed: dict[str, Any]) -> R:
    """The recipe of a run: named after the one that it was made from, and described by what was changed in that.

    changed: dotted settings.
    """
    update = {"base": recipe.base or name}
    told = [f"{key} {value}" for key, value in changed.items() if value is not None and key != "out"]
    if told and changed.get("description") is None:
        update["description"] = f"{name} with {', '.join(told)}"
    return recipe.model_copy(update=update)


def _job(document: YamlDocument) -> str:
    return str(document.values.get("job", "pretrain"))


def _one_length(cls: type[RunRecipe], overrides: dict[str, Any]) -> dict[str, Any]:
    """One length given replaces the recipe's."""
    section = cls.model_fields["train"].annotation
    assert isinstance(section, type) and issubclass(section, TrainSection)
    keys = [f"train.{name}" for name in section.lengths]
    if any(overrides.get(key) is not None for key in keys):
        for key in keys:
            overrides.setdefault(key, None)
    return overrides


def _extended(file: Path) -> Callable[[str], Path]:
    """`extends: NAME` means a recipe beside the file, else a built-in one."""

    def find(name: str) -> Path:
        for beside in (file.parent / name, file.parent / f"{name}.yaml"):
            if os.path.isfile(beside):
                return beside
        return recipe_folder() / f"{name}.yaml"

    return find
