"""Who proposes the next trial, and who ends one early: TPE, random, grid and CMA-ES; Hyperband and the median.

A proposer is made anew for each trial, seeded by the study's seed and the trial's number, and knows nothing but the
trials that are there: so a study that was killed goes on as it would have.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError
from shoestring.core.extras import need
from shoestring.search.cma import Strategy, ranges
from shoestring.search.config import EVALUATIONS, StudyConfig
from shoestring.search.folder import StudyFolder
from shoestring.search.journal import load_optuna
from shoestring.search.space import Space, value_of

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

# User attributes of a trial.
SETTINGS, BASELINE, POINT, GENERATION, LOST = "settings", "baseline", "grid point", "generation", "lost"
MOST_POINTS = 100_000  # of a grid


def sampler(study: StudyFolder, number: int) -> BaseSampler:
    """For the trial of this number."""
    samplers = load_optuna().samplers
    seed = _seed(study.config.seed, number)
    if study.config.sampler == "tpe":
        startup = min(10, max(study.config.trials // 4, 3))  # trials at random, before there is something to go by
        return samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
        )
    return samplers.RandomSampler(seed=seed)


def pruner(study: StudyFolder) -> BasePruner:
    """By evaluations: a run has ten, at each tenth of its way."""
    pruners = load_optuna().pruners
    if study.config.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=EVALUATIONS, reduction_factor=3)
    if study.config.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    return pruners.NopPruner()


def proposal(study: StudyFolder, trials: Sequence[FrozenTrial]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Values by parameter that the next trial must have, and its attributes; no values where a sampler is to draw all.

    None once a grid is through. trials: all that count.
    """
    if study.config.baseline and not any(BASELINE in trial.user_attrs for trial in trials):
        own = _as_it_is(study)
        return own, {BASELINE: list(own)}
    if study.config.sampler == "grid":
        return _next_point(study, trials)
    if study.config.sampler == "cmaes":
        return _from_strategy(study, trials)
    return {}, {}


def check(config: StudyConfig, space: Space, base: dict[str, Any]) -> None:
    """Raises ConfigError for a space that the sampler cannot search."""
    if config.sampler == "grid":
        grid_size(space, base)
    elif config.sampler == "cmaes":
        need("cmaes", "--sampler cmaes", "search")
        if len(ranges(space)) < 2:
            raise ConfigError(
                "cmaes moves ranges without conditions, and this space has fewer than two", hint="take --sampler tpe"
            )


def grid_size(space: Space, base: dict[str, Any]) -> int:
    """Points of the grid. Raises ConfigError for more than anyone has time for."""
    count = sum(1 for _ in itertools.islice(space.grid(base), MOST_POINTS + 1))
    if count > MOST_POINTS:
        raise ConfigError(
            f"the grid has more than {MOST_POINTS:,} points", hint="give ranges fewer `points`, or take --sampler tpe"
        )
    return count


def _as_it_is(study: StudyFolder) -> dict[str, Any]:
    """The recipe's own values, of those parameters that contain them."""
    values = study.values
    found = {}
    for parameter in study.space.parameters:
        own = value_of(parameter.key, {}, values)
        if study.space.holds(parameter, {}, values) and parameter.contains(own):
            found[parameter.name] = parameter.drawn(own)
    return found


def _next_point(study: StudyFolder, trials: Sequence[FrozenTrial]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """In an order of the seed's, so that a grid that was stopped has been everywhere a little."""
    points = list(study.space.grid(study.values))
    random.Random(study.config.seed).shuffle(points)
    taken = {trial.user_attrs.get(POINT) for trial in trials}
    for number, point in enumerate(points):
        if number not in taken:
            active = study.space.active(point, study.values)
            return {one.name: one.drawn(point[one.key]) for one in active}, {POINT: number}
    return None


def _from_strategy(study: StudyFolder, trials: Sequence[FrozenTrial]) -> tuple[dict[str, Any], dict[str, Any]]:
    strategy = Strategy(study.space, _seed(study.config.seed, len(trials)), study.config.directions == ["minimize"])
    finished = [
        (trial.user_attrs[GENERATION], trial.params, trial.values[0] if trial.state.name == "COMPLETE" else None)
        for trial in trials
        if GENERATION in trial.user_attrs and trial.state.is_finished()
    ]
    strategy.replay(finished)
    return strategy.ask(), {GENERATION: strategy.generation}


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "little")
