"""`shoestring pretrain RECIPE`: train a model, or `--resume OUT` to go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.train.recipe import load_recipe

app = verb(
    "pretrain",
    "Train a model from a recipe; any setting of the recipe can be given as --dotted.key value.",
    (
        "shoestring pretrain quickstart --time 3m",
        "shoestring pretrain quickstart-smoke --optimizer.learning_rate 1e-3",
    ),
)


@app.default
def pretrain(
    recipe: Annotated[str | None, Parameter(help="a built-in recipe, a YAML file, or a run folder")] = None,
    /,
    *,
    resume: Annotated[Path | None, Parameter(help="the folder of a run to go on with")] = None,
    time: Annotated[str | None, Parameter(help="stop within this wall clock, as 3m (train.time)")] = None,
    out: Annotated[str | None, Parameter(help="the run's folder; default runs/NAME-N")] = None,
    memory: Annotated[str | None, Parameter(help="peak of the whole process (budget.memory)")] = None,
    json: Json = False,
    overrides: Overrides = None,
) -> None:
    changed = dict(overrides or {})
    for key, value in (("train.time", time), ("out", out), ("budget.memory", memory)):
        if value is not None:
            changed[key] = value
    if recipe is None and resume is None:
        raise ConfigError("pretrain needs a recipe, or --resume OUT", hint="shoestring recipe list names them")
    if resume is not None and out is not None:
        raise ConfigError("a resumed run stays in its folder: --out cannot be given with --resume")
    if recipe is not None:
        load_recipe(recipe, changed)  # a mistake is told before torch is imported
    from shoestring.train.pretrain import pretrain as run

    result = run(recipe, resume, changed)
    if json:
        console.print_json(result.to_json())
    else:
        console.out.print(str(result))
