"""`python -m shoestring.laptops.survey`: what a run over several machines is made of, looked at once on the first one.

Model and data are opened as the run will open them, so that a mistake is told before any machine is waited for; a new
run gets its folder. What comes back is plain data: the job's shape, and which files the others need in which place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.laptops.answering import answer
from shoestring.laptops.order import ASKED
from shoestring.laptops.shape import to_json

MODEL = "model"  # the folder of the model, below that of the files
# Answers before and after, and going back to an earlier checkpoint, read the run's folder, which the first machine has.
_ONE_MACHINE = {"train.rollbacks": 0}


@dataclass(frozen=True)
class Found:
    """base: the model's folder, None of a fresh one. files: setting -> (file or folder here, where it is to stand).
    shape, engines, weights: as the plan has them."""

    base: Path | None
    tied: bool
    files: dict[str, tuple[Path, str]]
    shape: Any
    engines: list[str]
    weights: str


def surveyed(asked: dict[str, Any]) -> dict[str, Any]:
    """asked: {"verb", "recipe" (a name or file), "data", "settings"} of a new run, or {"verb", "resume", "settings"}.

    -> {"verb", "out", "new", "settings", "digests"} and what was `Found`.
    """
    from shoestring.core.files import sha256_file
    from shoestring.models.weight_files import weight_paths
    from shoestring.train.precision import settled
    from shoestring.train.run_folder import claim, disown

    if asked["verb"] in ASKED:
        from shoestring.laptops.asking import surveyed as of_texts

        return of_texts(asked)
    start = _START[asked["verb"]](asked)
    new = start.out is None
    try:
        start = replace(start, recipe=settled(start.recipe))
        found = _FOUND[asked["verb"]](start)
        out, owned = start.out, None
        if out is None:
            _, out, owned = claim(start.recipe, start.name)
            disown(owned)
    finally:
        disown(start.owned)
    return {
        "verb": asked["verb"], "out": str(out), "new": new, "settings": {} if new else asked["settings"],
        "base": None if found.base is None else str(found.base), "tied": found.tied,
        "files": {key: [str(here), there] for key, (here, there) in found.files.items()},
        "shape": to_json(found.shape), "engines": found.engines, "weights": found.weights,
        "digests": {} if found.base is None else {path.name: sha256_file(path) for path in weight_paths(found.base)},
    }  # fmt: skip


# --- fine-tuning --------------------------------------------------------------------------------------------------


def _start_finetune(asked: dict[str, Any]) -> Any:
    from shoestring.finetuning.config import finetune_recipe, is_finetune_recipe, load_finetune_recipe
    from shoestring.train.recipe_files import begun_with, recipe_name
    from shoestring.train.run_folder import Start, resume

    settings = asked["settings"]
    if asked.get("resume") is not None:
        return resume(asked["resume"], load_finetune_recipe, settings)
    model, data = asked["recipe"], asked["data"]
    recipe = finetune_recipe(model, data, {**settings, **_ONE_MACHINE, "train.answers": 0})
    if is_finetune_recipe(model):
        recipe = begun_with(recipe, recipe_name(model), {"data.source": data, **settings})
    return Start(recipe, "finetune", "as the command says")


def _found_finetune(start: Any) -> Found:
    from shoestring.finetuning.material import open_material
    from shoestring.finetuning.model import check_split, job_shape, options, portions_of

    recipe = start.recipe
    if recipe.evaluate.suite is not None:
        hint = "leave it out; afterwards: shoestring evaluate"
        raise ConfigError("evaluate.suite is asked by one machine", hint=hint)
    data = recipe.data
    if data.mixture:
        raise ConfigError("data.mixture is for one machine: over several the examples are one file")
    source = data.source or ""
    if not source.startswith("exercises:") and not Path(source).is_file():
        raise ConfigError(
            f"data.source {source}: over several machines the examples are one file, which each of them gets, or"
            " exercises:KIND",
            hint="write them into one .jsonl file",
        )
    check_split(_as_split(recipe))
    material = open_material(start)
    _check_model(material.config)
    portions = portions_of(recipe, material)
    shape, left = job_shape(recipe, portions), options(recipe, portions)
    files = {"model": (material.base, MODEL)}
    for name in ("source", "validation_source", "template"):
        text = getattr(data, name)
        if text is not None and Path(text).is_file():
            files[f"data.{name}"] = Path(text), f"data/{name}{''.join(Path(text).suffixes[-2:])}"
    return Found(material.base, material.config.tied_head, files, shape, list(left.engines), left.weights)


# --- pretraining --------------------------------------------------------------------------------------------------


def _start_pretrain(asked: dict[str, Any]) -> Any:
    from shoestring.pretraining.config import load_pretrain_recipe
    from shoestring.train.recipe_files import begun_with, recipe_name
    from shoestring.train.run_folder import Start, resume

    settings = asked["settings"]
    if asked.get("resume") is not None:
        return resume(asked["resume"], load_pretrain_recipe, settings)
    name = recipe_name(asked["recipe"])
    recipe = load_pretrain_recipe(asked["recipe"], {**settings, **_ONE_MACHINE})
    return Start(begun_with(recipe, name, settings), name, name)


def _found_pretrain(start: Any) -> Found:
    import torch

    from shoestring.data.corpus import Prepared
    from shoestring.offload.pipeline.planned import refuse
    from shoestring.plan.shapes import JobShape
    from shoestring.pretraining.config import InitFrom
    from shoestring.pretraining.material import open_material
    from shoestring.train.optimizer_config import moving
    from shoestring.train.planning import engines
    from shoestring.train.run import find_once

    recipe = start.recipe
    int8 = {"train.stages": bool(recipe.train.stages), "precision.compute int8": recipe.precision.compute == "int8"}
    refuse(_as_split(recipe), int8)
    material = open_material(start, torch.device("cpu"))
    _check_model(material.config)
    if not isinstance(material.corpus, Prepared) or len(material.corpus.folders) > 1 or material.external:
        raise ConfigError("over several machines one source is prepared: not a mixture, on_the_fly or external vectors")
    settings = recipe.train
    shape = JobShape(
        material.config, settings.rows, settings.sequence_length, compute=recipe.precision.settled,
        documents=recipe.data.separate_documents, moving=moving(recipe.optimizer),
    )  # fmt: skip
    files = {"data.source": (material.corpus.folders[0].folder, "data/shards")}
    base = None
    if isinstance(recipe.model, InitFrom):
        base = find_once(recipe.model.init)
        files["model.init"] = base, MODEL
    return Found(base, material.config.tied_head, files, shape, list(engines(recipe)), "source")


def _as_split(recipe: Any) -> Any:
    """What refuses a split looks at whether there is one."""
    return recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"split": ((0, 1),)})})


def _check_model(config: Any) -> None:
    from shoestring.offload.pipeline.model import unsplit

    if refused := unsplit(config):
        raise ConfigError(f"a model with {refused[0]} cannot be split over machines")


_START = {"finetune": _start_finetune, "pretrain": _start_pretrain}
_FOUND = {"finetune": _found_finetune, "pretrain": _found_pretrain}


if __name__ == "__main__":
    answer(surveyed)
