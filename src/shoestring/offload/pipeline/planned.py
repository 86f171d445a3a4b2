"""What a run over several machines asks of its recipe and of the plan."""

from __future__ import annotations

from collections.abc import Mapping

from shoestring.core.errors import ConfigError
from shoestring.models.config import ModelConfig
from shoestring.nn.config import block_order
from shoestring.offload.pipeline.place import Place
from shoestring.plan.choose import usual_microbatch
from shoestring.train.recipe import RunRecipe

_FILLING = 4  # microbatches for each machine: the bubble is then a fifth of a step at most


def refuse(recipe: RunRecipe, more: Mapping[str, bool]) -> None:
    """Raises ConfigError for settings that a run over several machines does not have. more: those of its job."""
    if recipe.budget.split is None:
        return
    refused = {
        "parallel.kind fsdp": recipe.parallel.kind == "fsdp",
        "precision.fp8": recipe.precision.fp8 is not None,
        "precision.compile": recipe.precision.compile,
        "quantize": recipe.quantize is not None,
        "optimizer.in_backward": recipe.optimizer.in_backward,
        **more,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise ConfigError(f"{setting} is not done over several machines (budget.split)", hint="leave it out")


def config_of_part(config: ModelConfig, place: Place) -> ModelConfig:
    """A model about as large as the part at `place`, for predictions: with both of its ends, which one has at most."""
    blocks = len(place.blocks(block_order(config.layers, config.sharing)))
    changes: dict[str, object] = {"layers": place.end - place.first}
    if config.sharing is not None:
        changes["sharing"] = config.sharing.model_copy(update={"unique_layers": blocks})
    return config.model_copy(update=changes)


def filling_microbatch(rows: int, length: int, tokens: int, stages: int) -> int:
    """The most rows at once with which every machine has something to do most of the time: `usual_microbatch`, or fewer
    so that a step has several microbatches for each machine."""
    usual = usual_microbatch(rows, length, tokens)
    most = max(rows // (_FILLING * stages), 1)
    return max(n for n in range(1, usual + 1) if rows % n == 0 and n <= most)
