"""`shoestring pretrain RECIPE`: train a model; the recipe's settings are flags, `--dotted.key value`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb, with_flags
from shoestring.core import console
from shoestring.core.errors import BudgetError, ConfigError
from shoestring.train.recipe import load_recipe

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
    resume: Annotated[Path | None, Parameter(help="continue the run in this folder")] = None,
    time: Annotated[str | None, Parameter(help="how long to train, such as 2m or 1h30m (train.time)")] = None,
    memory: Annotated[str | None, Parameter(help="not offered yet: refused", show=False)] = None,
    out: Annotated[str | None, Parameter(help="the run's folder (out); runs/RECIPE-N if not given")] = None,
    json: Json = False,
    overrides: Overrides = None,
) -> None:
    if memory is not None:
        raise BudgetError(
            "pretrain cannot keep to a memory budget yet, so it refuses --memory",
            hint="a smaller train.microbatch and train.checkpoint_blocks true take less memory",
        )
    if recipe is None and resume is None:
        raise ConfigError("pretrain needs a recipe", hint="shoestring recipe list shows the built-in ones")
    settings = with_flags(overrides, (("--time", "train.time", time), ("--out", "out", out)))
    if recipe is not None:
        load_recipe(recipe, settings)  # a mistake is reported before torch is imported
    from shoestring.train import parallel
    from shoestring.train.interrupt import Interrupted
    from shoestring.train.pretrain import pretrain as train

    try:
        result = train(recipe, resume=resume, overrides=settings)
    except Interrupted as stopped:  # what the user asked for is not an error
        console.err.print(str(stopped))
        raise SystemExit(stopped.exit_code) from None
    if parallel.rank() != 0:
        return
    if json:
        console.print_json(result.to_json())
    else:
        print(result)
