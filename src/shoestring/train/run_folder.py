"""Starting a run's folder, and continuing one: what a resume may change and what it may not.

A run that continued with other settings would be neither run, so anything that its numbers depend on must
be equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from shoestring.core.config import Config, dump_yaml
from shoestring.core.errors import RunError
from shoestring.core.files import atomic_write
from shoestring.train.recipe import load_recipe

RECIPE = "recipe.yaml"
R = TypeVar("R", bound=Any)  # Recipe, or another kind of run's, with `out` and `precision`
_MAY_CHANGE = ("description", "out", "train.keep")
_MAY_CHANGE_SECTION = "log."


def new_run(recipe: R, name: str, out: str | Path | None) -> tuple[R, Path]:
    """The recipe with its `out`, and the folder made: `out`, or the first free runs/NAME-N.

    Raises RunError if taken.
    """
    chosen = out if out is not None else recipe.out
    folder = Path(chosen) if chosen is not None else _next_free(Path("runs"), name)
    if folder.exists() and not folder.is_dir():
        raise RunError("this is a file, not a folder", str(folder), "choose another --out")
    if (folder / RECIPE).exists():
        raise RunError(
            "there is a run in this folder already",
            str(folder),
            f"continue it with --resume {folder}, or choose another --out",
        )
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise RunError("this folder is not empty", str(folder), "choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe.model_copy(update={"out": str(folder)})
    save_recipe(recipe, folder)
    return recipe, folder


def save_recipe(recipe: Config, folder: Path) -> None:
    with atomic_write(folder / RECIPE) as file:
        file.write(dump_yaml(recipe))


def find_run(text: str | Path) -> Path:
    """The run folder that OUT, OUT/latest or OUT/step-N names. Raises RunError."""
    path = Path(text)
    if (path / RECIPE).is_file():
        return path
    if (path.name in ("latest", "best") or path.name.startswith("step-")) and (path.parent / RECIPE).is_file():
        return path.parent
    raise RunError("no run to resume here: there is no recipe.yaml", str(path), "give the --out folder of a run")


def resumed_recipe(
    folder: Path,
    given: Any,
    overrides: dict[str, Any] | None,
    load: Callable[..., Any] = load_recipe,
) -> Any:
    """The recipe of the run in `folder`, with the harmless changes that are asked for.

    given: a recipe named on the command line as well. load: reads a recipe of this kind, with overrides. Raises
    RunError naming the settings that differ.
    """
    saved = load(folder / RECIPE)
    wanted = given if given is not None else load(folder / RECIPE, overrides)
    if wanted.precision.compute == "auto":  # the run has settled that
        wanted = wanted.model_copy(update={"precision": saved.precision})
    if wanted.out is not None and Path(wanted.out).absolute() not in (
        folder.absolute(),
        Path(saved.out or "").absolute(),
    ):
        raise RunError("a resumed run stays in its folder", str(folder), "leave out --out")
    differing = [key for key in _differences(saved, wanted) if not _may_change(key)]
    if differing:
        before, now = _flat(saved.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
        lines = [f"{key}: {_show(before, key)} in the run, {_show(now, key)} now" for key in differing]
        lines.append("a resume may change only log.*, train.keep and description; for anything else start a new run,")
        lines.append("or continue from this model with --model.init")
        raise RunError(f"the recipe differs from the run's in {', '.join(differing)}", str(folder), "\n".join(lines))
    return wanted.model_copy(update={"out": saved.out})


def _differences(first: Config, second: Config) -> list[str]:
    before, now = _flat(first.model_dump(mode="json")), _flat(second.model_dump(mode="json"))
    return [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]


def _may_change(key: str) -> bool:
    return key in _MAY_CHANGE or key.startswith(_MAY_CHANGE_SECTION)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _show(values: dict[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"


def _next_free(parent: Path, name: str) -> Path:
    """Make and return parent/NAME-N; making it is what claims it from another process."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        try:
            (parent / f"{name}-{number}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{name}-{number}"
    raise AssertionError("unreachable")
