"""The jobs whose recipes can be searched, a row for each. Torch-free: a job's function is imported where a trial runs.

A job belongs here once its function takes a recipe's file, and `resume=FOLDER` to go on, and measures held-out loss
while it trains; nothing else in this room knows which jobs there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoestring.compression.distill.config import DistillRecipe
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.pretraining.config import PretrainRecipe
from shoestring.train.recipe import RunRecipe


@dataclass(frozen=True)
class SearchedJob:
    """module, function: what runs it, with the recipe's file as its `argument`. quality: the objective where none is
    asked for. space: the one that `default` means."""

    recipe: type[RunRecipe]
    module: str
    function: str
    quality: str
    space: str
    argument: str = "recipe"

    def run(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def lengths(self) -> tuple[str, ...]:
        """Settings of `train` of which exactly one says how long a run is."""
        section: Any = self.recipe.model_fields["train"].annotation
        return section.lengths


JOBS = {
    "pretrain": SearchedJob(PretrainRecipe, "shoestring.pretraining.job", "pretrain", "bits_per_byte", "pretrain"),
    "finetune": SearchedJob(FinetuneRecipe, "shoestring.finetuning.job", "finetune", "loss", "finetune", "model"),
    "distill": SearchedJob(DistillRecipe, "shoestring.compression.distill.job", "distill", "loss", "distill"),
}


def searched_job(name: str) -> SearchedJob:
    """Raises ConfigError for a job whose recipes cannot be searched."""
    if name not in JOBS:
        raise ConfigError(f"recipes of {name} cannot be searched", hint=f"those of {', '.join(JOBS)} can")
    return JOBS[name]
