"""How several processes train one model, in a recipe. Torch-free.

How many there are is no setting: the command starts them (`--ranks`, `--gpus`), or torchrun does, and a run goes on
with any number of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from shoestring.core.config import Config
from shoestring.core.units import Seconds

if TYPE_CHECKING:
    from shoestring.models.config import ModelConfig


class ParallelConfig(Config):
    """What of the model lies in each process. Losses and steps are those of one process, whatever is chosen."""

    kind: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: each process has the whole model; fsdp: each keeps its part of weights, gradients and moments"
        " (pretraining)",
    )
    exchange_timeout: Seconds = Field(
        600.0, description="how long processes wait for one of them, before the run ends and names it"
    )


def why_whole(config: ModelConfig) -> str | None:
    """Why a model of this shape cannot be divided by rows; None where it can."""
    kinds = {
        "blocks of kind reversible run again in the pass backward by themselves": config.block == "reversible",
        "a mixture of experts moves its choice biases by all gradients together": config.feed_forward.kind == "moe",
        "layers that share weights (model.sharing) would be gathered for each use": config.sharing is not None,
        "a memory (model.memory) reads weights outside of the pass": config.memory is not None,
    }
    return next((why for why, there in kinds.items() if there), None)
