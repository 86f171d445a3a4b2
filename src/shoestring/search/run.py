"""`search(recipe, space)`: a study over any setting of a recipe. What `shoestring search` does.

Each trial is a run in a process of its own (`search.trial`), so that one that fails, or is too large, is one trial and
not the search. This process proposes trials, ends hopeless ones, and keeps the journal; a trial whose process died is
gone on with, under its own number, by whoever searches in this folder next.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.config import load_config
from shoestring.core.errors import ConfigError, RunError
from shoestring.core.interrupt import EXIT_CODE, answered
from shoestring.core.units import parse_count, parse_seconds
from shoestring.core.waiting import waiting
from shoestring.core.yaml_document import YamlDocument
from shoestring.search.config import StudyConfig, TrialBudget
from shoestring.search.folder import StudyFolder, check_same_recipe, create, open_study, save_config
from shoestring.search.jobs import searched_job
from shoestring.search.journal import load_optuna
from shoestring.search.proposing import check, grid_size
from shoestring.search.recipes import base_document, check_space, complete, trial_recipe
from shoestring.search.results import SearchResult, collect, write_results
from shoestring.search.session import Session
from shoestring.search.space import find_space, read_space, space_folder
from shoestring.train.recipe import RunRecipe
from shoestring.train.recipe_files import load_run_recipe, recipe_job, recipe_name
from shoestring.train.run_folder import next_free

OVERHEAD = 10.0  # seconds of a trial besides its training: a process, data, the last evaluation
DEFAULT_SPACE = "default"


class Stopped(RunError):
    """The user asked the search to stop; every trial is saved."""

    exit_code = EXIT_CODE


def search(
    recipe: str | Path | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    *,
    resume: str | Path | None = None,
    trials: int | None = None,
    timeout: str | float | None = None,
    until: float | None = None,
    objective: str | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    trial_tokens: str | int | None = None,
    trial_time: str | float | None = None,
    workers: int = 1,
    memory: str | int | None = None,
    baseline: bool | None = None,
    keep: str | None = None,
    suite_items: int | None = None,
    suite_only: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> SearchResult:
    """Search the settings of a recipe for the best, or go on with the study in the folder `resume`.

    space: a name, a YAML file, or the same as a dictionary; by default the job's own. objective: one of
    `search.config.OBJECTIVES`, or two with a comma. timeout: of this call; what is under way then is saved, and goes on
    when the study does. until: the search ends with a trial whose first objective is as good. trial_tokens, trial_time:
    how long each trial is. The recipe's other settings are overrides by dotted names, or keywords with two underscores
    for a dot. Raises ConfigError, RunError, and Stopped when the user stopped it.
    """
    load_optuna()
    given = {
        "objectives": None if objective is None else [name.strip() for name in objective.split(",")],
        "sampler": sampler, "pruner": pruner, "trials": trials, "memory": memory, "baseline": baseline, "keep": keep,
        "seed": seed, "suite": _suite(suite_items, suite_only),
        "budget": _budget(trial_tokens, trial_time),
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if workers < 1:
        raise ConfigError(f"workers: expected a number above 0, found {workers}")
    seconds = None if timeout is None else parse_seconds(timeout)
    changed = {**(overrides or {}), **{key.replace("__", "."): value for key, value in settings.items()}}
    if resume is not None:
        study = _resumed(Path(resume), recipe, space, changed, given, out)
    elif recipe is None:
        raise ConfigError("give a recipe, or a study to resume", hint="shoestring recipe list names the built-in ones")
    else:
        study = begin(recipe, space, changed, given, seconds, workers, out)
    return _search(study, seconds, workers, until)


def begin(
    recipe: str | Path,
    space: str | Path | Mapping[str, Any] | None,
    overrides: dict[str, Any],
    given: dict[str, Any],
    timeout: float | None = None,
    workers: int = 1,
    out: str | Path | None = None,
) -> StudyFolder:
    """A new study's folder, once everything about it has been checked. Raises ConfigError and RunError."""
    config, loaded, checked = planned(recipe, space, overrides, given, timeout, workers)
    path = Path(out) if out is not None else next_free(Path("runs"), f"search-{recipe_name(recipe)}")
    return create(path, config, loaded, checked)


def planned(
    recipe: str | Path,
    space: str | Path | Mapping[str, Any] | None,
    overrides: dict[str, Any],
    given: dict[str, Any],
    timeout: float | None = None,
    workers: int = 1,
) -> tuple[StudyConfig, RunRecipe, Any]:
    """What a new study will be, its recipe and its space; writes nothing. Raises ConfigError."""
    name = recipe_job(recipe)
    job = searched_job(name)
    loaded = load_run_recipe(job.recipe, recipe, overrides)
    objectives = given.get("objectives", [job.quality])
    alone = len(objectives) == 1 and objectives[0] in ("loss", "bits_per_byte")
    values = {"pruner": "hyperband" if alone and given.get("sampler") != "grid" else "none", **given}
    values |= {"recipe": recipe_name(recipe), "job": name, "objectives": list(objectives)}
    config = load_config(StudyConfig, YamlDocument(values, name="the search"))
    source = job.space if space is None or space == DEFAULT_SPACE else space
    read = read_space(source, complete(loaded))
    named = not isinstance(source, Mapping) and find_space(source).parent == space_folder()
    if config.sampler == "grid" and "trials" not in given:
        config = config.model_copy(update={"trials": grid_size(read, complete(loaded)) + config.baseline})
    if "budget" not in given:
        budget = _own_budget(loaded, None if timeout is None else timeout * workers / config.trials)
        config = config.model_copy(update={"budget": budget})
    trial_recipe(config, base_document(loaded), {})  # a length that this recipe cannot have is told now
    checked = check_space(config, read, base_document(loaded), loaded, named)
    check(config, checked, complete(loaded))
    return config, loaded, checked


