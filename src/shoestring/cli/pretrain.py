"""`shoestring pretrain RECIPE`: train a model; the recipe's settings are flags, `--dotted.key value`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.launch import Gpus, Ranks, Restarts, launched
from shoestring.cli.over import Listen, OverMachines, Token, Wait, alone, run_over
from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.pretraining.config import SHORT, load_pretrain_recipe
from shoestring.train.recipe_files import with_short

app = verb(
    "pretrain",
    "Train a model from a recipe. Every setting of the recipe is a flag too: --optimizer.learning_rate 1e-3.",
    (
        "shoestring pretrain quickstart --time 2m",
        "shoestring pretrain quickstart-smoke --train.steps 5 --optimizer.learning_rate 1e-3",
    ),
)


@app.default
def pretrain(
    recipe: Annotated[str | None, Parameter(help="a built-in recipe, a YAML file, or a run folder")] = None,
    /,
    *,
    resume: Annotated[
        Path | None, Parameter(help="continue the run in this folder; auto: the one in --out, if there is one")
    ] = None,
    time: Annotated[str | None, Parameter(help="how long to train, such as 2m or 1h30m (train.time)")] = None,
    memory: Annotated[
        str | None,
        Parameter(help="the whole process at most, as 2GB; blocks are computed again if they must (budget.memory)"),
    ] = None,
    fp8: Annotated[
        bool | None,
        Parameter(
            help="products of blocks in FP8, on a GPU that has units for it (precision.fp8)", negative="--no-fp8"
        ),
    ] = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    restarts: Restarts = None,
    out: Annotated[str | None, Parameter(help="the run's folder (out) [runs/RECIPE-N]")] = None,
    over: OverMachines = None,
    listen: Listen = None,
    wait: Wait = None,
    token: Token = None,
    json: Json = False,
    overrides: Overrides = None,
) -> int | None:
    if recipe is None and resume is None:
        raise ConfigError("pretrain needs a recipe", hint="shoestring recipe list shows the built-in ones")
    settings = with_short(overrides, SHORT, {"time": time, "memory": memory, "fp8": fp8, "out": out}, flags=True)
    device, place = settings.get("device"), resume or settings.get("out")
    if recipe is not None:
        given = load_pretrain_recipe(recipe, settings)  # a mistake is reported before torch is imported
        device, place = given.device, place or given.out
    if over is not None or (listen, wait, token) != (None, None, None):
        alone(ranks, gpus, restarts)
        from shoestring.laptops.over import pretrain_over

        run_over(pretrain_over, (over, listen, wait, token), json, recipe, resume=resume, overrides=settings)
        return None
    if (code := launched(ranks, gpus, restarts, device, place)) is not None:
        return code
    from shoestring.pretraining.job import pretrain as train
    from shoestring.train import parallel

    result = train(recipe, resume=resume, overrides=settings)
    if parallel.rank() != 0:
        return None
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
    return None
