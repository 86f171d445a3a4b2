"""A study's folder, and the study in its journal.

    OUT/study.yaml        what kind of study (`search.config`)
    OUT/base.yaml         the recipe that it began with
    OUT/space.yaml        what may change in it, with everything that was relative to the recipe worked out
    OUT/journal.log       Optuna's journal: every trial
    OUT/trials/0007.yaml  the recipe of a trial; OUT/trials/0007/ its run, 0007.log what it said
    OUT/best.yaml         the best recipe so far (with two objectives: front-0007.yaml, ...)
    OUT/report.html       the page that shows it all

The first three are written at once, and are whole or not there. Several processes, also on several machines, may be at
work in one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.config import dump_values, dump_yaml, load_config
from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import atomic_folder, atomic_write
from shoestring.core.yaml_document import YamlDocument, read_document
from shoestring.search.config import StudyConfig
from shoestring.search.jobs import searched_job
from shoestring.search.journal import JOURNAL, damaged, load_optuna, open_journal
from shoestring.search.parameters import Choices, Parameter, Range
from shoestring.search.recipes import base_document, complete
from shoestring.search.space import Space, read_space
from shoestring.train.recipe import RunRecipe
from shoestring.train.recipe_files import load_run_recipe

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

STUDY, BASE, SPACE, TRIALS, REPORT, BEST = (
    "study.yaml", "base.yaml", "space.yaml", "trials", "report.html", "best.yaml"
)  # fmt: skip
_DIGEST = "digest"


@dataclass(frozen=True)
class StudyFolder:
    """base: the recipe as it was written; recipe: the same, checked; values: all that it says, defaults included."""

    path: Path
    config: StudyConfig
    base: YamlDocument
    recipe: RunRecipe
    space: Space

    @property
    def values(self) -> dict[str, Any]:
        return complete(self.recipe)

    def trial(self, number: int, suffix: str = "") -> Path:
        return self.path / TRIALS / f"{number:04d}{suffix}"

    def digest(self) -> str:
        """Of what makes trials comparable: recipe, space, objectives, and how long a trial is."""
        config = self.config
        whole = [
            config.job, self.base.values, dump_space(self.space), config.objectives, config.budget.model_dump(),
            config.suite.model_dump(mode="json"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    def opened(self) -> tuple[Study, BaseStorage]:
        """The study in the journal, begun if there is none yet, and what keeps it. Raises RunError for a journal of
        another study, or one that cannot be read."""
        optuna = load_optuna()
        journal = self.path / JOURNAL
        storage = open_journal(self.path)
        try:
            found = storage.get_all_studies()
            name = f"{self.config.recipe} {self.digest()[:6]}"  # by which Hyperband deals its brackets
            if not found:
                if journal.stat().st_size:
                    raise damaged(journal, "no study begins in it")
                study = optuna.create_study(
                    storage=storage, study_name=name, directions=self.config.directions, load_if_exists=True
                )
                study.set_user_attr(_DIGEST, self.digest())
                study.set_metric_names(list(self.config.objectives))
                return study, storage
            attrs = found[0].user_attrs
            if len(found) > 1 or attrs.get(_DIGEST, self.digest()) != self.digest():
                raise RunError(
                    "this journal is of a study of another recipe, space or objective", str(journal),
                    "put back the journal that belongs to this folder, or begin another with --out",
                )  # fmt: skip
            study = optuna.load_study(study_name=found[0].study_name, storage=storage)
            if _DIGEST not in attrs:  # whoever began it was killed right then
                study.set_user_attr(_DIGEST, self.digest())
            for trial in study.get_trials(deepcopy=False):
                if not _is_sound(trial, self.space):
                    raise damaged(journal, f"trial {trial.number} holds what no trial has")
            return study, storage
        except RunError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise damaged(journal, f"{type(error).__name__}: {error}") from error


def _is_sound(trial: FrozenTrial, space: Space) -> bool:
    """Whether a trial of a journal, which anyone may have written, holds values of the kinds that it must."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    kinds = {"settings": dict, "grid point": int, "generation": int, "tokens": int, "steps": int, "reason": str}
    attrs, own = trial.user_attrs, {one.name: one for one in space.parameters}
    kept = {name: [one.drawn(value) for value in one.values] for name, one in own.items() if isinstance(one, Choices)}
    return (
        all(isinstance(attrs[name], kind) for name, kind in kinds.items() if name in attrs)
        and number(attrs.get("seconds", 0.0))
        and all(number(value) and abs(value) < 1e300 for value in trial.values or [])
        and all(type(step) is int and number(value) for step, value in trial.intermediate_values.items())
        and all(
            value in kept[name] if name in kept else own[name].contains(value)
            for name, value in trial.params.items()
            if name in own
        )
        and (trial.state.name != "COMPLETE" or "settings" in attrs)
    )


