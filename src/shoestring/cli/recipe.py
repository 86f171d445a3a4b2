"""`shoestring recipe list|show|check`:

what recipes there are, every setting of one, and whether one is right. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.compression.distill.config import load_distill_recipe
from shoestring.core import console
from shoestring.core.config import dump_yaml
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import load_finetune_recipe
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train.recipe import RunRecipe
from shoestring.train.recipe_files import list_recipes, recipe_job, recipe_name

# The jobs that have recipes.
_LOADERS: dict[str, Callable[..., RunRecipe]] = {
    "pretrain": load_pretrain_recipe, "finetune": load_finetune_recipe, "distill": load_distill_recipe,
}  # fmt: skip

Name = Annotated[str, Parameter(help="a built-in recipe, a YAML file, or a run folder")]

app = verb(
    "recipe",
    "List, show and check recipes.",
    (
        "shoestring recipe show quickstart",
        "shoestring recipe check quickstart --optimizer.learning_rate 1e-3",
    ),
)
_list = verb("list", "The built-in recipes.", ("shoestring recipe list", "shoestring recipe list --json"))
_show = verb(
    "show",
    "Every setting of a recipe, defaults included, as YAML; settings given on the line are applied.",
    ("shoestring recipe show quickstart", "shoestring recipe show elite-112m --train.steps 100 --json"),
)
_check = verb(
    "check",
    "Whether a recipe is right: all settings known, of the right type, possible together, and what it needs installed.",
    ("shoestring recipe check quickstart", "shoestring recipe check elite-112m --train.steps 100"),
)
for command in (_list, _show, _check):
    app.command(command)


@_list.default
def list_(*, json: Json = False) -> None:
    recipes = list_recipes()
    if json:
        console.print_json({"recipes": recipes})
    else:
        console.out.print(console.table(("recipe", "what for"), recipes.items()))


@_show.default
def show(recipe: Name, /, *, json: Json = False, overrides: Overrides = None) -> None:
    settings = _load(recipe, overrides)
    if json:
        console.print_json(settings.model_dump(mode="json"))
    else:
        print(dump_yaml(settings, comments=True), end="")


@_check.default
def check(recipe: Name, /, *, json: Json = False, overrides: Overrides = None) -> None:
    _load(recipe, overrides).check_packages()
    if json:
        console.print_json({"recipe": recipe_name(recipe), "ok": True})
    else:
        console.show(
            f"{recipe_name(recipe)}: every setting is known, of the right type, and possible together"
        )


def _load(recipe: str, overrides: dict[str, str] | None) -> RunRecipe:
    """A recipe of any job."""
    job = recipe_job(recipe)
    if job not in _LOADERS:
        raise ConfigError(f"{recipe}: unknown job {job!r}", hint=f"there are: {', '.join(_LOADERS)}")
    return _LOADERS[job](recipe, overrides)
