"""`shoestring search RECIPE --space F`: a study over any setting of a recipe, by Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.extras import need

app = verb(
    "search",
    "Search the settings of a recipe for the best: many short runs, each a trial, hopeless ones ended early.",
    (
        "shoestring search quickstart --trials 12 --timeout 6m",
        "shoestring search quickstart-smoke --space optimizers --trials 6 --trial-tokens 8k",
    ),
)


@app.default
def search(
    recipe: Annotated[str | None, Parameter(help="a built-in recipe, a YAML file, or a run folder")] = None,
    /,
    *,
    space: Annotated[
        str | None,
        Parameter(help="a YAML file, or by name: pretrain, finetune, distill, optimizers [as the recipe's job]"),
    ] = None,
    trials: Annotated[
        int | None, Parameter(help="in all, failed and pruned ones included [20; grid: its points]")
    ] = None,
    timeout: Annotated[
        str | None, Parameter(help="for this command, as 1h; what is under way then is saved, for --resume")
    ] = None,
    until: Annotated[
        float | None, Parameter(help="how good a trial ends the search, in its first objective, as 1.9 [none does]")
    ] = None,
    objective: Annotated[
        str | None,
        Parameter(
            help="loss, bits_per_byte, suite; or with a comma two of these, bytes, seconds and memory, for a front"
            " [loss; of pretraining bits_per_byte]"
        ),
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid", "cmaes"] | None, Parameter(help="who proposes the next trial [tpe]")
    ] = None,
    pruner: Annotated[
        Literal["hyperband", "median", "none"] | None,
        Parameter(help="who ends trials early, by the run's own evaluations [hyperband; none for a grid or a front]"),
    ] = None,
    trial_tokens: Annotated[str | None, Parameter(help="of each trial, as 500k: the same for all")] = None,
    trial_time: Annotated[
        str | None,
        Parameter(
            help="of each trial, as 30s; beside --trial-tokens the most that they may take [the recipe's own length, or"
            " what --timeout leaves]"
        ),
    ] = None,
    workers: Annotated[int, Parameter(help="trials at once on this machine, which share its cores")] = 1,
    memory: Annotated[str | None, Parameter(help="of each trial's process at most, as 2GB")] = None,
    baseline: Annotated[
        bool | None,
        Parameter(help="the first trial is the recipe as it is [yes]", negative="--no-baseline"),
    ] = None,
    keep: Annotated[
        Literal["best", "all", "none"] | None, Parameter(help="whose weights stay on the disk [best]")
    ] = None,
    suite_items: Annotated[int | None, Parameter(help="questions of each category, for --objective suite [30]")] = None,
    suite_only: Annotated[
        str | None, Parameter(help="categories or groups, with commas, for --objective suite [all]")
    ] = None,
    seed: Annotated[int | None, Parameter(help="of what is proposed [1]")] = None,
    out: Annotated[Path | None, Parameter(help="the study's folder [runs/search-RECIPE-N]")] = None,
    resume: Annotated[
        Path | None, Parameter(help="go on with the study in this folder; also beside others at work in it")
    ] = None,
    json: Json = False,
    overrides: Overrides = None,
) -> None:
    if recipe is None and resume is None:
        raise ConfigError("search needs a recipe", hint="shoestring search quickstart, or --resume OUT")
    need("optuna", "search", "search")
    from shoestring.search.run import search as look

    given: dict[str, Any] = {
        "trials": trials, "timeout": timeout, "until": until, "objective": objective,
        "sampler": sampler, "pruner": pruner,
        "trial_tokens": trial_tokens, "trial_time": trial_time, "workers": workers, "memory": memory,
        "baseline": baseline, "keep": keep, "suite_items": suite_items, "suite_only": suite_only, "seed": seed,
        "out": out,
    }  # fmt: skip
    result = look(recipe, space, resume=resume, overrides=overrides, **given)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