def _own_budget(recipe: RunRecipe, share: float | None) -> TrialBudget:
    """How long each trial is where nobody says: as long as the recipe, in tokens rather than in steps, which may become
    larger ones; or shorter, where the time for all of them does not suffice. share: seconds of it for each."""
    train = recipe.train
    if train.time is not None:
        length = train.time if share is None else min(train.time, round(max(share - OVERHEAD, share / 2), 1))
        return TrialBudget(time=length)
    tokens = getattr(train, "planned_tokens", None)
    if tokens is None and train.steps is not None and getattr(train, "batch_rows", None) is None:
        tokens = train.steps * train.batch_tokens
    return TrialBudget(tokens=tokens)


def _resumed(
    path: Path, recipe: str | Path | None, space: Any, overrides: dict[str, Any], given: dict[str, Any], out: Any
) -> StudyFolder:
    study = open_study(path)
    if out is not None and Path(out).absolute() != path.absolute():
        raise RunError("a study that goes on stays in its folder", str(path), "leave out --out")
    if recipe is not None:
        name = recipe_job(recipe)
        check_same_recipe(study, load_run_recipe(searched_job(name).recipe, recipe, overrides, tell=False))
    elif overrides:
        raise ConfigError(f"the study in {path} has its recipe: {', '.join(overrides)} cannot change now")
    if space is not None:
        raise ConfigError(f"the study in {path} has its space", hint="leave out --space, or begin another with --out")
    fixed = [name for name in given if name not in ("trials", "keep", "sampler", "pruner", "memory")]
    differ = [name for name in fixed if not _alike(getattr(study.config, name), given[name])]
    if differ:
        raise ConfigError(
            f"the study in {path} has another {differ[0]}, and its trials could not be compared with new ones",
            hint="leave it out, or begin another study with --out",
        )
    changed = {name: value for name, value in given.items() if name not in fixed}
    if changed:
        values = {**study.config.model_dump(mode="json"), **changed}
        study = save_config(study, load_config(StudyConfig, YamlDocument(values, name="the search")))
    check(study.config, study.space, study.values)
    return study


def _alike(had: Any, wanted: Any) -> bool:
    if hasattr(had, "model_dump"):
        return all(_alike(getattr(had, name), value) for name, value in wanted.items())
    return list(had) == list(wanted) if isinstance(had, tuple) else had == wanted


def _budget(tokens: str | int | None, seconds: str | float | None) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if tokens is not None:
        found["tokens"] = parse_count(tokens)
    if seconds is not None:
        found["time"] = parse_seconds(seconds)
    return found or None


def _suite(items: int | None, only: str | None) -> dict[str, Any] | None:
    found: dict[str, Any] = {} if items is None else {"items": items}
    if only is not None:
        found["only"] = [name.strip() for name in only.split(",") if name.strip()]
    return found or None


def _search(study: StudyFolder, timeout: float | None, workers: int, until: float | None) -> SearchResult:
    session = Session(study, workers, until)
    _tell(study, session)
    deadline = None if timeout is None else time.monotonic() + timeout
    threads = [threading.Thread(target=session.work, name=f"worker {n}", daemon=True) for n in range(workers)]
    stopped = False
    with waiting("search    trials", study.config.trials) as told:
        told.found(session.done())
        session.told = told
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            try:
                for thread in threads:
                    thread.join(0.1)
                if deadline is not None and time.monotonic() > deadline and not session.stopping:
                    session.stop()
            except KeyboardInterrupt:
                answered()
                if stopped:
                    os._exit(EXIT_CODE)
                stopped = True
                session.stop()
                console.say("stopping: trials under way save themselves; again to stop at once")
    if session.error is not None:
        raise session.error
    with session.lock:
        result = collect(study, session.optuna)
        write_results(study, session.optuna, result)
    goes_on = f"continue with: shoestring search --resume {study.path}"
    if stopped:
        raise Stopped(f"stopped after {result.finished} trials; saved in {study.path}", hint=goes_on)
    if result.best is None:
        reason = f"; the last one that failed: {result.last_failure.splitlines()[0]}" if result.last_failure else ""
        raise RunError(f"no trial has come to its end yet, of {result.trials}{reason}", str(study.path), goes_on)
    return result


def _tell(study: StudyFolder, session: Session) -> None:
    config = study.config
    many = len(study.space.parameters)
    length = "as long as the recipe says"
    if config.budget.tokens is not None:
        length = f"{config.budget.tokens:,} tokens each"
    elif config.budget.time is not None:
        length = f"{config.budget.time:g} seconds each"
    how = config.sampler + ("" if config.pruner == "none" else f" with {config.pruner}")
    console.say(
        "\n".join(
            [
                f"study     {config.recipe}: {' and '.join(config.objectives)}, by {how}",
                f"out       {study.path}",
                f"space     {many} setting{'s' * (many != 1)}: {', '.join(one.name for one in study.space.parameters)}",
                f"trials    {config.trials}, {length}; {session.done()} done",
            ]
        )
    )