def create(path: Path, config: StudyConfig, recipe: RunRecipe, space: Space) -> StudyFolder:
    """Write a new study's folder. Raises RunError where something stands there."""
    base = base_document(recipe)
    with atomic_folder(path) as folder:
        (folder / BASE).write_text(dump_values({"job": config.job, **base.values}), encoding="utf-8")
        (folder / SPACE).write_text(dump_values(dump_space(space)), encoding="utf-8")
        (folder / STUDY).write_text(dump_yaml(config, comments=True), encoding="utf-8")
    return open_study(path)


def open_study(path: str | Path) -> StudyFolder:
    """Raises RunError where there is none, and ConfigError for files of it that someone has damaged."""
    path = Path(path)
    if not (path / STUDY).is_file():
        raise RunError(
            "there is no study here", str(path), "give the --out folder of a search, or a recipe to begin one"
        )
    config = load_config(StudyConfig, path / STUDY)
    document = read_document(path / BASE)
    recipe = load_run_recipe(searched_job(config.job).recipe, document, tell=False)
    space = read_space(path / SPACE, complete(recipe))
    return StudyFolder(path, config, base_document(recipe), recipe, space)


def save_config(study: StudyFolder, config: StudyConfig) -> StudyFolder:
    """With other settings, which do not change what a trial is."""
    with atomic_write(study.path / STUDY) as file:
        file.write(dump_yaml(config, comments=True))
    return StudyFolder(study.path, config, study.base, study.recipe, study.space)


def check_same_recipe(study: StudyFolder, recipe: RunRecipe) -> None:
    """Raises ConfigError, by the settings that differ, for a study of another recipe."""
    if study.config.job != recipe.job:
        raise ConfigError(f"the study in {study.path} is of a recipe of {study.config.job}, not of {recipe.job}")
    before, now = _flat(complete(study.recipe)), _flat(complete(recipe))
    ignored = ("base", "description", "out")
    differ = [key for key in {**before, **now} if key not in ignored and before.get(key, ...) != now.get(key, ...)]
    if differ:
        raise ConfigError(
            f"the study in {study.path} is of another recipe, which differs in {', '.join(differ[:5])}",
            hint="leave out the recipe to go on with the study, or begin another with --out",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def dump_space(space: Space) -> dict[str, Any]:
    """As it stands in a file: what was relative to a recipe is worked out."""
    found: dict[str, list[Any]] = {}
    for parameter in space.parameters:
        found.setdefault(parameter.key, []).append(_dump(parameter))
    return {key: every[0] if len(every) == 1 else every for key, every in found.items()}


def _dump(parameter: Parameter) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(parameter, Range):
        kind = {(False, False): "uniform", (True, False): "log", (False, True): "int", (True, True): "log_int"}
        ends = (int(parameter.low), int(parameter.high)) if parameter.whole else (parameter.low, parameter.high)
        values = {kind[parameter.log, parameter.whole]: [*ends], "points": parameter.points}
        if parameter.step is not None:
            values["step"] = parameter.step
    elif isinstance(parameter, Choices):
        values = {"choices": [list(value) if isinstance(value, tuple) else value for value in parameter.values]}
    if parameter.when:
        values["when"] = {one.key: list(one.values) for one in parameter.when}
    return values
